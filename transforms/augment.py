"""Vary a prepared case at random: one affine interpolation, then contrast, blur, low resolution and noise.

Draws first, then applies: a `Draw` holds every random number of one case, can be logged and replayed, and `apply` is
deterministic, on any device.

The affine of a tensor stays as it is: augmentation moves and changes the patient, not the scanner. A case mirrored
left for right is thus a mirror-image patient in the same RAS grid, whose sided classes have been swapped: what is
labelled left lies on the left.

Intensity strengths count in standard deviations of the image, so that they mean the same for windows and z-scores; a
gamma keeps the channel's mean and standard deviation (as nnU-Net's retain_stats does), so that it bends the contrast
but does not shift calibrated values by hundreds of HU.

Most of the time goes into the interpolation; where they are drawn, a blur takes two fifths of its time, noise and gamma
a quarter each. `python -m benchmarks --rows augmentation` measures the whole.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, affine_to_spacing
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from transforms.axes import LEFT_RIGHT
from transforms.intensity import mean_and_std
from transforms.io.errors import VolumeError
from transforms.large_pages import empty_like
from transforms.left_right import mirror_partners, swap_annotated, swap_sides
from transforms.separable import apply_along, gaussian_matrix, low_resolution_matrix
from transforms.warp import affine_map, indexable, is_label_map, sample_affine

TINY = 1e-30
"""Keeps a constant channel's 0 / 0 at 0."""

PART = 2**16
"""Voxels whose intensities are changed together on a CPU: with their noise they stay in its cache."""

NO_TURN = (0.0, 0.0, 0.0)
NO_CHANGE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Draw:
    """Every random number of one augmented case; the default changes nothing."""

    rotation_deg: tuple[float, float, float] = NO_TURN
    """Turns about the grid's axes i, j, k (in this order), in mm space about the centre of the volume."""
    scale: tuple[float, float, float] = NO_CHANGE
    """Factors by which the patient grows along i, j, k."""
    translation: tuple[float, float, float] = NO_TURN
    """Shift of the patient along i, j, k, as a share of the field of view."""
    flips: tuple[int, ...] = ()
    """Axes that are mirrored."""
    blur_sigma: float = 0.0
    """Standard deviation of a Gaussian blur, in voxels."""
    low_resolution: tuple[float, float, float] = NO_CHANGE
    """Factors by which the image is sampled coarser along i, j, k and back."""
    gamma: float = 1.0
    """Exponent on the intensities between the channel's lowest (0) and highest (1); mean and deviation are kept."""
    gain: float = 1.0
    """Factor on the contrast about the channel's mean."""
    shift: float = 0.0
    """Brightness added, in standard deviations of the channel."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, in standard deviations of the channel."""
    noise_seed: int = 0
    """Seed of the noise; the same bits on every CPU, others on a GPU."""

    @property
    def moves(self) -> bool:
        """Whether voxels are interpolated (mirroring alone needs no interpolation)."""
        return (self.rotation_deg, self.scale, self.translation) != (NO_TURN, NO_CHANGE, NO_TURN)


def change_intensity(image: Tensor, draw: Draw, *, in_place: bool = False) -> Tensor:
    """Blur, coarsen, bend, stretch, shift and add noise to (C, I, J, K), in this order.

    A constant channel stays as it is: it has no contrast to change and no deviation to measure noise in.

    Args:
        image: float.
        draw: what is changed, and how much.
        in_place: write into `image` where that spares a new volume.

    Returns:
        A new tensor; with `in_place`, perhaps `image` itself.
    """
    changed = image
    for axis, factor in enumerate(draw.low_resolution, start=1):
        changed = _smooth(changed, axis, draw.blur_sigma, factor)
    if changed is image and not (in_place and image.is_contiguous()):
        changed = empty_like(image, image.shape).copy_(image)
    if (draw.gamma, draw.gain, draw.shift, draw.noise) != (1.0, 1.0, 0.0, 0.0):
        generator = torch.Generator(image.device).manual_seed(draw.noise_seed)
        for channel in changed:
            _rescale(channel.view(-1), draw, generator)
    return changed


