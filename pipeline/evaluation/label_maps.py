"""Read the label maps of a case as class indices, and bring a prediction onto the grid of its label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Float64, Integer
from scipy import ndimage

from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import Label, label_path
from transforms.io.dicom_seg import read_dicom_seg
from transforms.io.errors import VolumeError
from transforms.io.grid import Geometry, axes_onto, describe_mismatch, part_of, voxel_ml
from transforms.io.load import LoadVolumed, read_geometry
from transforms.resize import voxel_map

_REMEDY = "name what is to be scored with --class_names NAME=VALUE,…, or correct the class table (labels.json)"


class LabelMap(NamedTuple):
    """Class indices on their grid."""

    indices: Integer[np.ndarray, "I J K"]
    affine: Float64[np.ndarray, "4 4"]
    """Voxel index to world mm, RAS+."""
    overlaps: Mapping[tuple[int, int], int] = MappingProxyType({})
    """Voxels that a mask of one class (first) lost to that of a later one (second)."""

    @property
    def geometry(self) -> Geometry:
        """The grid."""
        return Geometry(self.indices.shape, self.affine, self.indices.dtype, "nifti")


def read_label_map(source: Label, case: str, table: ClassTable) -> LabelMap:
    """Read a label map, masks or a DICOM SEG as class indices.

    Raises:
        VolumeError: named by case: a file that cannot be read, values of no class.
    """
    try:
        load = LoadVolumed(("label",), table.values, table.ignore_value, label_remap=table.remap)
        if is_seg(source):
            segments = read_dicom_seg(source)
            return LabelMap(load.lookup.indices(segments.array, str(source)), segments.affine)
        item: dict[Any, Any] = {"label": source}
        tensor = load(item)["label"]
        return LabelMap(tensor.as_tensor()[0].numpy(), tensor.affine.numpy(), load.lookup.overlaps)
    except VolumeError as error:
        remedy = _REMEDY if error.kind == "label_unknown_values" else error.remedy
        raise VolumeError(error.kind, error.where, error.expected, error.found, remedy, case) from error


def is_seg(source: Label) -> TypeGuard[Path]:
    """Whether a label is a DICOM SEG, which are the only files ending in .dcm that are listed."""
    return isinstance(source, Path) and source.suffix.lower() == ".dcm"


def covering(segments: LabelMap, other: LabelMap) -> LabelMap:
    """Extend a DICOM SEG, which leaves slices without a segment out, by background so that it covers another grid.

    Nothing is resampled: where the other grid is not on the same lattice, the map comes back as it is.
    """
    onto = voxel_map(other.affine, segments.affine)
    turn, shift = np.rint(onto[:3, :3]), np.rint(onto[:3, 3])
    is_lattice = np.abs(onto[:3, :3] - turn).max() < 1e-3 and np.abs(onto[:3, 3] - shift).max() < 0.1
    if not is_lattice or not (np.abs(turn).sum(0) == 1).all():
        return segments
    corners = np.stack([shift, turn @ (np.array(other.indices.shape) - 1) + shift])
    before = np.maximum(0, -corners.min(0)).astype(int)
    after = np.maximum(0, corners.max(0) - (np.array(segments.indices.shape) - 1)).astype(int)
    affine = segments.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    return LabelMap(np.pad(segments.indices, list(zip(before, after, strict=True))), affine)


def padded_to(label: LabelMap, image: Path) -> LabelMap:
    """Extend a label that was cropped to its content to its image's grid by background, as training does.

    A label that is no part of that grid comes back as it is.
    """
    try:
        grid = read_geometry(image)
    except VolumeError:
        return label
    change = part_of(label.geometry, grid)
    return label if change is None else LabelMap(change.apply(label.indices), grid.affine)


def onto_label(
    prediction: LabelMap, label: LabelMap, sources: tuple[Label, Label], case: str, *, resample: bool
) -> tuple[Integer[np.ndarray, "I J K"], bool]:
    """Return the prediction on the label's grid, and whether that took resampling.

    Args:
        prediction, label: as read. A prediction stored with other axes on the same grid (LAS beside RAS) is turned.
        sources: where both were read, for the message.
        case: named in the message.
        resample: whether a prediction on another grid may be resampled, by nearest neighbour.

    Raises:
        VolumeError: the grids differ, and resample is False.
    """
    change = axes_onto(prediction.geometry, label.geometry)
    if change is not None:
        return np.ascontiguousarray(change.apply(prediction.indices)), False
    if not resample:
        expected = f"a prediction on the grid of its label {_location(sources[1])}"
        found = describe_mismatch(prediction.geometry, label.geometry)
        remedy = "predict from the labelled image"
        if _holds_centre_of(prediction, label) or _holds_centre_of(label, prediction):
            remedy += ", or pass resample (--resample) to compare them all the same"
        raise VolumeError("grid_mismatch", _location(sources[0]), expected, found, remedy, case)
    matrix = voxel_map(label.affine, prediction.affine)
    # 0, the background, outside: with plain "constant" the outer half of the outermost voxels would count as outside.
    nearest = ndimage.affine_transform(
        prediction.indices, matrix[:3, :3], matrix[:3, 3], output_shape=label.indices.shape, order=0, cval=0,
        mode="grid-constant",
    )  # fmt: skip
    return nearest, True


def outside_ml(prediction: LabelMap, label: LabelMap) -> float:
    """Volume in ml of the prediction's structures whose voxels have their centres outside the label's grid."""
    onto = voxel_map(prediction.affine, label.affine)
    j, k = np.ogrid[tuple(map(slice, prediction.indices.shape[1:]))]
    n_voxels = 0
    for i, plane in enumerate(prediction.indices):
        if not plane.any():
            continue
        inside = np.ones(plane.shape, bool)
        for row, n in zip(onto[:3], label.indices.shape, strict=True):
            at = row[0] * i + row[1] * j + row[2] * k + row[3]
            inside &= (at >= -0.5) & (at <= n - 0.5)
        n_voxels += int(np.count_nonzero(plane[~inside]))
    return float(n_voxels * voxel_ml(prediction.affine))


def _holds_centre_of(one: LabelMap, other: LabelMap) -> bool:
    """Whether the middle of another map's grid lies within this one's: else they hardly show the same."""
    centre = voxel_map(other.affine, one.affine) @ [*((np.array(other.indices.shape) - 1) / 2), 1]
    return bool(((centre[:3] >= -0.5) & (centre[:3] <= np.array(one.indices.shape) - 0.5)).all())


def _location(source: Label) -> str:
    return str(label_path(source) or "without masks")
