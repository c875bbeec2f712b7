"""Find out what the classes of predictions and labels are called; voxels are read only where values have no name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.console.progress import Progress
from pipeline.console.text import some_of, words
from pipeline.datasets.class_table import LARGEST_VALUE, ClassTable, parse_table
from pipeline.evaluation.case_files import CaseFiles
from pipeline.evaluation.case_scores import Pair
from pipeline.evaluation.class_matching import CommonClasses, match_by_name
from pipeline.evaluation.options import EvaluationError, Kind
from transforms.io import label_values
from transforms.io.errors import VolumeError
from transforms.io.load import read_volume

ClassNames = Sequence[str] | Mapping[str, int]
"""Names of all values 0, 1, 2, …, or the values of the names that are to be scored."""

_HOW_TO_NAME = "name them with --class_names liver=1,spleen=2,… or with a labels.json beside the files"


def parse_class_names(text: str) -> ClassNames | None:
    """Read "liver=1,spleen=2" or "background,liver,spleen"; None for an empty text.

    Raises:
        EvaluationError: a name twice, or one without a value beside others with one.

    >>> parse_class_names("liver=1, spleen=2")
    {'liver': 1, 'spleen': 2}
    """
    given = words(text)
    if not any("=" in word for word in given):
        return given or None
    values: dict[str, int] = {}
    for word in given:
        name, _, number = (part.strip() for part in word.rpartition("="))
        if not name or not (number.isascii() and number.isdecimal()) or name in values:
            raise EvaluationError(
                f"class_names: expected different names, each with its value like liver=1, found {word!r}"
            )
        values[name] = int(number)
    return values


def find_classes(
    predictions: CaseFiles,
    labels: CaseFiles,
    class_names: ClassNames | None,
    pairs: Sequence[Pair],
    progress: Progress | None = None,
) -> tuple[CommonClasses, list[str]]:
    """Find the classes that predictions and labels have in common, and what a reader has to know about how.

    Args:
        predictions, labels: as listed.
        class_names: names for those that nothing else names; where all have names, those that are to be scored, in the
            order that decides where masks overlap.
        pairs: what will be scored; their files are read where values have no name.
        progress: called for each pair that is read.

    Raises:
        EvaluationError: other names or values for classes that have names already; values without names against masks;
            values too large or too many for a label map.
        DatasetError: no class in common.
    """
    if class_names and predictions.table is not None and labels.table is not None:
        return _chosen(*_matched(labels.table, predictions.table), class_names)
    given = _given(class_names)
    if given is not None and isinstance(class_names, Mapping):
        return _by_given_names(predictions, labels, given, pairs, progress)
    of_predictions, of_labels = predictions.table or given, labels.table or given
    if of_predictions is not None and of_labels is not None:
        classes, notes = _matched(of_labels, of_predictions)
    elif of_predictions is None and of_labels is None:
        values = _values_of(_files(pairs, "prediction") + _files(pairs, "label"), progress)
        classes = CommonClasses.same(_called_by_value(values))
        notes = [f"nothing names the classes: each is called by its value; {_HOW_TO_NAME}"]
    elif of_predictions is None:
        classes, notes = _taken_over(predictions, labels)
    else:
        classes, notes = _taken_over(labels, predictions)
    _check_values(classes.prediction, f"{predictions.root}: the values of the predictions' classes")
    _check_values(classes.label, f"{labels.root}: the values of the labels' classes")
    return classes, notes


def _chosen(classes: CommonClasses, notes: list[str], class_names: ClassNames) -> tuple[CommonClasses, list[str]]:
    """Of classes that have names already those that are named, in their order. Raises EvaluationError for others."""
    values = dict(zip(classes.label.names, classes.label.values, strict=True))
    wanted = class_names if isinstance(class_names, Mapping) else {name: values.get(name) for name in class_names}
    names = [name for name in wanted if name.casefold() != "background"]
    known = some_of(classes.names[1:], 5)
    if not names:
        raise EvaluationError(f"class_names: expected structures to score ({known}), found the background alone")
    for name in names:
        if name not in classes.names[1:] or wanted[name] != values[name]:
            found = name if wanted[name] == values.get(name) else f"{name}={wanted[name]}"
            raise EvaluationError(
                f"class_names: predictions and labels name their classes themselves ({known}), of which some can be "
                f"chosen by their names; found {found}"
            )
    chosen = (0, *(classes.names.index(name) for name in names))
    of_label, of_prediction = (tuple(of[c] for c in chosen) for of in (classes.of_label, classes.of_prediction))
    return replace(classes, of_label=of_label, of_prediction=of_prediction), notes


def _given(class_names: ClassNames | None) -> ClassTable | None:
    """The table of --class_names."""
    if not class_names:
        return None
    source = Path("class_names")
    if isinstance(class_names, Mapping):
        return parse_table(dict(class_names), source)
    if class_names[0].casefold() != "background":
        raise EvaluationError(
            f"class_names: expected the background first, found {class_names[0]!r}; write background,{class_names[0]},…"
            f" where the values are 0, 1, 2, …, or {class_names[0]}=VALUE,…"
        )
    return ClassTable.in_order(class_names, source)


def _by_given_names(
    predictions: CaseFiles, labels: CaseFiles, given: ClassTable, pairs: Sequence[Pair], progress: Progress | None
) -> tuple[CommonClasses, list[str]]:
    """Classes where values were given for names: they may be a part of what the files hold, the rest is background."""
    _check_values(given, "class_names: the values")
    of_predictions, of_labels = predictions.table, labels.table
    if of_predictions is None:
        of_predictions = _completed(given, _files(pairs, "prediction"), progress)
    if of_labels is None:
        of_labels = _completed(given, _files(pairs, "label"), progress)
    if predictions.table is not None or labels.table is not None:
        return _matched(of_labels, of_predictions)
    scored = tuple(range(len(given.names)))
    without_name = sorted({*of_predictions.values, *of_labels.values} - given.known_values)
    notes = [f"values without a name count as background: {some_of(without_name)}"] if without_name else []
    return CommonClasses(of_labels, of_predictions, scored, scored), notes


def _completed(given: ClassTable, files: Sequence[tuple[str, Path]], progress: Progress | None) -> ClassTable:
    """The given classes, and a class for every further value that the files hold."""
    further = sorted(_values_of(files, progress) - given.known_values)
    names = tuple(f"class_{value}" for value in further)
    return ClassTable((*given.names, *names), (*given.values, *further), given.ignore_value)


def _taken_over(bare: CaseFiles, named: CaseFiles) -> tuple[CommonClasses, list[str]]:
    """Read files without names as the others are; refuse where those have names but no values."""
    assert named.table is not None
    if named.are_masks or named.headers.disagree:
        only_names = "are masks with names" if named.are_masks else "have headers that disagree on the values"
        raise EvaluationError(
            f"{bare.root}: nothing says which value of the {bare.kind}s is which structure, and the {named.kind}s "
            f"{only_names}; {_HOW_TO_NAME}"
        )
    table = named.table
    values = [f"{name}={value}" for name, value in zip(table.names, table.values, strict=True) if value]
    note = (
        f"nothing names the classes of the {bare.kind}s: their values are taken for those of the {named.kind}s "
        f"({some_of(values, 5)}); where that is wrong, {_HOW_TO_NAME}"
    )
    return CommonClasses.same(table), [note]


def _matched(label: ClassTable, prediction: ClassTable) -> tuple[CommonClasses, list[str]]:
    classes = match_by_name(label, prediction)
    notes = ["voxels that the predictions mark as to be ignored count as background"] * prediction.ignores_voxels
    for c, p in zip(classes.of_label[1:], classes.of_prediction[1:], strict=True):
        if prediction.names[p] != label.names[c]:
            notes.append(f"the predictions' class {prediction.names[p]} is taken for the labels' {label.names[c]}")
    return classes, notes


def _files(pairs: Sequence[Pair], kind: Kind) -> list[tuple[str, Path]]:
    """The label maps of all cases, with their case; masks have no values to look for."""
    return [(pair.case, source) for pair in pairs if isinstance(source := getattr(pair, kind), Path)]


def _values_of(files: Sequence[tuple[str, Path]], progress: Progress | None) -> set[int]:
    """All values in these label maps: every file is read once more. Raises EvaluationError for an impossible one."""
    values = {0}
    for done, (case, file) in enumerate(files, start=1):
        found = _integral_values(file)
        _check_values(_called_by_value(found | {0}), f"case {case}: {file}")
        values |= found
        if progress:
            progress(done, len(files), "looking for classes", case)
    return values


def _called_by_value(values: Iterable[int]) -> ClassTable:
    ordered = sorted(values)
    return ClassTable(tuple(f"class_{v}" if v else "background" for v in ordered), tuple(ordered))


def _check_values(table: ClassTable, where: str) -> None:
    """Refuse values of which no label map can be read: negative, too large, too many."""
    if min(table.values) < 0:
        raise EvaluationError(
            f"{where}: found the label value {min(table.values)}, expected 0 for the background and positive classes; "
            "name a label map, not an image"
        )
    try:
        label_values.LabelLookup(table.values, table.ignore_value, table.remap)
    except ValueError as error:
        raise EvaluationError(f"{where}: {error}; correct the stray value, or number the classes again") from None


def _integral_values(path: Path) -> set[int]:
    """Whole numbers in a label map; other values, or a damaged file, are refused with the case when it is scored."""
    try:
        values = np.unique(read_volume(path).array)
    except VolumeError:
        return set()
    return {int(value) for value in values if abs(value) <= LARGEST_VALUE and float(value).is_integer()}