def _rescale(channel: Tensor, draw: Draw, generator: torch.Generator) -> None:
    """Bend, stretch, shift a flat channel and add noise, part by part of it. No host waits for a GPU.

    A bent channel has the mean and deviation that it had: it is stretched back, in the pass that changes contrast and
    brightness.
    """
    parts = _parts(channel)
    mean, std = mean_and_std(channel)
    factor: float | Tensor = draw.gain
    offset = mean * (1 - draw.gain) + draw.shift * std
    if draw.gamma != 1:
        low, high = torch.aminmax(channel)
        width = (high - low).clamp_(min=TINY)
        for part in parts:
            part.sub_(low).div_(width).clamp_(0, 1).pow_(draw.gamma)
        bent_mean, bent_std = mean_and_std(channel)
        factor = draw.gain * std / (bent_std + TINY)
        offset = mean + draw.shift * std - bent_mean * factor
    noise = channel.new_empty(max(map(len, parts)) if draw.noise else 0)
    for part in parts:
        part.mul_(factor).add_(offset)
        if draw.noise:
            part.add_(noise[: len(part)].normal_(generator=generator).mul_(draw.noise * std))


def _parts(channel: Tensor) -> list[Tensor]:
    """Cut a flat channel into parts that stay in a CPU's cache; a GPU takes it whole.

    The last part has at least 16 voxels and the others a multiple of it: normal numbers are drawn 16 at a time, so that
    those of the parts are those of the whole.
    """
    n = len(channel)
    starts = range(0, max(1, n - 15), PART) if channel.device.type == "cpu" else range(1)
    ends = [*starts[1:], n]
    return [channel[start:end] for start, end in zip(starts, ends, strict=True)]


def _smooth(image: Tensor, axis: int, sigma: float, factor: float) -> Tensor:
    n, matrix = image.shape[axis], None
    if sigma > 0:
        matrix = gaussian_matrix(n, sigma)
    if factor > 1:
        coarse = low_resolution_matrix(n, factor)
        matrix = coarse if matrix is None else coarse @ matrix
    return image if matrix is None else apply_along(image, matrix, axis)


