"""What a finding is, and how the one-line errors of the reading rooms become findings. Opens no file.

A finding says which case and file, what was expected, what was found and what to do. Errors make a training wrong or
impossible; warnings are worth a look.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.datasets.errors import DatasetError

Severity = Literal["error", "warning"]

_LINES = 100  # errors that a refusal names: more nobody reads on a terminal


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `case` is empty where it concerns the whole data set, `kind` is a word for programs."""

    severity: Severity
    kind: str
    case: str
    file: str
    expected: str
    found: str
    remedy: str

    def __str__(self) -> str:
        """The finding as one line."""
        where = ": ".join(part for part in (self.case and f"case {self.case}", self.file) if part)
        return f"{where}: expected {self.expected}, found {self.found}; {self.remedy}"


class BadDataError(DatasetError):
    """Data that must not be trained on: `lines` has one for every error and one that sums up."""


# A message of transforms.load or pipeline.cases -> its kind, and what it means where the message does not spell it out.
_KINDS: tuple[tuple[str, str, str, str], ...] = (
    (r"expected a label beside", "missing_label", "a label", "add the label or remove the image"),
    (r"expected an image beside", "missing_image", "an image", "add the image or remove the label"),
    (r"no such file|does not exist", "missing_file", "a file", "copy it there or remove the case from the list"),
    (r"on two sides|in train and in val", "subject_on_both_sides", "every subject on one side", "correct the split"),
    (r"three axes|3-D volume|expected 3 axes", "not_3d", "a 3-D volume", "export one 3-D volume a file"),
    (r"left and right are unknown|no orientation", "no_orientation", "an orientation", "save it with its orientation"),
    (r"affine|quaternion", "bad_affine", "an affine that spans three dimensions", "repair the header"),
    (r"at the same place", "dicom_duplicate_slices", "one slice at a place", "remove the duplicates"),
    (r"not evenly spaced.* missing\?", "dicom_missing_slices", "every slice of the series", "export the series again"),
    (r"not evenly spaced", "dicom_uneven_slices", "evenly spaced slices", "export the series again"),
    (r"sheared", "dicom_gantry_tilt", "an upright stack of slices", "resample it to an upright volume"),
    (r"expected one series|in a series, found", "dicom_mixed_series", "one series in a folder", "separate the series"),
    (r"slices, found", "dicom_too_few_slices", "at least two slices", "name the folder that holds the series"),
    (r"grey-scale|real number a voxel", "not_grey_scale", "one number a voxel", "export a grey-scale volume"),
)
_UNREADABLE = ("unreadable", "a whole, readable volume", "copy or export it again")
_UNUSABLE = ("dataset", "a data set that can be used", "correct it as the message says")


def from_volume_error(error: ValueError, *, case: str, file: Path) -> Finding:
    """Turn a VolumeError about `file` (or, for a DICOM folder, about one file in it) into an error finding."""
    text, named = str(error), str(file)
    if text.startswith(f"{named}: "):
        text = text.removeprefix(f"{named}: ")
    elif text.startswith(named) and ": " in text:
        named, text = text.split(": ", 1)
    return _parsed(text, case, named, _UNREADABLE)


def from_dataset_error(error: DatasetError, *, root: Path) -> Finding:
    """Turn a DatasetError of one part into an error finding about the case it names, else about the data set."""
    if not hasattr(error, "_text"):
        where = error.where or str(root)
        return Finding("error", error.kind, error.case, where, error.expected, error.found, error.remedy)
    text, file, case = str(error), str(root), ""
    if named := re.match(r"case (.+?): (.+)", text):
        case, text = named[1], named[2]
    if (before := text.split(": ", 1))[0].startswith(str(root)) and len(before) == 2:
        file, text = before
    return _parsed(text, case, file, _UNUSABLE)


def _parsed(text: str, case: str, file: str, otherwise: tuple[str, str, str]) -> Finding:
    known = next((entry[1:] for entry in _KINDS if re.search(entry[0], text)), otherwise)
    kind, expected, remedy = known
    before, _, last = text.rpartition("; ")
    if before and not re.match(r"(it|the header) is ", last):  # a diagnosis is part of what was found
        text, remedy = before, last
    found = text
    if parts := re.match(r"(?:.*?: )??expected (.+?), found (.+)", text):
        expected, found = parts[1], parts[2]
    elif parts := re.match(r"(.+), expected (.+?)((?:; .*)?)$", text):
        expected, found = parts[2], parts[1] + parts[3]
    return Finding("error", kind, case, file, expected, found, remedy)


def errors(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings that forbid a training."""
    return tuple(finding for finding in findings if finding.severity == "error")


def refuse_errors(findings: Iterable[Finding], remedy: str) -> None:
    """Raise BadDataError with a line for each error among the findings and one that sums up and ends in `remedy`.

    Does nothing where there is no error.
    """
    wrong = errors(findings)
    if not wrong:
        return
    cases = {finding.case for finding in wrong if finding.case}
    more = [f"and {len(wrong) - _LINES} more errors; bodyseg check lists all"] if len(wrong) > _LINES else []
    total = f"{len(wrong)} {'error' if len(wrong) == 1 else 'errors'} in the data"
    where = f" in {len(cases)} {'case' if len(cases) == 1 else 'cases'}" if cases else ""
    lines = [*(str(finding) for finding in wrong[:_LINES]), *more, f"{total}{where}; {remedy}"]
    raise BadDataError.all_of([BadDataError(line) for line in lines])
