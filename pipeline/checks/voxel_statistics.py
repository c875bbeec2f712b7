"""Measure the voxels of a case: intensities, content, class sizes, centroids and thickness. Opens no file.

Arrays are (I, J, K); affines map voxel indices to world mm, RAS+.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt32
from nibabel.orientations import apply_orientation, io_orientation

from pipeline.checks.histogram import Histogram
from transforms.io.grid import Affine, along_world_axes, slowest_first, voxel_edges_mm, voxel_ml
from transforms.io.load import Volume

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
"""Percentiles of intensities that are kept of every image."""

CLASS_PERCENTILES = (5.0, 50.0, 95.0)
"""Percentiles of the intensities inside every class."""

SAMPLE = 2**20
"""Voxels that percentiles are taken from; random, so that no axis aliases with a step."""

LABELLED_SAMPLE = 2**22
"""Labelled voxels, nearly, that histogram and percentiles of classes are taken from at most."""

_TURNS = (0.8191725134, 0.6710436067, 0.5497004779)  # of i, j, k: Roberts' R3 sequence, which fills a volume evenly
_THICKEST = 0.95  # quantile of the voxels by the product of their runs
_LARGE = 2**16  # voxels of a class whose thickness is not measured: it is as thick as its bounding box


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """One image channel. Intensities are those of its finite voxels; NaN where there are none."""

    path: Path
    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    orientation: str
    """Where the voxel axes run, as "RAS" or "LPS"."""
    shear_degrees: float
    dtype: str
    kind: str
    modality: str | None
    """"CT", "MR" or None where the format does not say."""
    minimum: float
    maximum: float
    intensities: tuple[float, ...]
    """Values at `PERCENTILES`, of all voxels."""
    foreground: tuple[float, ...]
    """Values at `PERCENTILES`, of the voxels that are not 0 (all voxels where every one is 0)."""
    is_two_valued: bool
    """Whether there are no values but the lowest and the highest: a mask."""
    n_not_finite: int
    """Voxels that are NaN, infinite, or beyond the range of float32, in which networks compute."""
    n_nan: int
    """Of these, NaN."""
    content: str
    """SHA-256 of the values along RAS axes: equal for equal voxels, whatever the file format, dtype or axis order."""
    labelled: Histogram | None = None
    """The voxels of any class but the background; None without a usable label, or where it is empty."""
    by_class: tuple[tuple[float, ...], ...] = ()
    """Of each class the values at `CLASS_PERCENTILES`, NaN for the background and absent classes; or empty."""
    shows_label: bool = False
    """Whether it has one value in each class, and not the same in all: it was drawn from the label."""

    @property
    def world_size(self) -> tuple[int, int, int]:
        """Voxels along left-right, back-front and foot-head."""
        x, y, z = along_world_axes(self.shape[:3], self.orientation)
        return int(x), int(y), int(z)

    @property
    def world_spacing_mm(self) -> tuple[float, float, float]:
        """Voxel sizes along left-right, back-front and foot-head."""
        return along_world_axes(self.spacing_mm, self.orientation)

    @property
    def is_constant(self) -> bool:
        """Whether all finite voxels are alike (or none is finite)."""
        return not self.minimum < self.maximum


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """A label whose values are all known. Background and absent classes have NaN where a class is measured."""

    class_voxels: Int[np.ndarray, " n_classes"]
    centroids_mm: Float[np.ndarray, "n_classes 3"]
    """World mm, RAS+."""
    thickness_mm: Float[np.ndarray, "n_classes 3"]
    """Extent of the class along left-right, back-front and foot-head where it is thickest, see `thickness_voxels`."""
    voxel_ml: float
    """Volume of one voxel."""
    orientation: str = ""
    """Where the voxel axes of the label's own file run, as "RAS"."""
    overlaps: tuple[tuple[int, int, int], ...] = ()
    """Overlapping masks: (class that lost voxels, class that has them now, voxels)."""


def measure_image(
    volume: Volume, path: Path, label: Shaped[np.ndarray, "i j k"] | None = None, n_classes: int = 0
) -> ImageStatistics:
    """Measure a 3-D image; `label`, on its grid, holds the class indices of its voxels (others are ignored)."""
    array = volume.array
    values = array
    usable: Bool[np.ndarray, "i j k"] | None = None
    minimum, maximum = _range(array)
    if not max(-minimum, maximum) <= float(np.finfo(np.float32).max):  # NaN is not
        with np.errstate(invalid="ignore"):
            usable = np.abs(array) <= np.finfo(np.float32).max
        in_memory = slowest_first(array.strides)  # half the time of a whole measurement in a scan as read from a file
        values = array.transpose(in_memory)[usable.transpose(in_memory)]
        minimum, maximum = _range(values)
    labelled: Histogram | None = None
    by_class: tuple[tuple[float, ...], ...] = ()
    if label is not None:
        labelled, by_class = _of_labelled(*_some_labelled(array, label, n_classes, usable), n_classes)
    shows_label = label is not None and _shows_label(array, label)
    geometry = volume.geometry
    sample = _sample(values)
    return ImageStatistics(
        path=path,
        shape=array.shape,
        spacing_mm=geometry.spacing_mm,
        orientation=geometry.orientation,
        shear_degrees=geometry.shear_degrees,
        dtype=str(array.dtype),
        kind=geometry.kind,
        modality=geometry.modality,
        minimum=minimum,
        maximum=maximum,
        intensities=_percentiles(sample, PERCENTILES),
        foreground=_percentiles(sample[sample != 0] if (sample != 0).any() else sample, PERCENTILES),
        # The sample tells most scans at once; where it holds two values, a third may be in few voxels.
        is_two_valued=minimum < maximum and all(_has_only(part, minimum, maximum) for part in (sample, values)),
        n_not_finite=array.size - values.size,
        n_nan=0 if usable is None else int(np.count_nonzero(np.isnan(array))),
        content=_content(volume),
        labelled=labelled,
        by_class=by_class,
        shows_label=shows_label,
    )