@dataclass(frozen=True)
class Strengths:
    """How much is varied; a strength of 0 (low_resolution: 1) switches its change off. Raises ValueError."""

    spatial_probability: float = 0.75
    """Of turning, scaling and shifting a case at all (in one interpolation)."""
    rotation_deg: float = 12.0
    """Greatest turn about each axis."""
    scale: float = 0.15
    """Greatest growth along each axis: 0.15 for factors between 1/1.15 and 1.15."""
    translation: float = 0.05
    """Greatest shift along each axis, as a share of the field of view."""
    intensity_probability: float = 0.2
    """Of each of the following six changes, on its own."""
    gamma: float = 0.4
    """Greatest bend of the intensities: 0.4 for exponents between 1/1.4 and 1.4."""
    gain: float = 0.25
    """Greatest change of contrast: 0.25 for factors between 1/1.25 and 1.25."""
    shift: float = 0.2
    """Greatest change of brightness, in standard deviations of the image."""
    noise: float = 0.15
    """Greatest Gaussian noise, in standard deviations of the image."""
    blur_sigma: float = 1.0
    """Greatest Gaussian blur, in voxels."""
    low_resolution: float = 2.0
    """Greatest factor by which some of the axes are sampled coarser and back."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low = 1.0 if name == "low_resolution" else 0.0
            high = 1.0 if name.endswith("probability") else math.inf
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not low <= value <= high:
                bounds = f"between {low:g} and {high:g}" if high < math.inf else f"of at least {low:g}"
                raise ValueError(f"{name} is {value!r}, expected a number {bounds}")


class RandomAugmentd(Randomizable, MapTransform):
    """Draw a `Draw` and apply it to image and label; `set_random_state` decides everything.

    `data["image"]` is float (C, I, J, K), `data["label"]`, which may be absent, integer (1, I, J, K), both on a grid of
    `target_size`. `data["annotated"]`, where it is there, are the classes that the label shows; a mirror from left to
    right exchanges their sides, too. Each axis in `flips` is mirrored in half of the cases. With `on_device`, a call
    only writes what it drew into `data["draw"]`, for `apply_to_batch` on the batch's device. Raises ValueError that
    names the argument.
    """

    def __init__(
        self,
        target_size: Sequence[int],
        strengths: Strengths | None = None,
        *,
        class_names: Sequence[str] | None = None,
        flips: Sequence[int] = (),
        sided_pairs: Sequence[Sequence[str]] | None = None,
        on_device: bool = False,
    ):
        super().__init__(("image", "label"), allow_missing_keys=True)
        self.on_device = on_device
        self.target_size, self.flips = tuple(target_size), tuple(flips)
        self.strengths = Strengths() if strengths is None else strengths
        self.partners = _partners(self.flips, class_names, sided_pairs)
        self.drawn = Draw()

    def randomize(self, data: Any = None) -> None:
        """Draw again into `drawn`, see `draw`; for MONAI, which calls this name."""
        self.drawn = self.draw()

    def draw(self) -> Draw:
        """Draw the numbers of one case. Every case takes equally many numbers from `R`, whatever comes out."""
        s, uniform = self.strengths, self.R.uniform
        moved = uniform() < s.spatial_probability
        rotation = tuple(uniform(-s.rotation_deg, s.rotation_deg, 3).tolist())
        scale = tuple(np.exp(uniform(-1, 1, 3) * math.log1p(s.scale)).tolist())
        translation = tuple(uniform(-s.translation, s.translation, 3).tolist())
        mirrored = uniform(size=3) < 0.5
        changed = uniform(size=6) < s.intensity_probability
        level = uniform(size=6).tolist()
        coarse_axes = uniform(size=3) < 0.5
        factor = 1 + (s.low_resolution - 1) * level[5] * changed[5]
        return Draw(
            rotation_deg=rotation if moved else NO_TURN,
            scale=scale if moved else NO_CHANGE,
            translation=translation if moved else NO_TURN,
            flips=tuple(axis for axis in self.flips if mirrored[axis]),
            gamma=_between(s.gamma, level[0]) if changed[0] else 1.0,
            gain=_between(s.gain, level[1]) if changed[1] else 1.0,
            shift=s.shift * (2 * level[2] - 1) if changed[2] else 0.0,
            noise=s.noise * level[3] if changed[3] else 0.0,
            blur_sigma=s.blur_sigma * level[4] if changed[4] else 0.0,
            low_resolution=tuple(factor if coarse else 1.0 for coarse in coarse_axes),  # type: ignore[arg-type]
            noise_seed=int(self.R.randint(2**31 - 1)),
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return {**data, "draw": asdict(self.drawn)} if self.on_device else self.apply(data, self.drawn)

    def apply_to_batch(self, batch: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply the draws of a batch, one a case, on the device that it lies on.

        `batch` holds "image" (B, C, I, J, K), "label" (B, 1, I, J, K), maybe "annotated" by case, and "draw", which is
        left out of the result. The others are changed in place. The noise of a GPU is other than a CPU's from the same
        seed.
        """
        d = dict(batch)
        keys = [*self.key_iterator(d), *(key for key in ("annotated",) if key in d)]
        for index, drawn in enumerate(d.pop("draw")):
            applied = self.apply({key: d[key][index] for key in keys}, Draw(**drawn))
            for key in keys:
                d[key][index] = applied[key]
        return d

    def apply(self, data: Mapping[Hashable, Any], draw: Draw) -> dict[Hashable, Any]:
        """Apply what was drawn: deterministic, and nothing is changed in place. Affine and meta stay."""
        d = dict(data)
        self._check_sizes(d)
        found: list[Any] = [d.get(key) for key in ("image", "label")]
        plain = [volume.as_tensor() if isinstance(volume, MetaTensor) else volume for volume in found]
        image, label = self._move(plain[0], plain[1], draw, found)
        if label is not None and LEFT_RIGHT in draw.flips:
            label = swap_sides(label, self.partners)
            if "annotated" in d:
                d["annotated"] = swap_annotated(d["annotated"], self.partners)
        if image is not None:
            image = change_intensity(image, draw, in_place=image is not plain[0])
        for key, before, after in zip(("image", "label"), found, (image, label), strict=True):
            if before is not None:
                d[key] = _like(before, after)
        return d

    def _move(self, image: Tensor | None, label: Tensor | None, draw: Draw, found: list[Any]) -> tuple[Any, Any]:
        if draw.moves:
            turn, scale, shift = draw.rotation_deg, draw.scale, draw.translation
            spacing_mm = _spacing_mm(found)
            matrix = affine_map(
                self.target_size, spacing_mm, rotation_deg=turn, scale=scale, translation=shift, flips=draw.flips
            )
            return sample_affine(image, label, matrix)
        if not draw.flips:
            return image, label
        axes = [axis + 1 for axis in draw.flips]
        mirrored = None if label is None else indexable(label).flip(axes).to(label.dtype)
        return None if image is None else image.flip(axes), mirrored

    def _check_sizes(self, data: Mapping[Hashable, Any]) -> None:
        for key in self.key_iterator(dict(data)):
            if not _is_of_type(data[key], key):
                wanted = "a float32 tensor" if key == "image" else "a tensor of whole numbers, (1, I, J, K)"
                found = f"{getattr(data[key], 'dtype', type(data[key]).__name__)}, {tuple(data[key].shape)}"
                raise VolumeError("wrong_type", key, wanted, found, "convert it", str(data.get("case", "?")))
            if tuple(data[key].shape[1:]) != self.target_size:
                expected = f"{self.target_size} voxels, for which the augmentation chain was made"
                found = f"{tuple(data[key].shape[1:])} voxels"
                remedy = "prepare it with the same target_size"
                raise VolumeError("wrong_size", key, expected, found, remedy, str(data.get("case", "?")))


