"""Where a patch is cut out of a case: at a voxel of a rare structure, or anywhere.

Half of the patches (`foreground`) are placed so that a voxel of one of the case's classes lies in their middle; the
class is drawn first, so that small structures are seen as often as large ones (nnU-Net's foreground oversampling,
Isensee et al. 2021). The rest lie anywhere with equal probability.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from torch import Tensor

from transforms.augment import Draw, RandomAugmentd, change_intensity
from transforms.axes import LEFT_RIGHT
from transforms.left_right import swap_annotated, swap_sides
from transforms.warp import affine_map, indexable, sample_affine

PLACES_PER_CLASS = 1000
"""Voxels of a class that are kept for placing patches: enough that no patch comes twice, 4 kB a class."""

Triple = tuple[int, int, int]


def places_of(
    label: np.ndarray, classes: Sequence[int], *, seed: int, most: int = PLACES_PER_CLASS
) -> dict[int, np.ndarray]:
    """Draw voxels of each class that a label map holds.

    Args:
        label: (I, J, K) integer.
        classes: class indices to draw from.
        seed: decides which voxels.
        most: voxels a class; all of them where it has fewer.

    Returns:
        Class -> flat indices (C order) into the label, uint32, in rising order; classes without a voxel are left out.

    >>> places_of(np.array([[[0, 2], [2, 0]]]), [1, 2], seed=0)
    {2: array([1, 2], dtype=uint32)}
    """
    random = np.random.default_rng(seed)
    top = max(classes, default=0) + 1
    counts = np.array([np.bincount(np.minimum(plane, top).reshape(-1), minlength=top + 1) for plane in label])
    ends = np.cumsum(counts, axis=0)  # of each class, how many voxels lie in a plane and before it
    # Which of a class's voxels, in rising order
    ranks = {
        int(c): np.sort(random.choice(ends[-1, c], size=min(most, ends[-1, c]), replace=False))
        for c in classes
        if ends[-1, c]
    }
    found: dict[int, list[np.ndarray]] = {c: [] for c in ranks}
    for i, plane in enumerate(label):  # plane by plane: sorting a whole case takes eight bytes a voxel
        flat = plane.reshape(-1)
        order = np.argsort(flat, kind="stable")
        for c, of_class in ranks.items():
            first = ends[i, c] - counts[i, c]
            here = of_class[np.searchsorted(of_class, first) : np.searchsorted(of_class, ends[i, c])]
            if here.size:
                low = np.searchsorted(flat, c, sorter=order)
                found[c].append(i * flat.size + order[low + here - first])
    return {c: np.concatenate(parts).astype(np.uint32) for c, parts in found.items()}


def draw_patch_start(
    random: np.random.RandomState,
    size: Sequence[int],
    patch: Sequence[int],
    *,
    places: Mapping[int, np.ndarray],
    weights: Sequence[float | int],
    foreground: float | int,
) -> Triple:
    """Draw the first voxel of a patch in a case; equally many random numbers are taken, whatever comes out.

    Args:
        random: source of the random numbers.
        size: voxels (I, J, K) of the case.
        patch: voxels of the patch. Along an axis where it is larger than the case, the case lies wholly within it, at a
            random position, and the first voxel is negative.
        places: see `places_of`.
        weights: by class index, how often each class is chosen among those that the case holds.
        foreground: probability of a patch with a chosen voxel in its middle half.

    Returns:
        Index (i, j, k) of the patch's first voxel in the case.
    """
    at_foreground, which_class, which_place = random.uniform(size=3)
    shares = random.uniform(size=3)
    present = [c for c in places if weights[c] > 0]
    centre = None
    if present and at_foreground < foreground:
        likelihood = np.cumsum([weights[c] for c in present])
        chosen = places[present[int(np.searchsorted(likelihood, which_class * likelihood[-1], side="right"))]]
        centre = np.unravel_index(int(chosen[int(which_place * len(chosen))]), tuple(size))
    start = []
    for axis in range(3):
        low, high = sorted((0, size[axis] - patch[axis]))
        if centre is None:
            first = low + int(shares[axis] * (high - low + 1))
        else:
            # The chosen voxel comes to lie between a quarter and three quarters of the patch
            first = int(centre[axis]) - int(patch[axis] * (0.25 + 0.5 * shares[axis]))
        start.append(min(max(first, low), high))
    return start[0], start[1], start[2]


@runtime_checkable
class StoredCase(Protocol):
    """A prepared case of which any part can be read without the rest."""

    @property
    def size(self) -> Triple:
        """Voxels (I, J, K)."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along i, j, k."""

    @property
    def lowest(self) -> Sequence[float]:
        """The lowest value of each channel: what lies outside the case."""

    @property
    def places(self) -> Mapping[int, np.ndarray]:
        """See `places_of`."""

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Image float32 (C, i, j, k) and label (1, i, j, k) of the voxels start … stop, all within the case."""


class RandomPatchd(Randomizable, Transform):
    """Cut a patch out of a stored case and vary it, turned, scaled and cut in one interpolation.

    `data["stored"]` is a `StoredCase`, `data["epoch"]` the epoch, `data["annotated"]` as in `RandomAugmentd`. The
    result holds "image" (C, *patch) float32 and "label" (1, *patch) in their place. `set_random_state` decides
    everything.

    Args:
        patch_of: voxels (I, J, K) of the patch in an epoch.
        weights: see `draw_patch_start`.
        foreground: see `draw_patch_start`.
        augment: draws how a patch is varied; None leaves patches as they are.
    """

    def __init__(
        self,
        patch_of: Callable[[int], Triple],
        *,
        weights: Sequence[float | int],
        foreground: float | int = 0.5,
        augment: RandomAugmentd | None = None,
    ) -> None:
        self.patch_of = patch_of
        self.weights = tuple(weights)
        self.foreground = foreground
        self.augment = augment

    def randomize(self, data: Any = None) -> None:
        """Nothing is drawn ahead: what is drawn depends on the case."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        stored: StoredCase = d.pop("stored")
        patch = self.patch_of(d.pop("epoch"))
        start = draw_patch_start(
            self.R, stored.size, patch, places=stored.places, weights=self.weights, foreground=self.foreground
        )
        draw = Draw()
        if self.augment is not None:
            self.augment.R = self.R
            draw = self.augment.draw()
        image, label = cut(stored, start, patch, draw)
        if self.augment is not None and LEFT_RIGHT in draw.flips:
            label = swap_sides(label, self.augment.partners)
            if "annotated" in d:
                d["annotated"] = swap_annotated(d["annotated"], self.augment.partners)
        return d | {"image": change_intensity(image, draw, in_place=True), "label": label}


