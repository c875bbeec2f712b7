"""What a finding is, and what a refusal of bad data says. Opens no file.

A finding says which case and file, what was expected, what was found and what to do. Errors make a training wrong or
impossible; warnings are worth a look.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.console.text import counted, first_lines
from pipeline.datasets.errors import DatasetError
from transforms.io.errors import InputError, sentence

Severity = Literal["error", "warning"]

_LINES = 100  # errors that a refusal names: more nobody reads on a terminal

_CASES_RECORDED = 20
"""Cases that a run's record names of each cause."""

_NUMBER = re.compile(r"(?<![\w/])[-+]?\d+(\.\d+)?(?![\w/])")
"""A number that stands alone: no part of a name or path."""

_COUNT = re.compile(r"\(\d+ voxels?\)")
"""How many voxels hold a value, behind the value."""

_NUMBERS_MATTER = frozenset({"label_unknown_values", "label_not_integral", "segment_values"})
"""Kinds of findings whose numbers are label values, which are a cause each."""

HEADINGS = {
    "unreadable": "Files that cannot be read whole",
    "missing_file": "Files that do not exist",
    "not_a_volume": "Files of another kind than volumes",
    "outside_folder": "Files that lie outside their folder",
    "missing_case": "Cases that are named but do not exist",
    "left_out": "Labelled images that are in no case",
    "missing_label": "Images without a label",
    "missing_image": "Labels without an image",
    "missing_masks": "Structures without a mask in some cases",
    "case_renamed": "Cases of several data sets under one name",
    "shared_subjects": "Subjects in several data sets",
    "channel_unnamed": "Channels without a name beside named ones",
    "similar_subjects": "Subjects that differ in spelling alone",
    "similar_names": "Names of classes that differ in spelling alone",
    "not_annotated": "Labels with voxels of classes that they do not annotate",
    "not_3d": "Files that are not a single 3-D volume",
    "wrong_channels": "Images of another number of channels",
    "not_grey_scale": "Files with more than one number a voxel",
    "too_large": "Files that do not fit into memory",
    "no_orientation": "Files that do not say where left and right are",
    "bad_affine": "Files whose header does not say where the voxels lie",
    "grid_mismatch": "Files of one case on different voxel grids",
    "label_cropped": "Labels of a part of their image",
    "not_finite": "Images with NaN or infinite voxels",
    "far_fill_nan": "NaN that becomes a number far from the others",
    "nan_labelled": "NaN in labelled voxels",
    "label_not_integral": "Labels with values that are not whole numbers",
    "label_unknown_values": "Labels with values that belong to no class",
    "bad_rescale": "DICOM series whose values are unknown",
    "dicom_duplicate_slices": "DICOM series with slices at the same position",
    "dicom_missing_slices": "DICOM series with slices missing",
    "dicom_uneven_slices": "DICOM series with unevenly spaced slices",
    "dicom_gantry_tilt": "DICOM series with gantry tilt",
    "dicom_shifted_slice": "DICOM series with a slice out of line",
    "dicom_mixed_series": "DICOM folders with several series",
    "dicom_too_few_slices": "DICOM folders without a series",
    "suspected_subjects": "Cases that look like scans of one subject",
    "subject_pattern": "Names that data.subject_pattern does not match",
    "subject_in_two_splits": "Subjects in two splits",
    "voxels_in_two_splits": "The same volume in two splits",
    "voxels_of_two_subjects": "The same volume under two subjects",
    "dataset": "The data set itself",
    "setting": "Settings that do not fit the data set",
    "mask_channel": "Channels that are masks by their names",
    "label_in_channel": "Channels that show the label",
    "no_class_names": "Classes without names",
    "segment_values": "Labels whose header gives the classes other values",
    "segments": "Segmentations in several layers, or with impossible values",
    "equal_volumes": "The same volume twice",
    "class_absent": "Classes that are absent",
    "class_not_annotated": "Classes that no case of a split annotates",
    "constant_image": "Images without any contrast",
    "empty_label": "Labels without any structure",
    "odd_intensities": "Unusual intensities",
    "odd_spacing": "Unusual voxel sizes",
    "sform_qform": "Headers that describe two different positions",
    "sides_swapped": "Left and right exchanged",
    "sides_unknown": "Left and right are mirrored without a partner for every side",
    "channel_lost": "Channels of one value once they are scaled",
    "channel_squeezed": "Channels with hardly any contrast once they are scaled",
    "class_cut_off": "Classes beyond the range of intensities",
    "class_lost": "Classes too thin for the target size",
    "masks_overlap": "Masks that overlap",
    "label_axes": "Labels along other axes than their images",
    "sheared": "Sheared voxel grids",
    "disk": "Disk space for prepared cases",
    "memory": "Memory for training",
    "network": "The network",
    "step_failed": "A trial step of the training",
    "start_from": "Trained weights to start from",
}
"""What each kind of finding is called in the text."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or unusual."""

    severity: Severity
    kind: str
    """A word for programs, as `InputError.kind`."""
    case: str
    """The case's id; empty where the whole data set is concerned."""
    file: str
    """The file or folder."""
    expected: str
    found: str
    remedy: str

    def __str__(self) -> str:
        """The finding as one line."""
        return sentence(self.case, self.file, self.expected, self.found, self.remedy)


