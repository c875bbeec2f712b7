"""Read again what a metrics.json scored: a case's label, prediction and image on the label's grid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.class_table import ClassTable, find_table, parse_table, resolve_remap
from pipeline.datasets.dataset import Label
from pipeline.datasets.errors import DatasetError
from pipeline.evaluation.case_files import mask_files
from pipeline.evaluation.class_matching import match_names
from pipeline.evaluation.header_classes import read_headers
from pipeline.evaluation.label_maps import LabelMap, covering, is_seg, onto_label, read_label_map
from pipeline.evaluation.options import EvaluationError, Kind
from pipeline.evaluation.records import read_records, table_of_records
from pipeline.files.atomic import FileError
from pipeline.files.json_files import read_json
from transforms.io.errors import VolumeError
from transforms.io.grid import axes_onto, part_of
from transforms.io.label_values import ignore_index
from transforms.io.load import read_volume

Fitting = TypeVar("Fitting")

Document = Mapping[str, Any]
"""A metrics.json, or one of its cases."""

Paths = Mapping[str, Path]
"""Of "label" and "prediction"."""

_IGNORED = 65535
"""In a label as it is read, where it counts for nothing."""


class ScoredCase(NamedTuple):
    """A case on its label's grid, or on the prediction's where the label was cropped to a part of that."""

    image: NDArray | None
    """(I, J, K) intensities of the first channel; None where no record names it, or where it cannot be read."""
    label: NDArray[np.integer]
    """(I, J, K) indices of the classes of the metrics.json; 0 also where voxels are ignored."""
    prediction: NDArray[np.integer]
    """As `label`; 0 also where the label's voxels are ignored."""
    affine: NDArray[np.float64]
    """4×4, voxel index -> world mm (RAS+)."""


def read_scored_case(case: Document, document: Document, metrics: Path | str | None = None) -> ScoredCase:
    """Read a case of a metrics.json.

    Not every file says which value is which class: what is read must have the numbers of voxels that were counted when
    it was scored, class by class, or it is refused. So no structure is shown under another's name, and no label that
    has changed since.

    Args:
        case: as it stands there.
        document: the metrics.json.
        metrics: its path: relative paths in it are those of the folder where it was scored, which is looked for above.

    Raises:
        EvaluationError, VolumeError: files that are gone, or no longer those that were scored; one line each.
    """
    root, class_names = _where_it_was_scored(case, metrics), document["class_names"]
    n_classes = len(class_names)
    paths = {kind: root / case[kind] for kind in ("label", "prediction")}
    counted = _counted(case, class_names)
    compared = [c for c, name in enumerate(class_names) if c and name not in case.get("not_annotated", ())]

    def as_label(found: LabelMap) -> LabelMap | None:
        return found if np.array_equal(_counts(found.indices, n_classes)[1:], counted["label"][1:]) else None

    label = _first_that_fits("label", paths, case, document, as_label)

    def beside_label(found: LabelMap) -> tuple[LabelMap, NDArray[np.integer]] | None:
        reference, predicted = _on_one_grid(label, found, paths, case)
        predicted[reference.indices == _IGNORED] = 0
        both = np.where(predicted == reference.indices, predicted, 0)
        fits = all(
            np.array_equal(_counts(array, n_classes)[compared], counted[kind][compared])
            for array, kind in ((predicted, "prediction"), (both, "both"))
        )
        return (reference, predicted) if fits else None

    reference, predicted = _first_that_fits("prediction", paths, case, document, beside_label)
    reference.indices[reference.indices == _IGNORED] = 0
    image = _image(root, paths["prediction"], case["case"], reference)
    return ScoredCase(image, reference.indices, predicted, reference.affine)


def _where_it_was_scored(case: Document, metrics: Path | str | None) -> Path:
    """The folder that the case's paths are relative to: this one, or one above the metrics.json."""
    above = () if metrics is None else Path(metrics).resolve().parents
    for folder in (Path(), *above):
        if all((folder / case[kind]).exists() for kind in ("label", "prediction")):
            return folder
    missing = next(case[kind] for kind in ("label", "prediction") if not Path(case[kind]).exists())
    remedy = "evaluate again" if Path(missing).is_absolute() else "start this where bodyseg evaluate was started"
    raise EvaluationError(f"{missing} is not found: no such file or folder; {remedy}")


