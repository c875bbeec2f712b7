"""Voxel grids: which are possible, and when two are the same. Opens no file.

World coordinates are millimetres in RAS+; voxel (0, 0, 0)'s *centre* is the affine's translation column.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psutil
from jaxtyping import Float64, Shaped
from nibabel.orientations import aff2axcodes, inv_ornt_aff

from transforms.io.errors import VolumeError
from transforms.io.limits import MAX_VOXELS

Affine = Float64[np.ndarray, "4 4"]
"""Voxel index (i, j, k, 1) -> world mm (x, y, z, 1), RAS+."""

PerAxis = tuple[float, float, float]
"""One number along each of three axes, of voxels or of the world."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM and ITK count x to the patient's left and y to the back; the matrix is its own inverse."""

_WORLD_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
"""Letter of an orientation code -> world axis: left-right, back-front, foot-head."""

BOMB_BYTES = 4 * 2**30
BOMB_RATIO = 500
"""More bytes than this out of gzip, packed more tightly than this to one, are no scan and no label map: a CT packs 2 to
1, a label map 100 to 1, and the emptiest mask is smaller than that unless its numbers are needlessly wide."""

GRID_TOLERANCE_VOXELS = 0.1
"""Two grids are the same when no corner lies further apart than this share of the smallest voxel edge."""


SHEAR_TOLERANCE = 1e-3
"""Cosine between two voxel axes (0.06 degrees off a right angle) from which a grid counts as sheared: header precision
leaves about 1e-6, and distances that take a voxel for a box are up to there less than 0.1 % wrong."""

MAX_SHEAR_DEGREES = float(np.degrees(np.arcsin(SHEAR_TOLERANCE)))
"""The same in degrees off a right angle."""

SHEAR_IN_ITK = (
    "ITK (SimpleITK, 3D Slicer) places NIfTI segmentations of it by its qform, which holds no shear, and refuses them "
    "where it has none; .seg.nrrd keeps the shear"
)
"""What becomes of the results of a sheared scan, as ITK 5.4 reads them."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A volume without its voxels."""

    shape: tuple[int, ...]
    """(I, J, K) or, with several frames, (I, J, K, T)."""
    affine: Affine
    dtype: np.dtype
    """The type that `read_volume` gives."""
    kind: str
    """"nifti", "nrrd", "metaimage" or "dicom"."""
    modality: str | None = None
    """"CT" or "MR"; None where the format does not say."""
    form_gap_mm: float = 0.0
    """Distance of the far corner by sform and by qform (NIfTI); 0 where there is only one of them."""

    @property
    def n_frames(self) -> int:
        """Volumes in the file."""
        return self.shape[3] if len(self.shape) > 3 else 1

    @property
    def of_frame(self) -> Geometry:
        """That of one frame."""
        return replace(self, shape=self.shape[:3])

    @property
    def spacing_mm(self) -> PerAxis:
        """The edge lengths of a voxel along i, j and k in mm."""
        return voxel_edges_mm(self.affine)

    @property
    def shear_degrees(self) -> float:
        """How far the voxel axes are from standing at right angles; 0 for a box."""
        return shear_degrees(self.affine)

    @property
    def orientation(self) -> str:
        """Where the voxel axes run, as "RAS"."""
        return orientation(self.affine)


@dataclass(frozen=True, eq=False)
class OpenVolume:
    """A volume whose header was read and checked."""

    geometry: Geometry
    read: Callable[[], np.ndarray]
    """Fetches the voxels, in the geometry's shape and dtype."""


@dataclass(frozen=True)
class AxisChange:
    """How a volume's axes are permuted, then flipped, to lie along another volume's axes."""

    order: tuple[int, int, int]
    flipped: tuple[int, ...]
    padding: tuple[tuple[int, int], ...] = ()
    """Voxels of 0 put before and behind each new axis, where the volume is a part of the other; else empty."""

    def apply(self, array: Shaped[np.ndarray, "_ _ _"]) -> Shaped[np.ndarray, "_ _ _"]:
        """Return an (I, J, K) array with the new axes: a view, or a copy with its padding."""
        turned = array.transpose(self.order)
        # An axis of one voxel has no direction; flipped, its negative stride would stay in a contiguous copy.
        turned = np.flip(turned, tuple(axis for axis in self.flipped if turned.shape[axis] > 1))
        return np.pad(turned, self.padding) if self.padding else turned

    def undo(self, array: Shaped[np.ndarray, "_ _ _"]) -> Shaped[np.ndarray, "_ _ _"]:
        """Return a view of an (I, J, K) array that has the new axes, along the old ones."""
        return np.flip(array, self.flipped).transpose(np.argsort(self.order))