def _percentiles(values: np.ndarray, percent: Sequence[float]) -> tuple[float, ...]:
    if not values.size:
        return (np.nan,) * len(percent)
    return tuple(np.percentile(values.astype(np.float64, copy=False), percent).tolist())


def _range(values: np.ndarray) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)


def _has_only(values: np.ndarray, low: float, high: float) -> bool:
    return bool(((values == low) | (values == high)).all())


def _sample(array: np.ndarray) -> np.ndarray:
    flat = array.ravel(order="K")
    return flat if flat.size <= SAMPLE else flat[np.random.default_rng(0).integers(0, flat.size, SAMPLE)]


def _some_labelled(
    array: Shaped[np.ndarray, "i j k"],
    label: Shaped[np.ndarray, "i j k"],
    n_classes: int,
    usable: Bool[np.ndarray, "i j k"] | None,
) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " n"]]:
    """Values and classes of the usable voxels of any class but the background, in no particular order.

    Where they are many, those of evenly spread places, which do not depend on how the voxels lie in memory.
    """
    order = slowest_first(label.strides)
    array, label = array.transpose(order), label.transpose(order)
    usable = None if usable is None else usable.transpose(order)

    def inside(index: int) -> Bool[np.ndarray, "rows columns"]:
        found = (label[index] > 0) & (label[index] < n_classes)
        return found if usable is None else found & usable[index]

    n_inside = sum(int(np.count_nonzero(inside(index))) for index in range(len(label)))
    share = LABELLED_SAMPLE / max(1, n_inside)
    turns = [_fractions(size, _TURNS[axis]) for size, axis in zip(label.shape, order, strict=True)]
    of_slice = turns[1][:, None] + turns[2]
    values, classes = [], []
    for index, turn in enumerate(turns[0]):
        taken = inside(index)
        if share < 1:
            taken &= of_slice + turn < np.uint32(share * 2**32)
        values.append(array[index][taken])
        classes.append(label[index][taken])
    return np.concatenate(values), np.concatenate(classes)


def _fractions(size: int, turn: float) -> UInt32[np.ndarray, " size"]:
    """The fractions of the first multiples of `turn`, in units of 2⁻³²: a sum of them wraps as fractions do."""
    return (np.arange(size) * round(turn * 2**32)).astype(np.uint32)


def _of_labelled(
    values: Shaped[np.ndarray, " n"], classes: Shaped[np.ndarray, " n"], n_classes: int
) -> tuple[Histogram | None, tuple[tuple[float, ...], ...]]:
    """Return the histogram of all these voxels together, and percentiles of each class."""
    order = np.argsort(classes, kind="stable")
    ends = np.cumsum(np.bincount(classes, minlength=n_classes))
    of_each = np.split(values[order], ends[:-1])
    by_class = tuple(_percentiles(of_class, CLASS_PERCENTILES) for of_class in of_each)
    return Histogram.of(values) if values.size else None, by_class