def _counted(case: Document, class_names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Voxels by class, as they were counted: of the label, of the prediction, and where both have the class."""
    counted = {kind: np.zeros(len(class_names), np.int64) for kind in ("label", "prediction", "both")}
    for name, one in case["classes"].items():
        c = list(class_names).index(name)
        counted["both"][c] = one["true_positives"]
        counted["label"][c] = one["true_positives"] + one["false_negatives"]
        counted["prediction"][c] = one["true_positives"] + one["false_positives"]
    return counted


def _on_one_grid(
    label: LabelMap, prediction: LabelMap, paths: Paths, case: Document
) -> tuple[LabelMap, NDArray[np.integer]]:
    """The label, extended where it was cropped to its content, and the prediction on its grid, as they were scored."""
    if is_seg(paths["label"]):
        label = covering(label, prediction)
    if is_seg(paths["prediction"]):
        prediction = covering(prediction, label)
    if not case["resampled"] and axes_onto(prediction.geometry, label.geometry) is None:
        change = part_of(label.geometry, prediction.geometry)
        label = label if change is None else LabelMap(change.apply(label.indices), prediction.affine)
    sources = paths["prediction"], paths["label"]
    return label, onto_label(prediction, label, sources, case["case"], resample=True)[0].copy()


def _tables(kind: Kind, paths: Paths, case: Document, document: Document) -> Iterator[ClassTable]:
    """What values may mean: as the metrics.json says where it does, else as the prediction's record or a class table
    does, its own before the other's, in order, or by the file's own header."""
    if values := document.get(f"{kind}_values"):
        yield parse_table(values, paths[kind])
    class_names = document["class_names"]
    label, prediction = paths["label"].parents[:2], paths["prediction"].parents[:1]
    folders = (label, prediction) if kind == "label" else (prediction, label)
    sources: list[Callable[[], ClassTable | None]] = [
        lambda: table_of_records(read_records(_folder(paths["prediction"]), [case["case"]])),
        *(partial(find_table, folder) for group in folders for folder in group),
    ]
    for source in sources:
        with contextlib.suppress(EvaluationError, DatasetError, FileError):
            table = source()
            if table is not None:
                yield table
    in_order = ClassTable(tuple(class_names), tuple(range(len(class_names))))
    yield in_order
    if paths[kind].is_file():
        yield from read_headers({case["case"]: paths[kind]}, in_order, kind).own_tables.values()


def _folder(prediction: Path) -> Path:
    """Where the record of a prediction lies: beside a label map; above CASE/segmentations."""
    return prediction.parent.parent if prediction.is_dir() else prediction.parent


def _first_that_fits(
    kind: Kind, paths: Paths, case: Document, document: Document, fitting: Callable[[LabelMap], Fitting | None]
) -> Fitting:
    """Read a label map by the first table with which it is what was scored; indices are those of the classes there."""
    path = paths[kind]
    remap = document.get(f"{kind}_remap", {})
    reason = f"the {kind} {path} no longer holds what was scored; evaluate again"
    for table in _tables(kind, paths, case, document):
        try:
            remapped = replace(table, remap={**table.remap, **resolve_remap(remap, table.names)})
            found = read_label_map(_source(path, table), case["case"], remapped)
        except (VolumeError, DatasetError) as error:
            if error.kind == "unreadable":
                reason = str(error)
            continue
        n_read = len(table.names)
        lookup = np.zeros(max(int(found.indices.max()), ignore_index(n_read)) + 1, np.uint16)
        for index, own in match_names(document["class_names"][1:], table.names[1:]).items():
            lookup[own + 1] = index + 1
        if kind == "label" and remapped.ignores_voxels:
            lookup[ignore_index(n_read)] = _IGNORED
        fitted = fitting(LabelMap(lookup[found.indices], found.affine))
        if fitted is not None:
            return fitted
    raise EvaluationError(reason)


def _source(path: Path, table: ClassTable) -> Label:
    if not path.is_dir():
        return path
    masks = list(mask_files(path).items())
    found = match_names(table.names[1:], [name for name, _ in masks])
    return tuple((index + 1, masks[n][1]) for index, n in sorted(found.items()))


def _counts(indices: NDArray[np.integer], n_classes: int) -> NDArray[np.int64]:
    """Voxels of each class; ignored ones are of none."""
    counts = np.zeros(n_classes, np.int64)
    for plane in np.moveaxis(indices, 2, 0):  # slice by slice: bincount needs 64-bit integers
        counts += np.bincount(plane.ravel(), minlength=n_classes)[:n_classes]
    return counts


def _image(root: Path, prediction: Path, case: str, label: LabelMap) -> NDArray | None:
    """The first channel of the image that the prediction's record names, turned onto the label's axes."""
    try:
        source = read_json(_folder(prediction) / f"{case}.json").get("source")
        volume = read_volume(root / str(source[0])) if isinstance(source, list) and source else None
    except (FileError, VolumeError):
        return None
    change = None if volume is None else axes_onto(volume.geometry, label.geometry)
    if volume is None or change is None:
        return None
    return change.apply(volume.array if volume.array.ndim == 3 else volume.array[..., 0])
