"""Read again what a metrics.json scored: a case's label, prediction and image on the label's grid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.class_table import ClassTable, find_table
from pipeline.datasets.dataset import Label
from pipeline.datasets.errors import DatasetError
from pipeline.evaluation.label_maps import LabelMap, onto_label, read_label_map
from pipeline.evaluation.options import EvaluationError
from pipeline.evaluation.records import read_records, table_of_records
from pipeline.files.atomic import FileError
from pipeline.files.json_files import read_json
from transforms.io.errors import VolumeError
from transforms.io.grid import axes_onto
from transforms.io.load import read_volume


class ScoredCase(NamedTuple):
    """A case on its label's grid."""

    image: NDArray | None
    """(I, J, K) intensities of the first channel; None where no record names it, or where it cannot be read."""
    label: NDArray[np.integer]
    """(I, J, K) indices of the classes of the metrics.json."""
    prediction: NDArray[np.integer]
    """As `label`."""
    affine: NDArray[np.float64]
    """4×4, voxel index -> world mm (RAS+)."""


def read_scored_case(case: Mapping[str, Any], class_names: Sequence[str]) -> ScoredCase:
    """Read a case of a metrics.json.

    The file does not say which value is which class: what is read must have the numbers of voxels that were counted
    when it was scored, class by class, or it is refused. So no structure is shown under another's name, and no label
    that has changed since.

    Raises:
        EvaluationError, VolumeError: files that are gone, or no longer those that were scored; one line each.
    """
    paths = {kind: Path(case[kind]) for kind in ("label", "prediction")}
    label = _as_scored(paths["label"], case, class_names, "label", _tables(paths, case, class_names))
    prediction = _as_scored(paths["prediction"], case, class_names, "prediction", _tables(paths, case, class_names))
    found, _ = onto_label(prediction, label, (paths["prediction"], paths["label"]), case["case"], resample=True)
    return ScoredCase(_image(paths["prediction"], case["case"], label), label.indices, found, label.affine)


def _tables(paths: Mapping[str, Path], case: Mapping[str, Any], class_names: Sequence[str]) -> Iterator[ClassTable]:
    """What values may mean: as the prediction's record or a class table beside the labels says, or in order."""
    folders = paths["label"].parents[:2], paths["prediction"].parents[:1]
    sources: list[Callable[[], ClassTable | None]] = [
        lambda: table_of_records(read_records(_folder(paths["prediction"]), [case["case"]])),
        *(partial(find_table, folder) for group in folders for folder in group),
    ]
    for source in sources:
        with contextlib.suppress(EvaluationError, DatasetError, FileError):
            table = source()
            if table is not None:
                yield table
    yield ClassTable(tuple(class_names), tuple(range(len(class_names))))


def _folder(prediction: Path) -> Path:
    """Where the record of a prediction lies: beside a label map; above CASE/segmentations."""
    return prediction.parent.parent if prediction.is_dir() else prediction.parent


def _as_scored(
    path: Path, case: Mapping[str, Any], class_names: Sequence[str], kind: str, tables: Iterator[ClassTable]
) -> LabelMap:
    """Read a label map by the first table that gives what was counted; the indices are those of `class_names`."""
    expected = np.zeros(len(class_names), np.int64)
    missed = "false_negatives" if kind == "label" else "false_positives"
    for name, one in case["classes"].items():
        expected[list(class_names).index(name)] = one["true_positives"] + one[missed]
    reason = f"the {kind} {path} no longer holds what was scored; evaluate again"
    for table in tables:
        try:
            found = read_label_map(_source(path, table), case["case"], table)
        except VolumeError as error:
            reason = str(error)
            continue
        index = np.array([list(class_names).index(name) if name in class_names else 0 for name in table.names])
        index = np.append(index, np.zeros(max(0, int(found.indices.max()) + 1 - len(index)), index.dtype))
        indices = index[found.indices]
        if _counts(indices, len(class_names))[1:].tolist() == expected[1:].tolist() or _is_resampled(case, kind):
            return LabelMap(indices.astype(np.uint16), found.affine)
    raise EvaluationError(reason)


def _is_resampled(case: Mapping[str, Any], kind: str) -> bool:
    """Whether counts are of another grid than the file's."""
    return kind == "prediction" and bool(case["resampled"])


def _source(path: Path, table: ClassTable) -> Label:
    if not path.is_dir():
        return path
    masks = ((index, path / f"{name}.nii.gz") for index, name in enumerate(table.names) if index)
    return tuple((index, mask) for index, mask in masks if mask.is_file())


def _counts(indices: NDArray[np.integer], n_classes: int) -> NDArray[np.int64]:
    counts = np.zeros(n_classes, np.int64)
    for plane in np.moveaxis(indices, 2, 0):  # slice by slice: bincount needs 64-bit integers
        counts += np.bincount(plane.ravel(), minlength=n_classes)
    return counts


def _image(prediction: Path, case: str, label: LabelMap) -> NDArray | None:
    """The image that the prediction's record names, turned onto the label's axes."""
    try:
        source = read_json(_folder(prediction) / f"{case}.json").get("source")
        volume = read_volume(str(source[0])) if isinstance(source, list) and source else None
    except (FileError, VolumeError):
        return None
    if volume is None or volume.array.ndim != 3:
        return None
    change = axes_onto(volume.geometry, label.geometry)
    return None if change is None else change.apply(volume.array)
