"""Which files a segmented case becomes, and writing them. The formats themselves are `segmentation_*`'s.

OUTPUT/CASE.nii.gz | CASE.seg.nrrd | CASE.dcm         the label map, one file a format
OUTPUT/CASE/segmentations/<structure>.nii.gz          per structure, as TotalSegmentator has them
OUTPUT/CASE/probabilities/<class>.nii.gz              of named classes
OUTPUT/CASE.png                                       preview
OUTPUT/labels.ctbl                                    class names and colours of all the cases, for 3D Slicer
OUTPUT/CASE.json                                      what was done; written last, so that it marks a finished case
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.files.atomic import FileError, remove_durably, remove_half_written, write_error
from pipeline.files.json_files import read_json
from pipeline.writers.colour_table import colour_table, write_colour_table
from pipeline.writers.dicom_seg import check_series, write_dicom_seg
from pipeline.writers.nifti import write_mask, write_nifti, write_probabilities
from pipeline.writers.seg_nrrd import write_seg_nrrd
from pipeline.writers.segmentation import Segmentation, SegmentationError, file_names

WRITERS = {"nifti": write_nifti, "nrrd": write_seg_nrrd, "dicom": write_dicom_seg}
SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".seg.nrrd", "dicom": ".dcm"}
FORMATS = tuple(WRITERS)


@dataclass(frozen=True)
class Wanted:
    """What shall be written for every case: `probabilities` are class indices, `per_structure` one mask a class."""

    folder: Path
    class_names: tuple[str, ...]
    formats: tuple[str, ...] = ("nifti",)
    per_structure: bool = False
    probabilities: tuple[int, ...] = ()
    preview: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not (self.formats or self.per_structure):
            raise SegmentationError(f"formats: expected some of {', '.join(FORMATS)}, found {unknown or 'none'}")

    def label_files(self, case: str) -> dict[str, Path]:
        """Format -> file of the label map."""
        return {name: self.folder / f"{case}{SUFFIXES[name]}" for name in self.formats}

    def mask_files(self, case: str) -> dict[int, Path]:
        """Class index -> file of its mask, for every class but the background."""
        names = file_names(self.class_names)
        folder = self.folder / case / "segmentations"
        return {c: folder / f"{names[c]}.nii.gz" for c in range(1, len(names))} if self.per_structure else {}

    def probability_files(self, case: str) -> dict[int, Path]:
        """Class index -> file of its probabilities."""
        names = file_names(self.class_names)
        return {c: self.folder / case / "probabilities" / f"{names[c]}.nii.gz" for c in self.probabilities}

    def preview_file(self, case: str) -> Path:
        """The picture of three planes."""
        return self.folder / f"{case}.png"

    def record_file(self, case: str) -> Path:
        """The JSON that says what was done, and that all the others are there."""
        return self.folder / f"{case}.json"

    @property
    def table_file(self) -> Path:
        """Class names and colours; one for the folder, as all its cases have the same classes."""
        return self.folder / "labels.ctbl"

    def files(self, case: str) -> list[Path]:
        """Every file but the record."""
        found = [*self.label_files(case).values(), *self.mask_files(case).values()]
        found += self.probability_files(case).values()
        return [*found, self.preview_file(case)] if self.preview else found


def check_formats(source: Path, source_kind: str, wanted: Wanted) -> None:
    """Raise SegmentationError for a format that a source does not allow, before anything is written."""
    if "dicom" in wanted.formats:
        check_series(source, source_kind)


def make_room(case: str, wanted: Wanted) -> None:
    """Remove a case's earlier record and what a killed process had begun to write of it.

    The record goes first, for good: from now on until the new one is there the case counts as unfinished, so that a
    failure or kill between two files leaves none of them under a record that was not made of it. Raises FileError.
    """
    remove_durably(wanted.record_file(case))
    for path in [*wanted.files(case), wanted.record_file(case)]:
        remove_half_written(path)


def write_files(
    segmentation: Segmentation, probabilities: Mapping[int, NDArray[np.uint8]], case: str, wanted: Wanted
) -> None:
    """Write a case's label maps, masks and probabilities, each whole or not at all.

    Raises SegmentationError for a format that the source does not allow, FileError if the disk refuses.
    """
    # DICOM first: it alone may find only while it is made that the source does not allow it.
    for name, path in sorted(wanted.label_files(case).items(), key=lambda item: item[0] != "dicom"):
        WRITERS[name](segmentation, _ready(path))
    for c, path in wanted.mask_files(case).items():
        write_mask(segmentation, [c], _ready(path))
    for c, path in wanted.probability_files(case).items():
        write_probabilities(segmentation, probabilities[c], _ready(path))


def check_table(wanted: Wanted, cases: Collection[str], *, overwrite: bool = False) -> None:
    """Raise SegmentationError if the folder holds label maps of other classes: any, or with `overwrite` any of cases
    that are not among those to be done again. One colour table serves the folder."""
    path = wanted.table_file
    found = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if found == colour_table(wanted.class_names):
        return
    if found is not None and not overwrite:
        raise SegmentationError(
            f"{path}: this folder holds segmentations with other classes; choose another --output or --overwrite"
        )
    for record in sorted(wanted.folder.glob("*.json")):
        if record.stem not in cases and _class_names(record) not in (None, [*wanted.class_names]):
            raise SegmentationError(
                f"{record}: case {record.stem} was segmented with other classes and is not among these scans, so that "
                "--overwrite would give its values other names; choose another --output or remove its files"
            )


def _class_names(record: Path) -> list[Any] | None:
    """The class names of a case's record; None where the file is none (metrics.json, say)."""
    try:
        document = read_json(record)
    except FileError:
        return None
    classes = document.get("classes")
    if document.get("case") != record.stem or not isinstance(classes, list):
        return None
    return [one.get("name") if isinstance(one, dict) else one for one in classes]


def write_table(wanted: Wanted, *, replace: bool) -> None:
    """Make the folder and its colour table; one of other classes is replaced only where `replace` says so.

    Raises FileError if the disk refuses.
    """
    path, table = wanted.table_file, colour_table(wanted.class_names)
    found = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if found is None or (replace and found != table):
        write_colour_table(wanted.class_names, _ready(path))


def check_no_source_is_overwritten(cases: Mapping[str, Sequence[Path]], wanted: Wanted) -> None:
    """Raise SegmentationError where an output would take the place of one of the inputs (case -> its image files)."""
    sources = {path.resolve() for paths in cases.values() for path in paths}
    for case in cases:
        for path in [*wanted.files(case), wanted.record_file(case)]:
            if path.resolve() in sources:
                raise SegmentationError(f"{path} is an input; choose another --output, it would be overwritten")


def _ready(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    return path
