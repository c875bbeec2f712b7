"""Which prediction belongs to which label, and what the classes on both sides are called. Reads voxels only where
nothing names the classes: then every value is one.

A side of an evaluation is a data set, a folder of label maps named by case, a folder with one folder of masks a case
(TotalSegmentator's layout), or a single case of these. Scoring the pairs is `case_scores`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.datasets.class_table import ClassTable, find_table, parse_table
from pipeline.datasets.dataset import Label
from pipeline.datasets.listing import find_dataset
from pipeline.evaluation.case_scores import Pair
from pipeline.evaluation.class_matching import CommonClasses, match_by_name
from pipeline.files.json_files import read_json
from transforms.io import label_values
from transforms.io.grid import VolumeError
from transforms.io.load import read_volume, volume_kind, volume_stem

Progress = Callable[[str, int, int, str], None]
"""Called with what is being done, steps done, steps in all, and a note on the step in hand."""

ClassNames = Sequence[str] | Mapping[str, int]
"""Names of the values 0, 1, 2, … or the value of each name."""

_NO_STRUCTURES = {"ct", "mr", "mri", "combined_labels"}
"""Files that lie among the masks of a case and are none."""

_HOW_TO_NAME = "name them with --class_names liver=1,spleen=2,… or with a labels.json beside the files"


class EvaluationError(ValueError):
    """Predictions that cannot be evaluated: which, expected, found, what to do."""

    is_input_error = True


@dataclass(frozen=True)
class Side:
    """The predictions, or the labels: by case, and their classes where something names them."""

    what: str
    """"prediction" or "label"."""
    root: Path
    by_case: Mapping[str, Label]
    table: ClassTable | None
    single: bool = False
    """One case was named rather than a folder of cases: it may be called otherwise than its counterpart."""
    without: Mapping[str, tuple[str, ...]] | None = None
    """Structures of other cases for which a case has no mask."""
    only_names: bool = False
    """Its classes have names, the masks', and no values that a label map could share."""


@dataclass(frozen=True)
class Matched:
    """What can be scored: pairs, their classes, and what a reader has to know about how these were found."""

    pairs: tuple[Pair, ...]
    classes: CommonClasses
    notes: tuple[str, ...]
    refused: Mapping[str, str]
    """Why a pair cannot be scored, by case."""
    labels_without_prediction: tuple[str, ...]


def list_side(path: Path | str, what: str, *, follow_links: bool = False) -> Side:
    """List the cases at a path: as a data set (labels only), label maps, folders of masks, or one case of these.

    Raises:
        VolumeError, DatasetError: nothing there that can be listed. EvaluationError: two files of one case.
    """
    path = Path(path)
    if not path.exists():
        raise VolumeError(f"{path}: expected {what}s, found no such file or folder")
    if what == "label" and (dataset := find_dataset(path, follow_links=follow_links)) is not None:
        by_case = {case.id: case.label for case in dataset.cases if case.label is not None}
        return Side(what, path, by_case, dataset.classes)
    folders = _mask_folders(path)
    if folders and not _label_maps(path):
        return _side_of_masks(what, path, folders)
    by_case = _by_case(_label_maps(path), path)
    return Side(what, path, by_case, _table_beside(path, by_case, what), single=path.is_file())


def _label_maps(path: Path) -> list[Path]:
    """The volumes that lie right in a folder, or the file itself; none in the folder of a single case's masks."""
    if path.is_dir() and (path.name == "segmentations" or (path / "segmentations").is_dir()):
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    # The data half of a .hdr/.img pair would name its case twice.
    return [file for file in files if file.is_file() and _is_volume(file)]


def _is_volume(file: Path) -> bool:
    return not file.name.startswith(".") and volume_kind(file) is not None and file.suffix.lower() != ".img"


def _by_case(volumes: Sequence[Path], path: Path) -> dict[str, Label]:
    if not volumes:
        raise VolumeError(
            f"{path}: expected label maps (CASE.nii.gz, CASE.nrrd, CASE.mha) or folders of masks (CASE/liver.nii.gz, …)"
            ", found none"
        )
    found: dict[str, Label] = {}
    # The same result in a second format of ours is passed over.
    doubles = {file for file in volumes if file.with_name(file.name.removesuffix(".seg.nrrd") + ".nii.gz") in volumes}
    for file in volumes:
        if file in doubles and file.name.endswith(".seg.nrrd"):
            continue
        case = volume_stem(file).removesuffix(".seg")
        if case in found:
            raise EvaluationError(f"{found[case]} and {file} are both of case {case}; keep one of them")
        found[case] = file
    return found


