"""Voxel grids: what makes one usable, and when two are the same. Opens no file.

World coordinates are millimetres in RAS+; voxel (0, 0, 0)'s *centre* is the affine's translation column.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil

MAX_VOXELS = 2**31
"""No scanner makes more (1290 voxels a side); a header that claims more is damaged or hostile."""

BOMB_BYTES = 4 * 2**30
BOMB_RATIO = 500
"""More bytes than this out of gzip, packed more tightly than this to one, are no scan and no label map: a CT packs 2 to
1, a label map 100 to 1, and the emptiest mask is smaller than that unless its numbers are needlessly wide."""

GRID_TOLERANCE_VOXELS = 0.1
"""Two grids are the same when no corner lies further apart than this share of the smallest voxel edge."""


class VolumeError(ValueError):
    """A volume that cannot be used: one line with the file or case, what was expected, what was found, what to do."""

    is_input_error = True


@dataclass(frozen=True, eq=False)
class Geometry:
    """A volume without its voxels.

    `shape` is (I, J, K) or, with several frames, (I, J, K, T); `affine` maps voxel index to world mm (4×4 float64,
    RAS+); `dtype` is what `read_volume` will give; `kind` is "nifti", "nrrd", "metaimage" or "dicom".
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype
    kind: str

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The edge lengths of a voxel along i, j and k in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True, eq=False)
class OpenVolume:
    """A volume whose header was read and checked; `read()` fetches the voxels in the geometry's shape and dtype."""

    geometry: Geometry
    modality: str | None
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class AxisChange:
    """How a volume's axes are permuted, then flipped, to lie along another volume's axes."""

    order: tuple[int, int, int]
    flipped: tuple[int, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return a view of an (I, J, K) array with the new axes."""
        return np.flip(array.transpose(self.order), self.flipped)


def check_shape(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Return the shape as (I, J, K) or (I, J, K, T), trailing axes of one voxel dropped; refuse what is no volume."""
    shape = tuple(int(n) for n in shape)
    if len(shape) < 3 or min(shape) < 1:
        raise VolumeError(f"{name}: expected three axes of at least one voxel, found shape {shape}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise VolumeError(f"{name}: expected a 3-D volume, found shape {shape}; export one volume a file")
    n_voxels = int(np.prod([float(n) for n in shape]))  # as floats: a hostile header overflows an int64 product
    if n_voxels > MAX_VOXELS:
        raise VolumeError(
            f"{name}: the header claims {n_voxels:.3g} voxels {shape}, expected at most {MAX_VOXELS:.3g}; it is damaged"
        )
    return shape


def check_affine(affine: np.ndarray, name: str) -> np.ndarray:
    """Return the affine as 4×4 float64; refuse one that is not finite or does not span three dimensions."""
    affine = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise VolumeError(f"{name}: expected a finite affine, found {_rows(affine)}; repair the header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # The determinant of the unit axes is the volume of the cell they span: 1 when orthogonal, 0 when flat.
    if lengths.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise VolumeError(f"{name}: the affine is singular, {_rows(affine)}; repair the header")
    return affine


def _rows(affine: np.ndarray) -> str:
    return str([[float(f"{value:.5g}") for value in row] for row in affine[:3]])


def check_data_size(n_bytes: int, available: int, *, compressed: bool, name: str) -> None:
    """Refuse a header that claims more bytes (with itself) than its file can hold, before anything is allocated."""
    # Deflate cannot pack more than 1032 to 1 (zlib technical notes), so a higher claim cannot be true.
    possible = available * 1032 if compressed else available
    if n_bytes > possible:
        held = f"{available} bytes of gzip" if compressed else f"{available} bytes"
        raise VolumeError(
            f"{name}: the header claims {n_bytes} bytes, the file holds {held}; it is truncated or damaged"
        )
    if compressed and n_bytes > BOMB_BYTES and n_bytes > BOMB_RATIO * available:
        raise VolumeError(
            f"{name}: {available} bytes of gzip would become {n_bytes} bytes, expected at most {BOMB_RATIO} to 1 above "
            f"{BOMB_BYTES >> 30} GiB; save it with a smaller number type, or leave it out"
        )


def check_memory(n_bytes: int, name: str) -> None:
    """Refuse a volume that this machine cannot hold: the kernel would end the whole process, or others."""
    free = psutil.virtual_memory().available
    if n_bytes > free:
        raise VolumeError(
            f"{name}: its voxels take {n_bytes / 1e9:.3g} GB, this machine has {free / 1e9:.3g} GB of memory free; "
            "crop the volume, or end other programs"
        )


def axes_onto(source: Geometry, target: Geometry) -> AxisChange | None:
    """Return the permutation and flips that bring `source` onto the voxel grid of `target`; None if there are none.

    Grids agree when the shapes are equal and all eight corners are within `GRID_TOLERANCE_VOXELS` of each other.
    """
    change, moved = _changed(source, target)
    same_shape = change is not None and tuple(source.shape[a] for a in change.order) == target.shape[:3]
    if not same_shape or corner_distance_mm(moved, target) > GRID_TOLERANCE_VOXELS * min(target.spacing_mm):
        return None
    return change


def _changed(source: Geometry, target: Geometry) -> tuple[AxisChange | None, Geometry]:
    relative = np.linalg.solve(target.affine[:3, :3], source.affine[:3, :3])
    signs = np.rint(relative).astype(int)
    if not (np.abs(signs).sum(0) == 1).all() or not (np.abs(signs).sum(1) == 1).all():
        return None, source
    order = np.abs(signs).argmax(axis=1)
    flipped = tuple(axis for axis in range(3) if signs[axis, order[axis]] < 0)
    back = np.zeros((4, 4))  # index after the change -> index before it
    back[3, 3] = 1
    for axis, before in enumerate(order):
        back[before, axis] = -1 if axis in flipped else 1
        back[before, 3] = source.shape[before] - 1 if axis in flipped else 0
    shape = tuple(source.shape[axis] for axis in order)
    change = AxisChange((int(order[0]), int(order[1]), int(order[2])), flipped)
    return change, Geometry(shape, source.affine @ back, source.dtype, source.kind)


def corner_distance_mm(first: Geometry, second: Geometry) -> float:
    """Return the largest distance in mm between corresponding corner voxels of two grids, index by index."""
    corners = [np.array([*corner, 1.0]) for corner in itertools.product(*((0, n - 1) for n in second.shape[:3]))]
    return max(float(np.linalg.norm((first.affine - second.affine) @ corner)) for corner in corners)


def describe_mismatch(source: Geometry, target: Geometry) -> str:
    """Say in words how two grids differ: shapes, spacings, and mm at the furthest corner after any flips."""
    _, moved = _changed(source, target)
    edges = tuple(tuple(round(s, 4) for s in g.spacing_mm) for g in (moved, target))
    return (
        f"shape {moved.shape[:3]} against {target.shape[:3]}, spacing {edges[0]} against {edges[1]} mm, "
        f"{corner_distance_mm(moved, target):.3g} mm apart at the furthest corner "
        f"(tolerance {GRID_TOLERANCE_VOXELS * min(target.spacing_mm):.3g} mm)"
    )