def check_shape(shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Return the shape as (I, J, K) or (I, J, K, T), trailing axes of one voxel dropped.

    Raises:
        VolumeError: fewer than three axes, more than four, an empty one, or more than `MAX_VOXELS` voxels.
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) < 3 or min(shape) < 1:
        expected, remedy = "three axes of at least one voxel", "export one 3-D volume a file"
        raise VolumeError("not_3d", where, expected, f"shape {shape}", remedy)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise VolumeError("not_3d", where, "a 3-D volume", f"shape {shape}", "export one volume a file")
    n_voxels = int(np.prod([float(n) for n in shape]))  # as floats: a hostile header overflows an int64 product
    if n_voxels > MAX_VOXELS:
        expected, found = f"at most {MAX_VOXELS:.3g} voxels", f"a header that claims {n_voxels:.3g} voxels {shape}"
        raise VolumeError("unreadable", where, expected, found, "copy it again; the header is damaged")
    return shape


def check_affine(affine: Shaped[np.ndarray, "4 4"], where: str) -> Affine:
    """Return the affine as float64.

    Raises:
        VolumeError: it is not finite, or its axes do not span three dimensions.
    """
    affine = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise VolumeError("bad_affine", where, "a finite affine", _rows(affine), "repair the header")
    lengths = np.array(voxel_edges_mm(affine))
    # The determinant of the unit axes is the volume of the cell they span: 1 when orthogonal, 0 when flat.
    if lengths.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        expected = "an affine that spans three dimensions"
        raise VolumeError("bad_affine", where, expected, f"a singular one, {_rows(affine)}", "repair the header")
    return affine


def _rows(affine: np.ndarray) -> str:
    return str([[float(f"{value:.5g}") for value in row] for row in affine[:3]])


def check_data_size(n_bytes: int, available: int, *, compressed: bool, where: str) -> None:
    """Check, before anything is allocated, that a file of `available` bytes can hold what its header claims.

    Raises:
        VolumeError: it cannot, or it is packed more tightly than any scan (`BOMB_RATIO`).
    """
    # Deflate cannot pack more than 1032 to 1 (zlib technical notes), so a higher claim cannot be true.
    possible = available * 1032 if compressed else available
    held = f"{available} bytes of gzip" if compressed else f"{available} bytes"
    if n_bytes > possible:
        expected, remedy = f"{n_bytes} bytes, as the header claims", "copy it again; it is truncated or damaged"
        raise VolumeError("unreadable", where, expected, held, remedy)
    if compressed and n_bytes > BOMB_BYTES and n_bytes > BOMB_RATIO * available:
        expected = f"at most {BOMB_RATIO} to 1 out of gzip above {BOMB_BYTES >> 30} GiB"
        remedy = "save it with a smaller number type, or leave it out"
        raise VolumeError("unreadable", where, expected, f"{held} that would become {n_bytes} bytes", remedy)


def check_memory(n_bytes: int, where: str) -> None:
    """Check that this machine can hold a volume: the kernel would end the whole process, or others.

    Raises:
        VolumeError: less memory is free.
    """
    free = psutil.virtual_memory().available
    if n_bytes > free:
        expected, found = f"{n_bytes / 1e9:.3g} GB of memory for its voxels", f"{free / 1e9:.3g} GB free"
        raise VolumeError("too_large", where, expected, found, "crop the volume, or end other programs")


def voxel_edges_mm(affine: Affine) -> PerAxis:
    """Return the edge lengths of a voxel along i, j and k in mm.

    >>> voxel_edges_mm(np.diag([-0.5, 0.5, 3.0, 1.0]))
    (0.5, 0.5, 3.0)
    """
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return i, j, k


def voxel_ml(affine: Affine) -> float:
    """Return the volume of a voxel in ml.

    >>> round(voxel_ml(np.diag([10.0, 10.0, 20.0, 1.0])), 6)
    2.0
    """
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def skew(affine: Affine) -> float:
    """Return the greatest cosine between two voxel axes: 0 where all stand at right angles, 1 where two coincide."""
    axes = affine[:3, :3] / voxel_edges_mm(affine)
    return float(np.abs((axes.T @ axes)[np.triu_indices(3, 1)]).max().clip(max=1))


def shear_degrees(affine: Affine) -> float:
    """Return how far the voxel axes are from standing at right angles; 0 for a box."""
    return float(np.degrees(np.arcsin(skew(affine))))