def _mask_folders(path: Path) -> dict[str, Path]:
    """Folders that hold masks, by case: CASE/ or CASE/segmentations/; a single case's folder by its own name."""
    if not path.is_dir():
        return {}
    if path.name == "segmentations":
        return {path.resolve().parent.name: path}
    if (path / "segmentations").is_dir():
        return {path.resolve().name: path / "segmentations"}
    below = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    inner = {case.name: case / "segmentations" if (case / "segmentations").is_dir() else case for case in below}
    return {case: folder for case, folder in inner.items() if _masks(folder)}


def _masks(folder: Path) -> dict[str, Path]:
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and _is_volume(file)]
    return {volume_stem(file): file for file in files if volume_stem(file) not in _NO_STRUCTURES}


def _side_of_masks(what: str, path: Path, folders: Mapping[str, Path]) -> Side:
    """Classes are the names of the masks over all cases, sorted; where masks overlap the later one counts."""
    masks = {case: _masks(folder) for case, folder in folders.items()}
    names = sorted(set().union(*masks.values()))
    if not names:
        raise VolumeError(f"{path}: expected a mask a structure (liver.nii.gz, …), found none")
    by_case = {
        case: tuple((c, found[name]) for c, name in enumerate(names, start=1) if name in found)
        for case, found in masks.items()
    }
    without = {case: tuple(name for name in names if name not in found) for case, found in masks.items()}
    return Side(
        what, path, by_case, ClassTable.in_order(["background", *names], path),
        single=len(folders) == 1 and path in (*folders.values(), *(folder.parent for folder in folders.values())),
        without={case: missing for case, missing in without.items() if missing},
        only_names=True,
    )  # fmt: skip


def _table_beside(path: Path, by_case: Mapping[str, Label], what: str) -> ClassTable | None:
    """The classes as the files' own folder names them, or the records that predict writes; for labels, whose names
    often lie beside their folder, also the folder above."""
    folder = path if path.is_dir() else path.parent
    table = find_table(folder)
    if table is None:
        table = _table_of_records(folder, by_case)
    return find_table(folder.parent) if table is None and what == "label" else table


def _table_of_records(folder: Path, by_case: Iterable[str]) -> ClassTable | None:
    """The classes in the records that bodyseg predict leaves beside its label maps; they have to agree."""
    found: tuple[Path, ClassTable] | None = None
    for case in by_case:
        record = folder / f"{case}.json"
        classes = read_json(record).get("classes") if record.is_file() else None
        if not classes:
            continue
        try:
            values = {str(int(item["value"])): str(item["name"]) for item in classes}
        except (TypeError, KeyError, ValueError):
            raise EvaluationError(f"{record}: expected classes with value and name; predict this case again") from None
        table = parse_table(values, record)
        if found is not None and found[1] != table:
            raise EvaluationError(
                f"{record}: its classes differ from those in {found[0]}; evaluate predictions of different runs apart"
            )
        found = found or (record, table)
    return found[1] if found else None


