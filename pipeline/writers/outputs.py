"""Choose which files a segmented case becomes, and write them.

OUTPUT/CASE.nii.gz | CASE.seg.nrrd | CASE.dcm         the label map, one file a format
OUTPUT/CASE/segmentations/<structure>.nii.gz          one mask a structure, as TotalSegmentator has them
OUTPUT/CASE/probabilities/<class>.nii.gz              of named classes
OUTPUT/CASE.png                                       preview
OUTPUT/labels.ctbl                                    class names and colours of all the cases, for 3D Slicer
OUTPUT/CASE.json                                      what was done; written last, so that it marks a finished case
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files.atomic import FileError, make_folder, remove_half_written, write_atomically
from pipeline.files.json_files import read_json
from pipeline.files.lock import alone
from pipeline.files.regular import read_regular
from pipeline.writers.colour_table import colour_table
from pipeline.writers.nifti import write_mask, write_nifti, write_probabilities
from pipeline.writers.preview import write_preview
from pipeline.writers.seg_nrrd import write_seg_nrrd
from pipeline.writers.segmentation import Segmentation, SegmentationError, file_names, values_of

SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".seg.nrrd", "dicom": ".dcm"}
"""Format of a label map -> how its file's name ends."""

FORMATS = tuple(SUFFIXES)

_LARGEST_TABLE = 64 << 20
"""Bytes of a colour table; a line a class takes far less."""


class OutputFile(NamedTuple):
    """One file of a segmented case."""

    kind: Literal["nifti", "nrrd", "dicom", "mask", "probabilities", "preview"]
    """A label map in one of the formats, or what else the file holds."""
    path: Path
    class_index: int = 0
    """Of a mask or of probabilities: whose."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written for every case. Raises SegmentationError for unknown formats or where nothing is written."""

    folder: Path
    """Where all files go; made when the first one is written."""
    class_names: tuple[str, ...]
    """Background first."""
    label_values: tuple[int, ...] = ()
    """Value of each class in the label maps; () for the class indices."""
    formats: tuple[str, ...] = ("nifti",)
    """Of `FORMATS`."""
    per_structure: bool = False
    """Also one mask a class but the background."""
    probabilities: tuple[int, ...] = ()
    """Indices of classes whose probabilities are written, too."""
    preview: bool = False
    """Also a picture of three planes."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not (self.formats or self.per_structure):
            found = ", ".join(unknown) or "none"
            raise SegmentationError(f"formats: expected some of {', '.join(FORMATS)}, found {found}")

    def files(self, case: str) -> list[OutputFile]:
        """List every file of a case but its record, in the order of writing."""
        names = file_names(self.class_names)
        found = [OutputFile(name, self.label_map(case, name)) for name in self.formats]  # type: ignore[arg-type]
        if self.per_structure:
            masks = self.folder / case / "segmentations"
            found += [OutputFile("mask", masks / f"{names[c]}.nii.gz", c) for c in range(1, len(names))]
        chances = self.folder / case / "probabilities"
        found += [OutputFile("probabilities", chances / f"{names[c]}.nii.gz", c) for c in self.probabilities]
        if self.preview:
            found.append(OutputFile("preview", self.folder / f"{case}.png"))
        return found

    def files_there(self, case: str) -> list[Path]:
        """List what lies in the folder under the names of a case's files, whichever options wrote it; no links."""
        found = [*(self.label_map(case, name) for name in FORMATS), self.folder / f"{case}.png"]
        for name in ("segmentations", "probabilities"):
            found += sorted((self.folder / case / name).glob("*.nii.gz"))
        inside = self.folder.resolve()
        return [path for path in found if path.is_file() and path.resolve() == inside / path.relative_to(self.folder)]

    def label_map(self, case: str, format_name: str) -> Path:
        """The file of a case's label map in one of `FORMATS`."""
        return self.folder / f"{case}{SUFFIXES[format_name]}"

    def record_file(self, case: str) -> Path:
        """The JSON file that says what was done; it marks a finished case."""
        return self.folder / f"{case}.json"

    def lock_file(self, case: str) -> Path:
        """Held by the process that works on a case."""
        return self.folder / f".{case}.lock"

    @property
    def table(self) -> str:
        """The text of `table_file`."""
        return colour_table(self.class_names, self.label_values)

    @property
    def table_file(self) -> Path:
        """Class names and colours; one for the folder, as all its cases have the same classes."""
        return self.folder / "labels.ctbl"


def refused_formats(source: Path, source_kind: str, options: OutputOptions) -> dict[str, str]:
    """Say which of the formats a source does not allow, and why; read from its headers, before anything is computed."""
    if "dicom" in options.formats:
        from pipeline.writers.dicom_seg import check_series  # highdicom takes a second to import

        try:
            check_series(source, source_kind)
        except SegmentationError as error:
            return {"dicom": str(error)}
    return {}


