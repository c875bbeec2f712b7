"""Scan a body of `anatomy` on any grid (shape, affine): a CT of whole-body phantoms with its label map.

Axes: arrays are (I, J, K); affines map voxel indices to world mm, RAS+, where integer indices are voxel centres.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pipeline.phantoms.anatomy import Body, Structure, draw_body
from pipeline.phantoms.shapes import Array, Points, Shape

ORIENTATIONS: tuple[str, ...] = tuple(
    "".join(codes) for axes in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*axes)
)
"""The 48 ways to lay three voxel axes along three body axes, as nibabel writes them ("RAS", "LPS", "SLA", …)."""

_AIR_HU = -1000.0
SLAB_VOXELS = 1 << 22  # a slab's temporaries are some ten float32 arrays of this size, however large the volume
Shape3 = tuple[int, int, int]


class PhantomError(ValueError):
    """A phantom that cannot be made as asked; one line."""

    is_input_error = True


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic CT with its label map."""

    image: NDArray[np.int16]
    """(I, J, K) in HU."""
    label: NDArray[np.uint8]
    """(I, J, K); values are positions in CLASS_NAMES."""
    affine: Points
    """(4, 4), voxel -> world mm, RAS+."""


def make_body(
    seed: int | Sequence[int],
    *,
    voxel_mm: float = 7.0,
    spacing_mm: float | Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    orientation: str | None = None,
    oblique_deg: float | None = None,
    noise_hu: float = 12.0,
) -> Phantom:
    """Draw a person by seed and scan them; the same arguments give the same bits.

    What is None is drawn by the seed too: an anisotropic spacing around `voxel_mm`, one of the 48 orientations, a tilt
    of 2 to 12 degrees, and a shape that covers head and trunk. The person depends on the seed alone, not on the grid;
    label values are positions in CLASS_NAMES. Raises PhantomError for a grid that makes no sense.
    """
    key = np.ravel(seed).tolist()
    body = draw_body(np.random.default_rng([*key, 0]))
    grid = draw_grid(
        body,
        np.random.default_rng([*key, 1]),
        voxel_mm=voxel_mm,
        spacing_mm=spacing_mm,
        shape=shape,
        orientation=orientation,
        oblique_deg=oblique_deg,
    )
    return render(body, *grid, noise_hu=noise_hu, seed=[*key, 2])


def draw_grid(
    body: Body,
    rng: np.random.Generator,
    *,
    voxel_mm: float = 7.0,
    spacing_mm: float | Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    orientation: str | None = None,
    oblique_deg: float | None = None,
) -> tuple[Shape3, Points]:
    """Draw a scan's grid (shape, affine) around a body; every draw is made whether or not its value is given.

    `spacing_mm` runs along the voxel axes I J K. `oblique_deg` turns the grid about a drawn axis. The affine's numbers
    fit float32 exactly, as NIfTI headers store them. Raises PhantomError for a grid that makes no sense.
    """
    drawn_spacing = voxel_mm * rng.uniform(0.9, 1.1) * rng.permutation([1.0, 1.0, rng.uniform(1.1, 1.4)])
    drawn_orientation = ORIENTATIONS[rng.integers(48)]
    drawn_angle = rng.uniform(2, 12)
    axis = rng.normal(size=3)
    margin_mm = rng.uniform(2, 25, size=(2, 3))
    spacing = np.broadcast_to(np.asarray(drawn_spacing if spacing_mm is None else spacing_mm, float), (3,))
    angle = np.radians(drawn_angle if oblique_deg is None else oblique_deg)
    _check_grid(spacing, shape, orientation)
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    axes = turn @ inv_ornt_aff(axcodes2ornt(orientation or drawn_orientation), (1, 1, 1))[:3, :3].T
    along = body.reach_mm @ axes
    low = along.min(0) - margin_mm[0]
    high = along.max(0) + margin_mm[1]
    counts = np.ceil((high - low) / spacing).astype(int) + 1 if shape is None else np.asarray(shape, int)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = axes @ ((low + high) / 2 - (counts - 1) / 2 * spacing)
    return (int(counts[0]), int(counts[1]), int(counts[2])), affine.astype(np.float32).astype(float)


def _check_grid(spacing: Points, shape: Sequence[int] | None, orientation: str | None) -> None:
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise PhantomError(f"spacing_mm: expected positive numbers, found {tuple(spacing.tolist())}")
    if shape is not None and (len(shape) != 3 or min(shape) < 1):
        raise PhantomError(f"shape: expected three positive counts, found {tuple(shape)}")
    if orientation is not None and orientation not in ORIENTATIONS:
        raise PhantomError(f"orientation: expected three axis codes such as RAS or LPI, found {orientation!r}")