def match(
    predictions: Side,
    labels: Side,
    *,
    class_names: ClassNames | None = None,
    cases: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Matched:
    """Pair the cases of both sides by name, and match their classes.

    `class_names` names the classes of the sides that nothing else names; `cases` chooses cases. See `evaluate`.

    Raises:
        EvaluationError: a prediction without a label, a wanted case without a prediction, classes without names where
            the other side's are masks, names for classes that have some already, values too large or too many for a
            label map. DatasetError: no class in common.
    """
    pairs, refused = _paired(predictions, labels, cases)
    classes, notes = _classes(predictions, labels, class_names, pairs, progress)
    for side, table in ((predictions, classes.prediction), (labels, classes.label)):
        _check_values(table, f"{side.root}: the values of the {side.what}s' classes")
    left = () if cases is not None or (predictions.single and labels.single) else labels.by_case
    return Matched(
        tuple(pairs), classes, (*notes, *_missing_masks(predictions)), refused,
        tuple(sorted(set(left) - {pair.case for pair in pairs} - set(refused))),
    )  # fmt: skip


def _paired(predictions: Side, labels: Side, cases: Sequence[str] | None) -> tuple[list[Pair], dict[str, str]]:
    if predictions.single and labels.single and cases is None:
        ((case, prediction),), (label,) = predictions.by_case.items(), labels.by_case.values()
        return [Pair(case, prediction, label)], {}
    pairs, refused = [], {}
    for case in sorted(predictions.by_case) if cases is None else cases:
        for side in (predictions, labels):
            if case not in side.by_case:
                found = _some(sorted(side.by_case))
                raise EvaluationError(f"case {case}: expected a {side.what} of this name in {side.root}, found {found}")
        if missing := (labels.without or {}).get(case):
            refused[case] = (
                f"case {case}: expected a mask for each structure that other cases have, found none for "
                f"{_some(missing)}; write an empty mask where it is absent from the body"
            )
        else:
            pairs.append(Pair(case, predictions.by_case[case], labels.by_case[case]))
    return pairs, refused


def _missing_masks(predictions: Side) -> list[str]:
    missing = predictions.without or {}
    lines = [
        f"case {case}: no predicted mask of {_some(names)}; counted as nothing predicted"
        for case, names in missing.items()
    ]
    return lines[:10] + ([f"and masks missing in {len(lines) - 10} more cases"] if len(lines) > 10 else [])


def _classes(
    predictions: Side,
    labels: Side,
    class_names: ClassNames | None,
    pairs: Sequence[Pair],
    progress: Progress | None,
) -> tuple[CommonClasses, list[str]]:
    given = _given(class_names)
    if given is not None and predictions.table is not None and labels.table is not None:
        raise EvaluationError(
            f"class_names: predictions and labels name their classes themselves ({_some(labels.table.names[1:])}); "
            "leave class_names out"
        )
    of_predictions, of_labels = predictions.table or given, labels.table or given
    if of_predictions is not None and of_labels is not None:
        return _matched(of_labels, of_predictions)
    table = of_labels or of_predictions
    if table is None:
        note = f"nothing names the classes: each is called by its value; {_HOW_TO_NAME}"
        return CommonClasses.same(_table_of_values(pairs, progress)), [note]
    bare, named = (predictions, labels) if of_predictions is None else (labels, predictions)
    return CommonClasses.same(table), [_taken_over(table, bare, named)]


def _taken_over(table: ClassTable, bare: Side, named: Side) -> str:
    """Say that a side without names is read as the other one; refuse where that one has names but no values."""
    if named.only_names:
        raise EvaluationError(
            f"{bare.root}: nothing says which value of the {bare.what}s is which structure, and the {named.what}s are "
            f"masks with names; {_HOW_TO_NAME}"
        )
    values = [f"{name}={value}" for name, value in zip(table.names, table.values, strict=True) if value]
    return (
        f"nothing names the classes of the {bare.what}s: their values are taken for those of the {named.what}s "
        f"({_some(values)}); where that is wrong, {_HOW_TO_NAME}"
    )


def _matched(label: ClassTable, prediction: ClassTable) -> tuple[CommonClasses, list[str]]:
    classes = match_by_name(label, prediction)
    notes = [
        f"the predictions' class {prediction.names[p]} is taken for the labels' {label.names[c]}"
        for c, p in list(zip(classes.of_label, classes.of_prediction, strict=True))[1:]
        if prediction.names[p] != label.names[c]
    ]
    return classes, notes


def parse_class_names(text: str) -> ClassNames | None:
    """Read "liver=1,spleen=2" or "background,liver,spleen"; None for an empty text. Raises EvaluationError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not any("=" in word for word in words):
        return words or None
    values: dict[str, int] = {}
    for word in words:
        name, _, number = (part.strip() for part in word.rpartition("="))
        if not name or not number.isdecimal() or name in values:
            raise EvaluationError(
                f"class_names: expected different names, each with its value like liver=1, found {word!r}"
            )
        values[name] = int(number)
    return values


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


def _table_of_values(pairs: Sequence[Pair], progress: Progress | None) -> ClassTable:
    """Call each class by its value, of all values in all files: every file is read once more."""
    values = {0}
    for done, pair in enumerate(pairs, start=1):
        for source in (pair.prediction, pair.label):
            if isinstance(source, Path):
                found = _integral_values(source)
                _check_values(_called_by_value(found | {0}), f"case {pair.case}: {source}")
                values |= found
        if progress:
            progress("looking for classes", done, len(pairs), pair.case)
    return _called_by_value(values)


def _called_by_value(values: set[int]) -> ClassTable:
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
        label_values.ClassTable(table.values, table.ignore_value, table.remap)
    except ValueError as error:
        raise EvaluationError(f"{where}: {error}; correct the stray value, or number the classes anew") from None


def _integral_values(path: Path) -> set[int]:
    """Whole numbers in a label map; what is none, or damaged, is refused with its case when that is scored."""
    try:
        values = np.unique(read_volume(path).array)
    except VolumeError:
        return set()
    return {int(value) for value in values if abs(value) < 2**31 and float(value).is_integer()}


def _some(names: Sequence[str], most: int = 5) -> str:
    return (", ".join(names[:most]) + (", …" if len(names) > most else "")) or "none"
