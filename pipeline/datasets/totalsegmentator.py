"""Read the TotalSegmentator and AbdomenAtlas layout: a folder a case, a mask a structure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.console.text import some_of
from pipeline.datasets.class_table import ClassTable, find_table, refuse_ignore_mask
from pipeline.datasets.csv_table import read_csv
from pipeline.datasets.dataset import Label
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.rows import Listing, Request, Row, by_name, collect, only_file, parse_name, parse_split
from transforms.io.load import volume_stem

_IMAGE_NAMES = ("ct", "mri", "mr")
_COMBINED = "combined_labels"
_MASKS = "segmentations"
NOT_MASKS = frozenset({*_IMAGE_NAMES, _COMBINED})
"""Volumes of a case, in any case of letters, that are no mask of a structure where they lie among its masks."""


def read_totalsegmentator(request: Request) -> Listing:
    """Read CASE/ct.nii.gz or mri.nii.gz with CASE/segmentations/STRUCTURE.nii.gz (TotalSegmentator, AbdomenAtlas).

    The only volume beside segmentations/ may have another name.

    Classes are the structures' names, sorted, over all cases, or those of the settings, labels.json or
    class_names.json, in their order; masks beyond these are passed over. CASE/combined_labels.nii.gz is read instead
    of the masks where no case has any, or where labels.json or class_names.json says what its values mean
    ({"liver": 5}; a bare list only orders the masks). TotalSegmentator writes an empty mask for a structure that is not
    in the body, so a mask that is missing says nothing: the case does not annotate that structure, unless the request
    says that it is absent. meta.csv (";" or ",") gives image_id and split, and the subject
    where it has such a column. Folders with masks and no image are named, and so are cases of meta.csv without one.

    Raises:
        DatasetError: meta.csv or the table of classes cannot be read, or nothing names a structure.
    """
    folders = {folder.name: folder for folder in request.files.folders(request.root)}
    scans = {case: scans for case, folder in folders.items() if (scans := find_scans(folder, request.files))}
    modalities = {volume_stem(path).upper().replace("MRI", "MR") for paths in scans.values() for path in paths}
    channel_names = (modalities.pop() if len(modalities) == 1 and modalities <= {"CT", "MR"} else "image",)
    problems: list[DatasetError] = []
    if request.images_only:
        return _images_alone(request, folders, scans, channel_names)
    segmented = [case for case, folder in folders.items() if case in scans or is_segmented(folder, request.files)]
    masks = {case: by_name(request.files.volume_files(folders[case] / _MASKS)) for case in segmented}
    own_table = find_table(request.root)
    states_values = own_table is not None and own_table.states_values
    structures = sorted(set().union(*masks.values()))
    if own_table is None and not request.class_names and structures:
        classes = ClassTable.in_order(["background", *structures], request.root)
    else:
        classes = request.classes(own_table)
    _refuse_masks_of_background(masks, classes, request.root)
    meta = _read_meta(request)

    def row(case: str) -> Row:
        combined = _combined(folders[case], request.files)
        label: Label | None
        annotated: tuple[str, ...] | None = None
        if combined is not None and (states_values or not structures):
            label = combined
        elif combined is not None and not masks[case]:
            remedy = 'add the masks, or write labels.json with the values ({"liver": 5, …})'
            raise DatasetError(
                "dataset", combined, "masks, as other cases have, or a table of values", "neither", remedy, case
            )
        else:
            label, annotated = _one_mask_a_class(masks[case], classes, case)
        image = (only_file(scans[case], case),) if case in scans else ()
        said = meta.of(case) if image else {}
        if request.missing_masks == "absent":
            annotated = None
        split = parse_split(said.get("split"), case, meta.path)
        return Row(case, image, label, split, _subject(said), annotated=annotated)

    rows = collect(row, segmented, problems)
    warnings = (*meta.without_folder(folders), *_without_mask(masks, rows, classes, request))
    return Listing(tuple(rows), classes, channel_names, tuple(problems), warnings)


def _images_alone(
    request: Request, folders: Mapping[str, Path], scans: Mapping[str, list[Path]], channel_names: tuple[str, ...]
) -> Listing:
    """The scans; a folder with masks alone is a row without an image, so that it is named."""
    problems: list[DatasetError] = []
    rows = collect(lambda case: Row(case, (only_file(scans[case], case),), None), scans, problems)
    for case, folder in folders.items():
        if case not in scans and is_segmented(folder, request.files):
            rows.append(Row(case, (), folder))
    try:
        warnings = _read_meta(request).without_folder(folders)
    except DatasetError:  # splits and subjects, which do not matter here
        warnings = ()
    return Listing(tuple(rows), None, channel_names, tuple(problems), warnings)


def find_scans(folder: Path, files: FileIndex) -> list[Path]:
    """Return the images of a TotalSegmentator case folder; more than one are too many."""
    volumes = [path for path in files.volume_files(folder) if volume_stem(path).lower() != _COMBINED]
    named = [path for path in volumes if volume_stem(path).lower() in _IMAGE_NAMES]
    return named or (volumes if len(volumes) == 1 and files.is_folder(folder / _MASKS) else [])


def is_segmented(folder: Path, files: FileIndex) -> bool:
    """Say whether a case folder holds masks or a label map."""
    return files.is_folder(folder / _MASKS) or _combined(folder, files) is not None


def _combined(folder: Path, files: FileIndex) -> Path | None:
    """The label map of all structures of a case, in any format of a volume."""
    found = [path for path in files.volume_files(folder) if volume_stem(path).lower() == _COMBINED]
    return found[0] if found else None


def _one_mask_a_class(
    masks: dict[str, list[Path]], classes: ClassTable, case: str
) -> tuple[Label | None, tuple[str, ...] | None]:
    """The masks of the classes, and which these are where some are missing; no label for a case without any mask.

    Raises:
        DatasetError: several masks of one class, masks of other structures alone, or one of voxels to be ignored.
    """
    if not masks:
        return None, None
    remedy = "move it away, or write label maps (combined_labels.nii.gz) and their values into labels.json"
    refuse_ignore_mask({name: paths[0] for name, paths in masks.items()}, remedy, case)
    structures = list(enumerate(classes.names))[1:]
    label = tuple((index, only_file(masks[name], case)) for index, name in structures if name in masks)
    if not label:
        others = some_of(sorted(masks), 5)
        raise DatasetError(
            "dataset", next(iter(masks.values()))[0].parent, "a mask of one of the classes", f"masks of {others}",
            "add them, correct their names, or remove the case", case,
        )  # fmt: skip
    if len(label) == len(structures):
        return label, None
    return label, tuple(name for _, name in structures if name in masks)


def _without_mask(
    masks: Mapping[str, Collection[str]], rows: Sequence[Row], classes: ClassTable, request: Request
) -> tuple[DatasetError, ...]:
    """A warning that counts the cases without a mask of a structure, and says what that is taken for."""
    cases = [row.id for row in rows if isinstance(row.label, tuple)]
    lacking = {name: [case for case in cases if name not in masks[case]] for name in classes.names[1:]}
    lines = [f"{name} in {len(of)} of {len(cases)} cases ({some_of(of, 3)})" for name, of in lacking.items() if of]
    if not lines:
        return ()
    expected = "a mask of every structure in every case, as TotalSegmentator writes them, empty where there is nothing"
    if request.missing_masks == "absent":
        found = f"no mask, which means absent from the body (data.missing_masks absent): {some_of(lines, 6)}"
        remedy = "nothing, if that is so; else set data.missing_masks to not_annotated"
    else:
        found = f"no mask, which means not annotated, neither trained nor scored there: {some_of(lines, 6)}"
        remedy = "nothing, if that is so; where a structure is not in the body, set data.missing_masks to absent"
    return (DatasetError("missing_masks", request.root, expected, found, remedy),)


def _refuse_masks_of_background(masks: Mapping[str, Collection[str]], classes: ClassTable, root: Path) -> None:
    """Refuse a class 0 that is a structure: its masks would be passed over."""
    background = classes.names[0]
    held = [case for case, of_case in masks.items() if background in of_case]
    if held and background.lower() != "background":
        raise DatasetError(
            "dataset", root, "class 0 to be the background", f"{background!r}, of which case {held[0]} has a mask",
            'put "background" in front of the class names',
        )  # fmt: skip


class _Meta(NamedTuple):
    """What meta.csv says of the cases, by image_id; `rows` is None where there is no such file."""

    path: Path
    rows: dict[str, dict[str, str]] | None

    def of(self, case: str) -> dict[str, str]:
        """The case's row. Raises DatasetError where the file has none."""
        if self.rows is None:
            return {}
        if case not in self.rows:
            raise DatasetError(
                "dataset", self.path, "a row for every case", "none", "add it or move the folder away", case
            )
        return self.rows[case]

    def without_folder(self, folders: Collection[str]) -> tuple[DatasetError, ...]:
        """A warning that names the cases of the file that have no folder; none where every one has."""
        missing = [case for case in self.rows or {} if case and case not in folders]
        if not missing:
            return ()
        found = f"none for {len(missing)} of {len(self.rows or {})}: {some_of(missing, 5)}"
        remedy = "nothing, if they were left out on purpose"
        return (DatasetError("missing_case", self.path, "a folder for every case in it", found, remedy),)


def _read_meta(request: Request) -> _Meta:
    path = request.root / "meta.csv"
    if not request.files.is_file(path):
        return _Meta(path, None)
    table = read_csv(path)
    columns = list(table[0].cells) if table else []
    if "image_id" not in columns:
        found = f"{columns}" if columns else "no rows"
        raise DatasetError("dataset", path, "a column image_id", found, "name the column of the case folders image_id")
    lines: dict[str, int] = {}
    for row in table:
        case = row.cells["image_id"]
        if case and case in lines:
            found, remedy = f"lines {lines[case]} and {row.line}", "keep the line that is true"
            raise DatasetError("dataset", path, "one line for every image_id", found, remedy, case)
        lines[case] = row.line
    return _Meta(path, {row.cells["image_id"]: row.cells for row in table})


def _subject(said: dict[str, str]) -> str | None:
    return parse_name(said.get("subject")) or parse_name(said.get("subject_id"))