class BadDataError(DatasetError):
    """Data that must not be trained on: `lines` has one for every error and one that sums up."""

    def __init__(self, findings: Sequence[Finding], summary: str) -> None:
        first = findings[0]
        super().__init__(first.kind, first.file, first.expected, first.found, first.remedy, first.case)
        self.args = findings, summary
        self.findings = tuple(findings)
        self.summary = summary

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each error, the first hundred of them, and one that sums up."""
        lines = list(map(str, self.findings))
        return (*first_lines(lines, "and {} more errors; bodyseg check lists all", _LINES), self.summary)


def from_error(error: InputError, *, case: str = "", file: object = "") -> Finding:
    """Turn an error of reading or listing into an error finding.

    Args:
        error: what was raised.
        case: the case's id, where the error does not name one.
        file: the file or folder, where the error does not name one.
    """
    return Finding(
        "error", error.kind, error.case or case, error.where or str(file), error.expected, error.found, error.remedy
    )


def errors(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings that forbid a training."""
    return tuple(finding for finding in findings if finding.severity == "error")


def refuse_errors(findings: Iterable[Finding], remedy: str) -> None:
    """Refuse to go on where there are errors among the findings; `remedy` ends the line that sums up.

    Raises:
        BadDataError: a line for each error, and one that sums up.
    """
    wrong = errors(findings)
    if not wrong:
        return
    cases = {finding.case for finding in wrong if finding.case}
    where = f" in {counted(len(cases), 'case')}" if cases else ""
    raise BadDataError(wrong, f"{counted(len(wrong), 'error')} in the data{where}; {remedy}")


def by_cause(findings: Iterable[Finding]) -> list[tuple[Finding, ...]]:
    """Put findings together that say the same of several cases, in other numbers perhaps."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.kind, *_cause(finding)), []).append(finding)
    return [tuple(group) for group in groups.values()]


def _cause(finding: Finding) -> tuple[str, ...]:
    """What findings of one cause have in common: their words, and of label values the numbers, too."""
    left_out = _COUNT if finding.kind in _NUMBERS_MATTER else _NUMBER
    return tuple(left_out.sub("#", text) for text in (finding.expected, finding.found, finding.remedy))


def findings_document(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """What a run records of findings: an entry a cause, with its first finding and how many there are."""
    return [_recorded(group) for group in by_cause(findings)]


def _recorded(findings: Sequence[Finding]) -> dict[str, Any]:
    """The entry of one cause: a case with several files of it has as many findings, and is named and counted once."""
    first = findings[0]
    cases = list(dict.fromkeys(finding.case for finding in findings if finding.case))
    return {
        "severity": first.severity,
        "kind": first.kind,
        "n_findings": len(findings),
        "n_cases": len(cases),
        "cases": cases[:_CASES_RECORDED],
        "file": first.file,
        "expected": first.expected,
        "found": first.found,
        "numbers_differ": any(finding.found != first.found for finding in findings),
        "remedy": first.remedy,
    }
