"""What is measured of a case's voxels: intensities, content, label values, class sizes and places. Opens no file.

Arrays are (I, J, K); affines map voxel indices to world mm, RAS+.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import aff2axcodes, io_orientation

from transforms.io.load import Volume

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)

_SAMPLE = 2**20  # voxels that percentiles are taken from; random, so that no axis aliases with a step


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """One image channel; minimum, maximum and `intensities` (the values at `PERCENTILES`) are of its finite voxels."""

    path: Path
    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    orientation: str
    dtype: str
    kind: str
    modality: str | None
    minimum: float
    maximum: float
    intensities: tuple[float, ...]
    n_not_finite: int
    content: str
    """SHA-256 of the values along RAS axes: equal for equal voxels, whatever the file format, dtype or axis order."""

    @property
    def is_constant(self) -> bool:
        """Whether all finite voxels are alike (or none is finite)."""
        return not self.minimum < self.maximum


@dataclass(frozen=True, eq=False)
class LabelFacts:
    """A label whose values are all known: voxels (n_classes,) and centroid (n_classes, 3) in mm RAS+ of every class.

    Background and absent classes have a centroid of NaN. `voxel_ml` is the volume of a voxel.
    """

    class_voxels: np.ndarray
    centroids_mm: np.ndarray
    voxel_ml: float


def measure_image(volume: Volume, path: Path) -> ImageFacts:
    """Measure a 3-D image."""
    array = volume.array
    minimum, maximum = float(array.min()), float(array.max())
    sample, n_bad = _sample(array), 0
    if not np.isfinite([minimum, maximum]).all():
        finite = array[np.isfinite(array)]
        n_bad = array.size - finite.size
        minimum, maximum = (float(finite.min()), float(finite.max())) if n_bad < array.size else (np.nan, np.nan)
        sample = _sample(finite)
    intensities = np.percentile(sample, PERCENTILES).tolist() if sample.size else [np.nan] * len(PERCENTILES)
    x, y, z = np.linalg.norm(volume.affine[:3, :3], axis=0).tolist()
    return ImageFacts(
        path, array.shape, (x, y, z), "".join(aff2axcodes(volume.affine)), str(array.dtype), volume.kind,
        volume.modality, minimum, maximum, tuple(intensities), n_bad, _content(volume),
    )  # fmt: skip


def _sample(array: np.ndarray) -> np.ndarray:
    flat = array.ravel(order="K")
    return flat if flat.size <= _SAMPLE else flat[np.random.default_rng(0).integers(0, flat.size, _SAMPLE)]


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
    array: np.ndarray, affine: np.ndarray, n_classes: int, class_of: Mapping[int, int], counts: Mapping[int, int]
) -> LabelFacts:
    """Measure a label map; `class_of` is the class of every value (others count for nothing), `counts` its voxels."""
    class_voxels = np.zeros(n_classes, np.int64)
    for value, index in class_of.items():
        class_voxels[index] += counts.get(value, 0)
    sums = np.zeros((n_classes, 3))
    ordered = np.array(sorted(class_of))
    classes = np.array([class_of[value] for value in ordered.tolist()])
    for k in range(array.shape[2]):
        # Background, whose place nobody asks for, is most of a volume.
        i, j = np.nonzero(array[:, :, k] if class_of.get(0) == 0 else np.ones(array.shape[:2]))
        found = np.rint(array[i, j, k]).astype(np.int64)
        place = np.minimum(np.searchsorted(ordered, found), len(ordered) - 1)
        is_class = ordered[place] == found  # the others are to be ignored
        of_class = classes[place[is_class]]
        for axis, index in enumerate((i[is_class], j[is_class], np.full(len(of_class), k))):
            sums[:, axis] += np.bincount(of_class, weights=index, minlength=n_classes)
    sizes = np.where(class_voxels > 0, class_voxels, np.nan)
    sizes[0] = np.nan
    centroids = (sums / sizes[:, None]) @ affine[:3, :3].T + affine[:3, 3]
    return LabelFacts(class_voxels, centroids, abs(float(np.linalg.det(affine[:3, :3]))) / 1000)