def orientation(affine: Affine) -> str:
    """Return where the voxel axes run, as "RAS".

    >>> orientation(LPS_TO_RAS)
    'LPS'
    """
    return "".join(aff2axcodes(affine))


def slowest_first(strides: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of a volume in memory, the slowest first: files are read with I the fastest.

    Along the first of them slices are read one after the other, and a product along the axes as they lie spares a
    transposed copy of the volume.

    >>> slowest_first(np.zeros((4, 5, 6), order="F").strides)
    (2, 1, 0)
    """
    return tuple(sorted(range(len(strides)), key=lambda axis: -abs(strides[axis])))


def along_world_axes(values: Sequence[float], orientation: str) -> PerAxis:
    """Order three values along voxel axes i, j, k by the world axes that those run along.

    The result is left-right, back-front, foot-head; `orientation` says where the voxel axes run, as "RAS" or "LPS".

    >>> along_world_axes((0.8, 0.9, 5.0), "PSR")
    (5.0, 0.8, 0.9)
    """
    ordered = [0.0, 0.0, 0.0]
    for value, letter in zip(values, orientation, strict=True):
        ordered[_WORLD_AXIS[letter]] = float(value)
    return ordered[0], ordered[1], ordered[2]


def onto_grid(source: Geometry, target: Geometry, *, where: object, role: str) -> AxisChange:
    """Return how the axes of a case's file (its `role`: "label", "mask", "channel") lie along its image's.

    A label or mask may be cropped to a part of the image (as 3D Slicer stores segmentations): it is padded.

    Raises:
        VolumeError: it lies on another grid.
    """
    change = axes_onto(source, target)
    if change is None and role != "channel":
        change = part_of(source, target)
    if change is None:
        tolerance = (
            f"{GRID_TOLERANCE_VOXELS * min(target.spacing_mm):.3g} mm, {GRID_TOLERANCE_VOXELS:g} of a voxel edge"
        )
        expected = f"the {role} on its image's voxel grid (every corner within {tolerance})"
        remedy = "resample it onto the image's grid, or drop the case"
        raise VolumeError("grid_mismatch", where, expected, describe_mismatch(source, target), remedy)
    return change


def axes_onto(source: Geometry, target: Geometry) -> AxisChange | None:
    """Return the permutation and flips that bring `source` onto the voxel grid of `target`; None if there are none.

    Grids agree when the shapes are equal and all eight corners are within `GRID_TOLERANCE_VOXELS` of each other.
    """
    change, moved = _changed(source, target)
    same_shape = change is not None and tuple(source.shape[a] for a in change.order) == target.shape[:3]
    if not same_shape or corner_distance_mm(moved, target) > GRID_TOLERANCE_VOXELS * min(target.spacing_mm):
        return None
    return change


def part_of(source: Geometry, target: Geometry) -> AxisChange | None:
    """Return the change of axes and the padding that bring a part of `target`'s voxels onto all of them.

    None where `source` is not such a part: its voxels lie between the target's (beyond `GRID_TOLERANCE_VOXELS`), or
    some of them outside.
    """
    change, moved = _changed(source, target)
    if change is None:
        return None
    first = np.rint(np.linalg.solve(target.affine, moved.affine[:, 3])[:3]).astype(int)
    behind = np.array(target.shape[:3]) - first - np.array(moved.shape[:3])
    placed = target.affine.copy()
    placed[:3, 3] += target.affine[:3, :3] @ first
    distance = corner_distance_mm(moved, Geometry(moved.shape, placed, moved.dtype, moved.kind))
    if min(*first, *behind) < 0 or distance > GRID_TOLERANCE_VOXELS * min(target.spacing_mm):
        return None
    padding = tuple((int(before), int(after)) for before, after in zip(first, behind, strict=True))
    return AxisChange(change.order, change.flipped, padding)


def _changed(source: Geometry, target: Geometry) -> tuple[AxisChange | None, Geometry]:
    relative = np.linalg.solve(target.affine[:3, :3], source.affine[:3, :3])
    signs = np.rint(relative).astype(int)
    if not (np.abs(signs).sum(0) == 1).all() or not (np.abs(signs).sum(1) == 1).all():
        return None, source
    order = np.abs(signs).argmax(axis=1)
    flipped = tuple(axis for axis in range(3) if signs[axis, order[axis]] < 0)
    turn = np.stack([np.abs(signs).argmax(axis=0), signs.sum(axis=0)], axis=1)  # of each source axis, as nibabel has it
    back = inv_ornt_aff(turn, source.shape[:3])  # index after the change -> index before it
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