def cut(stored: StoredCase, start: Sequence[int], patch: Sequence[int], draw: Draw) -> tuple[Tensor, Tensor]:
    """Cut the patch that begins at voxel `start`, moved and mirrored about its own centre as `draw` says.

    Only the part of the case that the patch shows is read. Outside the case lies each channel's lowest value and class
    0.

    Returns:
        Image float32 (C, *patch) and label (1, *patch).
    """
    matrix = affine_map(
        patch,
        stored.spacing_mm,
        rotation_deg=draw.rotation_deg,
        scale=draw.scale,
        translation=draw.translation,
        flips=draw.flips if draw.moves else (),
    )
    matrix[:3, 3] += start
    low, high = _covering(matrix, patch, stored.size)
    image, label = stored.read(low, high)
    if draw.moves:
        matrix[:3, 3] -= low
        moved_image, moved_label = sample_affine(image, label, matrix, size=patch, outside=stored.lowest)
        assert moved_image is not None
        assert moved_label is not None
        return moved_image, moved_label
    before = [max(0, a - s) for a, s in zip(low, start, strict=True)]
    box = tuple(slice(b, b + h - a) for b, a, h in zip(before, low, high, strict=True))
    whole_image = torch.tensor(stored.lowest)[:, None, None, None].expand(-1, *patch).clone()
    whole_image[(slice(None), *box)] = image
    plain = indexable(label)
    whole_label = plain.new_zeros(1, *patch)
    whole_label[(slice(None), *box)] = plain
    axes = [1 + axis for axis in draw.flips]
    return whole_image.flip(axes), whole_label.flip(axes).to(label.dtype)


def _covering(matrix: np.ndarray, patch: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[int]]:
    """First and last + 1 voxel of the part of a case that a patch is interpolated from; never empty."""
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in patch), indexing="ij")).reshape(3, -1)
    points = matrix[:3, :3] @ corners + matrix[:3, 3:]
    last = np.array(size) - 1
    low = np.clip(np.floor(points.min(1) + 1e-6), 0, last)
    high = np.clip(np.ceil(points.max(1) - 1e-6), 0, last)
    return [int(n) for n in low], [int(n) + 1 for n in high]
