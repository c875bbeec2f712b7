"""Read the TotalSegmentator and AbdomenAtlas layout: a folder a case, a mask a structure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.console.text import some_of
from pipeline.datasets.class_table import ClassTable, find_table
from pipeline.datasets.csv_table import read_csv
from pipeline.datasets.dataset import Label
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.rows import Listing, Request, Row, by_name, collect, only_file, parse_name, parse_split
from transforms.io.load import volume_stem

_IMAGE_NAMES = ("ct", "mri", "mr")
_COMBINED = "combined_labels.nii.gz"


def read_totalsegmentator(request: Request) -> Listing:
    """Read CASE/ct.nii.gz or mri.nii.gz with CASE/segmentations/STRUCTURE.nii.gz (TotalSegmentator, AbdomenAtlas).

    Classes are the structures' names, sorted, over all cases, or those of the settings, labels.json or
    class_names.json, in their order; masks beyond these are passed over. CASE/combined_labels.nii.gz is read instead
    of the masks where no case has any, or where labels.json or class_names.json says what its values mean
    ({"liver": 5}; a bare list only orders the masks). meta.csv (";" or ",") gives image_id and split, and the subject
    where it has such a column. Folders with masks and no image are named, and so are cases of meta.csv without one.

    Raises:
        DatasetError: meta.csv or the table of classes cannot be read, or nothing names a structure.
    """
    folders = {folder.name: folder for folder in request.files.folders(request.root)}
    scans = {case: scans for case, folder in folders.items() if (scans := find_scans(folder, request.files))}
    modalities = {volume_stem(path).upper().replace("MRI", "MR") for paths in scans.values() for path in paths}
    channel_names = (modalities.pop() if len(modalities) == 1 else "image",)
    problems: list[DatasetError] = []
    if request.images_only:
        rows = collect(lambda case: Row(case, (only_file(scans[case], case),), None), scans, problems)
        return Listing(tuple(rows), None, channel_names, tuple(problems))
    segmented = [case for case, folder in folders.items() if case in scans or is_segmented(folder, request.files)]
    masks = {case: by_name(request.files.volume_files(folders[case] / "segmentations")) for case in segmented}
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
        combined = folders[case] / _COMBINED
        label: Label | None
        if request.files.is_file(combined) and (states_values or not structures):
            label = combined
        elif request.files.is_file(combined) and not masks[case]:
            remedy = 'add the masks, or write labels.json with the values ({"liver": 5, …})'
            raise DatasetError(
                "dataset", combined, "masks, as other cases have, or a table of values", "neither", remedy, case
            )
        else:
            label = _one_mask_a_class(masks[case], classes, case)
        image = (only_file(scans[case], case),) if case in scans else ()
        said = meta.of(case) if image else {}
        return Row(case, image, label, parse_split(said.get("split"), case, meta.path), _subject(said))

    rows = collect(row, segmented, problems)
    return Listing(tuple(rows), classes, channel_names, tuple(problems), meta.without_folder(folders))


def find_scans(folder: Path, files: FileIndex) -> list[Path]:
    """Return the images of a TotalSegmentator case folder; more than one are too many."""
    return [path for path in files.volume_files(folder) if volume_stem(path) in _IMAGE_NAMES]


def is_segmented(folder: Path, files: FileIndex) -> bool:
    """Say whether a case folder holds masks or a label map."""
    return files.is_folder(folder / "segmentations") or files.is_file(folder / _COMBINED)


def _one_mask_a_class(masks: dict[str, list[Path]], classes: ClassTable, case: str) -> Label | None:
    """The masks of the classes; None for a case without any mask. Raises DatasetError for too few or too many."""
    if not masks:
        return None
    missing = [name for name in classes.names[1:] if name not in masks]
    if missing:
        raise DatasetError(
            "dataset", "", f"a mask for each of {len(classes.names) - 1} structures", f"none for {missing[:5]}",
            "write an empty mask where it is absent from the body, or leave the class out of data.class_names", case,
        )  # fmt: skip
    return tuple((index, only_file(masks[name], case)) for index, name in enumerate(classes.names) if index > 0)


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