def write_files(
    segmentation: Segmentation,
    files: Sequence[OutputFile],
    *,
    probabilities: Mapping[int, NDArray[np.uint8]],
    is_ct: bool = False,
) -> Iterator[tuple[OutputFile, str, list[str]]]:
    """Write files of one case, each whole or not at all.

    Args:
        segmentation: the label map on its source's grid.
        files: what to write, as `OutputOptions.files` lists it.
        probabilities: (I, J, K) uint8 by class index, 255 for certain; of every class that `files` names.
        is_ct: whether the source holds HU, for the window of a preview.

    Yields:
        Each file once it is written, with "", or with the reason why not: DICOM may find only now that the source does
        not allow it; and what of the source's headers was repaired for it, in words.

    Raises:
        FileError: the disk refuses. VolumeError: a preview finds that the source can no longer be read.
    """
    for file in files:
        kind, path, class_index = file
        refused = ""
        repairs: list[str] = []
        make_folder(path.parent)
        if kind == "nifti":
            write_nifti(segmentation, path)
        elif kind == "nrrd":
            write_seg_nrrd(segmentation, path)
        elif kind == "dicom":
            from pipeline.writers.dicom_seg import write_dicom_seg  # highdicom takes a second to import

            try:
                repairs = write_dicom_seg(segmentation, path)
            except SegmentationError as error:
                refused = str(error)
        elif kind == "mask":
            write_mask(segmentation, class_index, path)
        elif kind == "probabilities":
            write_probabilities(segmentation, probabilities[class_index], path)
        else:
            write_preview(segmentation, path, is_ct=is_ct)
        yield file, refused, repairs


def check_table(options: OutputOptions, cases: Collection[str], *, overwrite: bool = False) -> str | None:
    """Refuse a folder that holds label maps of other classes: one colour table serves the folder.

    Args:
        options: the folder and its classes.
        cases: ids of the cases that are segmented now.
        overwrite: the results of `cases` may have other classes, since they are made again.

    Returns:
        The folder's colour table; None where there is none yet.

    Raises:
        SegmentationError: the folder's table has other classes or values, or a case that is not made again has.
    """
    path = options.table_file
    found = _table_text(path)
    if found == options.table:
        return found
    if found is not None and not overwrite:
        raise SegmentationError(
            f"{path}: this folder holds segmentations with other classes; choose another --output or --overwrite"
        )
    values = values_of(options.class_names, options.label_values).tolist()
    expected = list(zip(values, options.class_names, strict=True))
    for record in sorted(options.folder.glob("*.json")):
        if record.stem not in cases and _classes(record) not in (None, expected):
            raise SegmentationError(
                f"{record}: case {record.stem} was segmented with other classes and is not among these scans, so that "
                "--overwrite would give its values other names; choose another --output or remove its files"
            )
    return found


def write_table(options: OutputOptions, before: str | None, *, replace: bool) -> None:
    """Make the folder and its colour table, if it has none.

    Args:
        options: the folder and its classes.
        before: the table that `check_table` found: another process may have written one since.
        replace: also replace `before` by the table of other classes.

    Raises:
        SegmentationError: another process has written the table of other classes. FileError: the disk refuses.
    """
    make_folder(options.folder)
    with alone(options.folder / f".{options.table_file.name}.lock"):
        if not replace:  # once a batch, not for every case
            remove_half_written(options.table_file)
        found = _table_text(options.table_file)
        if found == options.table or (found == before is not None and not replace):
            return
        if found != before:
            raise SegmentationError(
                f"{options.table_file}: another process has begun to write results with other classes or label values "
                "into this folder; choose another --output"
            )
        write_atomically(options.table_file, lambda stream: stream.write(options.table.encode()))


def _table_text(path: Path) -> str | None:
    try:
        return read_regular(path, _LARGEST_TABLE).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SegmentationError(
            f"{path}: cannot be read ({error.strerror or error}); remove it or choose another --output"
        ) from error


def _classes(record: Path) -> list[tuple[Any, Any]] | None:
    """Value and name of the classes of a case's record; None where the file is not one (metrics.json, say)."""
    try:
        document = read_json(record)
    except FileError:
        return None
    classes = document.get("classes")
    if document.get("case") != record.stem or not isinstance(classes, list):
        return None
    return [(one.get("value"), one.get("name")) if isinstance(one, dict) else (None, one) for one in classes]


def check_no_source_is_overwritten(cases: Mapping[str, Sequence[Path]], options: OutputOptions) -> None:
    """Raise SegmentationError where an output would replace one of the inputs (case -> its image files)."""
    sources = {path.resolve() for paths in cases.values() for path in paths}
    for case in cases:
        for path in [*(file.path for file in options.files(case)), options.record_file(case)]:
            if path.resolve() in sources:
                raise SegmentationError(f"{path} is an input; choose another --output, it would be overwritten")