def _shows_label(image: Shaped[np.ndarray, "i j k"], label: Shaped[np.ndarray, "i j k"]) -> bool:
    """Say whether all voxels of a class have one value, and not all classes the same."""
    slices = range(image.shape[2])
    value_of: dict[int, float] = {}
    for k in (*slices[:: max(1, len(slices) // 8)], *slices):  # a few tell mostly
        classes, first = np.unique(label[:, :, k], return_index=True)
        values = image[:, :, k].ravel()[first]
        if any(value_of.setdefault(c, v) != v for c, v in zip(classes.tolist(), values.tolist(), strict=True)):
            return False
        if not (values[np.searchsorted(classes, label[:, :, k])] == image[:, :, k]).all():
            return False
    return len(set(value_of.values())) > 1


def _content(volume: Volume) -> str:
    """Hash the values as float32 in RAS axis order, slice by slice."""
    array = apply_orientation(volume.array, io_orientation(volume.affine))
    digest = hashlib.sha256(repr(array.shape).encode())
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and a finding of its own
        for k in range(array.shape[2]):
            digest.update(np.ascontiguousarray(array[:, :, k].T, dtype=np.float32).data)
    return digest.hexdigest()


def measure_label(
    label: Int[np.ndarray, "i j k"],
    affine: Affine,
    n_classes: int,
    *,
    orientation: str = "",
    overlaps: Sequence[tuple[int, int, int]] = (),
) -> LabelStatistics:
    """Measure a map of class indices; indices of `n_classes` and more (ignored voxels) are in no class.

    Args:
        label: class indices.
        affine: of the map.
        n_classes: background included.
        orientation: of the label's own file, whose axes may have been changed since.
        overlaps: see `LabelStatistics.overlaps`.
    """
    profiles = _profiles(label, n_classes)
    class_voxels = profiles[0].sum(axis=1)
    class_voxels[0] = label.size - np.count_nonzero(label)
    sums = np.stack([profile @ np.arange(profile.shape[1]) for profile in profiles], axis=1)
    sizes = np.where(class_voxels > 0, class_voxels, np.nan)
    sizes[0] = np.nan  # the background's centroid is not needed
    return LabelStatistics(
        class_voxels=class_voxels,
        centroids_mm=(sums / sizes[:, None]) @ affine[:3, :3].T + affine[:3, 3],
        thickness_mm=_thickness_mm(label, affine, profiles),
        voxel_ml=voxel_ml(affine),
        orientation=orientation,
        overlaps=tuple(overlaps),
    )


def _profiles(label: Int[np.ndarray, "i j k"], n_classes: int) -> list[Int[np.ndarray, "n_classes size"]]:
    """Count for each axis the voxels of each class but the background by their index along it."""
    profiles = [np.zeros((n_classes, size), np.int64) for size in label.shape]
    slow, *others = slowest_first(label.strides)
    in_slice = np.indices([label.shape[axis] for axis in others]).reshape(2, -1)
    for index, of_slice in enumerate(label.transpose(slow, *others)):
        voxels = of_slice.ravel()
        at = np.flatnonzero((voxels > 0) & (voxels < n_classes))
        classes = voxels[at].astype(np.int64)
        profiles[slow][:, index] = np.bincount(classes, minlength=n_classes)
        for axis, place in zip(others, in_slice, strict=True):
            cells = classes * label.shape[axis] + place[at]
            profiles[axis] += np.bincount(cells, minlength=profiles[axis].size).reshape(profiles[axis].shape)
    return profiles


def _thickness_mm(
    label: Int[np.ndarray, "i j k"], affine: Affine, profiles: Sequence[Int[np.ndarray, "n_classes size"]]
) -> Float[np.ndarray, "n_classes 3"]:
    thickness = np.full((len(profiles[0]), 3), np.nan)
    spacing = voxel_edges_mm(affine)
    world_axis = io_orientation(affine)[:, 0].astype(int)
    for index in np.flatnonzero(profiles[0].any(axis=1)):
        ends = [np.flatnonzero(profile[index])[[0, -1]] for profile in profiles]
        if profiles[0][index].sum() > _LARGE:
            voxels = np.array([last - first + 1 for first, last in ends])
        else:
            box = tuple(slice(first, last + 1) for first, last in ends)
            voxels = thickness_voxels(label[box] == index)
        thickness[index, world_axis] = voxels * spacing
    return thickness


def thickness_voxels(inside: Bool[np.ndarray, "i j k"]) -> Int[np.ndarray, " 3"]:
    """Return how many voxels a structure extends along each axis where it is thickest.

    Through each of its voxels go three straight runs of voxels, one an axis; those count whose product only a
    twentieth of the voxels exceeds. (Where branches cross, a few voxels have long runs of several branches.)

    Example:
        >>> vessel = np.zeros((8, 8, 8), bool)
        >>> vessel[3:5, 3:5, :] = True
        >>> thickness_voxels(vessel).tolist()
        [2, 2, 8]
    """
    voxels = np.argwhere(inside)
    runs = np.stack([_run_lengths(voxels, axis) for axis in range(3)], axis=1)
    order = np.argsort(runs.prod(axis=1), kind="stable")
    return runs[order[int(_THICKEST * (len(order) - 1))]]


def _run_lengths(voxels: Int[np.ndarray, "n 3"], axis: int) -> Int[np.ndarray, " n"]:
    """Return for each voxel how many others follow each other along the axis, itself included."""
    axes = [*(other for other in range(3) if other != axis), axis]
    # One number a voxel, a step along the axis being 1, with a gap between one line of voxels and the next.
    number = np.ravel_multi_index(tuple(voxels[:, axes].T), tuple(voxels[:, axes].max(0) + 2))
    order = np.argsort(number)
    ends = np.append(np.flatnonzero(np.diff(number[order]) != 1) + 1, len(voxels))
    lengths = np.diff(ends, prepend=0)
    runs = np.empty(len(voxels), np.int64)
    runs[order] = np.repeat(lengths, lengths)
    return runs