def _is_of_type(volume: Any, key: Hashable) -> bool:
    if not isinstance(volume, Tensor):
        return False
    return volume.dtype == torch.float32 if key == "image" else is_label_map(volume)


def _like(before: Tensor, after: Tensor) -> Tensor:
    return (
        MetaTensor(after, meta=before.meta, applied_operations=before.applied_operations)
        if isinstance(before, MetaTensor)
        else after
    )


def _spacing_mm(volumes: Sequence[Any]) -> Sequence[float]:
    affine = next((volume.affine for volume in volumes if isinstance(volume, MetaTensor)), None)
    return (1.0, 1.0, 1.0) if affine is None else np.asarray(affine_to_spacing(affine.cpu().numpy())).tolist()


def _between(strength: float, level: float) -> float:
    """A factor between 1 / (1 + strength) and 1 + strength, 1 in the middle."""
    return math.exp((2 * level - 1) * math.log1p(strength))


def _partners(
    flips: tuple[int, ...], class_names: Sequence[str] | None, sided_pairs: Sequence[Sequence[str]] | None
) -> tuple[int, ...]:
    if not set(flips) <= {0, 1, 2} or len(set(flips)) != len(flips):
        raise ValueError(f"flips is {list(flips)}, expected different axes out of 0 (left-right), 1 and 2")
    if LEFT_RIGHT not in flips:
        return ()
    if class_names is None:
        raise ValueError("flips mirrors left and right, but class_names is None: give the names of the classes")
    try:
        return mirror_partners(class_names, sided_pairs)
    except ValueError as error:
        raise ValueError(
            f"flips mirrors left and right, but {error}; add it, give sided_pairs, or take axis 0 out of flips"
        ) from error