def render(
    body: Body,
    shape: Sequence[int],
    affine: Points,
    *,
    noise_hu: float = 12.0,
    seed: int | Sequence[int] = 0,
) -> Phantom:
    """Scan a body on a grid: labels by voxel centre, intensities mixed by the share of a voxel that a structure fills.

    Works in slabs along I, so that beyond the result the memory does not grow with the volume; noise is seeded per
    plane, so the slabs do not show.
    """
    n_planes = int(shape[0])
    key = np.ravel(seed).tolist()
    image = np.empty(tuple(shape), np.int16)
    label = np.zeros(tuple(shape), np.uint8)
    step = max(1, SLAB_VOXELS // (int(shape[1]) * int(shape[2])))
    for start in range(0, n_planes, step):
        stop = min(start + step, n_planes)
        slab = _Slab(start, np.full((stop - start, *label.shape[1:]), _AIR_HU, np.float32), label[start:stop], affine)
        for structure in body.structures:
            _paint(slab, structure)
        for plane in range(start, stop):
            noise = np.random.default_rng([*key, plane]).standard_normal(label.shape[1:], np.float32)
            noisy = slab.image[plane - start] + np.float32(noise_hu) * noise
            image[plane] = np.rint(noisy).clip(-1024, 3071).astype(np.int16)
    return Phantom(image, label, np.array(affine, float))


@dataclass(frozen=True, eq=False)
class _Slab:
    """The planes of a grid from `start` on: their image in float32 HU and their label, both painted in place."""

    start: int
    image: Array
    label: NDArray[np.uint8]
    affine: Points

    @cached_property
    def inverse(self) -> Points:
        """World mm to voxel indices of the slab (3, 4)."""
        inverse = np.asarray(np.linalg.inv(self.affine)[:3], np.float64)
        inverse[0, 3] -= self.start
        return inverse

    def index_box(self, box_mm: Points) -> NDArray[np.int64]:
        """Voxels of the slab (first, last + 1) that a world box touches, at least half a voxel around it included."""
        middle = self.inverse[:, :3] @ ((box_mm[0] + box_mm[1]) / 2) + self.inverse[:, 3]
        reach = np.abs(self.inverse[:, :3]) @ ((box_mm[1] - box_mm[0]) / 2)
        box = np.array([np.floor(middle - reach), np.ceil(middle + reach) + 1]).astype(np.int64)
        return np.minimum(np.maximum(box, 0), self.image.shape)

    def world(self, box: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """World coordinates x, y, z (mm) of the voxel centres of an index box and of one voxel more all around."""
        first = box[0] + (self.start - 1, -1, -1)
        i, j, k = (np.arange(n + 2) + start for n, start in zip(box[1] - box[0], first, strict=True))
        i, j, k = i[:, None, None], j[None, :, None], k[None, None, :]
        rows = self.affine[:3]
        x, y, z = ((a * i + d).astype(np.float32) + (b * j + c * k).astype(np.float32) for a, b, c, d in rows)
        return x, y, z


def _paint(slab: _Slab, structure: Structure) -> None:
    """Lay a structure over what the slab holds already."""
    boxes = [slab.index_box(shape.box_mm()) for shape in structure.shapes]
    touched = [(shape, box) for shape, box in zip(structure.shapes, boxes, strict=True) if (box[1] > box[0]).all()]
    if not touched:
        return
    low = np.min([box[0] for _, box in touched], 0)
    high = np.max([box[1] for _, box in touched], 0)
    filled = np.zeros(high - low, np.float32)
    core = np.zeros(high - low, np.float32)
    for shape, box in touched:
        part = _slices(box - low)
        away, width = _distance(slab, shape, box)
        np.maximum(filled[part], _share(away, width), out=filled[part])
        if structure.core_hu != structure.hu:
            np.maximum(core[part], _share(away + np.float32(structure.wall_mm), width), out=core[part])
    image = slab.image[_slices(np.stack([low, high]))]
    label = slab.label[_slices(np.stack([low, high]))]
    hu = np.float32(structure.hu) + core * np.float32(structure.core_hu - structure.hu)
    image += filled * (hu - image)
    label[filled >= 0.5] = structure.class_index


def _share(away: Array, width: Array) -> Array:
    """Share of a voxel inside a surface at distance `away` from its centre; at least one half where the centre is."""
    return np.clip(np.float32(0.5) - away / width, 0, 1)


def _distance(slab: _Slab, shape: Shape, box: NDArray[np.int64]) -> tuple[Array, Array]:
    """Distance of a box's voxel centres from a surface, and the width of a voxel across it in the same measure.

    The width is the root of the summed squares of the distance's changes along the three axes: for a plane, a linear
    ramp that wide has the variance of the voxel's box projected on the normal.
    """
    away = shape.distance(*slab.world(box))
    squares = np.full(box[1] - box[0], 1e-12, np.float32)
    for axis in range(3):
        others = tuple(slice(None) if n == axis else slice(1, -1) for n in range(3))
        along = away[others].swapaxes(0, axis)
        steps = np.abs(along[1:] - along[:-1])
        # The larger of the steps to both neighbours: across a tube thinner than a voxel their mean would vanish.
        squares += np.square(np.maximum(steps[1:], steps[:-1])).swapaxes(0, axis)
    return away[1:-1, 1:-1, 1:-1], np.sqrt(squares)


def _slices(box: NDArray[np.int64]) -> tuple[slice, slice, slice]:
    (a, b, c), (d, e, f) = box.tolist()
    return slice(a, d), slice(b, e), slice(c, f)
