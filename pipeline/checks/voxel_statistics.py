"""Measure the voxels of a case: intensities, content, class sizes, centroids and thickness. Opens no file.

Arrays are (I, J, K); affines map voxel indices to world mm, RAS+.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from nibabel.orientations import io_orientation
from scipy import ndimage

from pipeline.checks.histogram import Histogram
from transforms.io.grid import Affine, along_world_axes, voxel_edges_mm, voxel_ml
from transforms.io.load import Volume

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
"""Percentiles of intensities that are kept of every image."""

CLASS_PERCENTILES = (5.0, 50.0, 95.0)
"""Percentiles of the intensities inside every class."""

SAMPLE = 2**20
"""Voxels that percentiles are taken from; random, so that no axis aliases with a step."""

_LABELLED_SAMPLE = 2**22  # labelled voxels that histogram and percentiles of classes are taken from
_SLAB = 16  # slices that are copied at once
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
    n_bad = 0
    values = array
    usable: Bool[np.ndarray, "i j k"] | None = None
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            usable = np.abs(array) <= np.finfo(np.float32).max  # NaN is not
        n_bad = int(array.size - np.count_nonzero(usable))
        if n_bad:
            values = array[usable]
    labelled: Histogram | None = None
    by_class: tuple[tuple[float, ...], ...] = ()
    if label is not None:
        inside = (label > 0) & (label < n_classes)
        if usable is not None:
            inside &= usable
        at = _some_places(inside)
        labelled, by_class = _of_labelled(array[at], label[at], n_classes)
    shows_label = label is not None and _shows_label(array, label)
    geometry = volume.geometry
    sample = _sample(values)
    minimum, maximum = (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)
    return ImageStatistics(
        path=path,
        shape=array.shape,
        spacing_mm=geometry.spacing_mm,
        orientation=geometry.orientation,
        shear_degrees=geometry.shear_degrees,
        dtype=str(array.dtype),
        kind=volume.kind,
        modality=volume.modality,
        minimum=minimum,
        maximum=maximum,
        intensities=_percentiles(sample, PERCENTILES),
        foreground=_percentiles(sample[sample != 0] if (sample != 0).any() else sample, PERCENTILES),
        # The sample tells most scans at once; where it holds two values, a third may be in few voxels.
        is_two_valued=minimum < maximum and all(_has_only(part, minimum, maximum) for part in (sample, values)),
        n_not_finite=n_bad,
        n_nan=int(np.count_nonzero(np.isnan(array))) if n_bad else 0,
        content=_content(volume),
        labelled=labelled,
        by_class=by_class,
        shows_label=shows_label,
    )


def _percentiles(values: np.ndarray, percent: Sequence[float]) -> tuple[float, ...]:
    if not values.size:
        return (np.nan,) * len(percent)
    return tuple(np.percentile(values.astype(np.float64, copy=False), percent).tolist())


def _has_only(values: np.ndarray, low: float, high: float) -> bool:
    return bool(((values == low) | (values == high)).all())


def _sample(array: np.ndarray) -> np.ndarray:
    flat = array.ravel(order="K")
    return flat if flat.size <= SAMPLE else flat[np.random.default_rng(0).integers(0, flat.size, SAMPLE)]


def _some_places(inside: Bool[np.ndarray, "i j k"]) -> tuple[Int[np.ndarray, " n"], ...]:
    """Indices i, j, k of the voxels inside, k the fastest; where they are many, of a random choice."""
    in_order = np.empty(inside.shape, bool)
    for k in range(0, inside.shape[2], _SLAB):  # the other way round in memory: at once it takes five times as long
        in_order[:, :, k : k + _SLAB] = inside[:, :, k : k + _SLAB]
    places = np.flatnonzero(in_order)
    if places.size > _LABELLED_SAMPLE:
        places = places[np.random.default_rng(0).integers(0, places.size, _LABELLED_SAMPLE)]
    return np.unravel_index(places, inside.shape)


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
    order, signs = io_orientation(volume.affine).T
    flipped = np.flip(volume.array, tuple(np.flatnonzero(signs < 0)))
    array = flipped.transpose(np.argsort(order))
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
    class_voxels = np.zeros(n_classes, np.int64)
    sums = np.zeros((n_classes, 3))
    for k in range(label.shape[2]):
        of_slice = label[:, :, k]
        class_voxels += np.bincount(of_slice.ravel(), minlength=n_classes)[:n_classes]
        i, j = np.nonzero((of_slice > 0) & (of_slice < n_classes))  # the background's centroid is not needed
        classes = of_slice[i, j]
        for axis, index in enumerate((i, j, np.full(len(classes), k))):
            sums[:, axis] += np.bincount(classes, weights=index, minlength=n_classes)
    sizes = np.where(class_voxels > 0, class_voxels, np.nan)
    sizes[0] = np.nan
    return LabelStatistics(
        class_voxels=class_voxels,
        centroids_mm=(sums / sizes[:, None]) @ affine[:3, :3].T + affine[:3, 3],
        thickness_mm=_thickness_mm(label, affine, class_voxels),
        voxel_ml=voxel_ml(affine),
        orientation=orientation,
        overlaps=tuple(overlaps),
    )


def _thickness_mm(
    label: Int[np.ndarray, "i j k"], affine: Affine, class_voxels: Int[np.ndarray, " n_classes"]
) -> Float[np.ndarray, "n_classes 3"]:
    thickness = np.full((len(class_voxels), 3), np.nan)
    spacing = voxel_edges_mm(affine)
    world_axis = io_orientation(affine)[:, 0].astype(int)
    in_memory = np.argsort(label.strides)[::-1].tolist()  # the slowest axis first: the search is three times as fast
    found = ndimage.find_objects(label.transpose(in_memory), len(class_voxels) - 1)
    for index, turned in enumerate(found, start=1):
        if turned is None:
            continue
        box = tuple(turned[position] for position in np.argsort(in_memory))
        if class_voxels[index] > _LARGE:
            voxels = np.array([part.stop - part.start for part in box])
        else:
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
    across = [other for other in range(3) if other != axis]
    order = np.lexsort((voxels[:, axis], voxels[:, across[0]], voxels[:, across[1]]))
    steps = np.diff(voxels[order], axis=0)
    breaks = (steps[:, axis] != 1) | (steps[:, across] != 0).any(axis=1)
    ends = np.append(np.flatnonzero(breaks) + 1, len(voxels))
    lengths = np.diff(ends, prepend=0)
    runs = np.empty(len(voxels), np.int64)
    runs[order] = np.repeat(lengths, lengths)
    return runs
