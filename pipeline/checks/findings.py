"""What a finding is, and what a refusal of bad data says. Opens no file.

A finding says which case and file, what was expected, what was found and what to do. Errors make a training wrong or
impossible; warnings are worth a look.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.console.text import first_lines
from pipeline.datasets.errors import DatasetError
from transforms.io.errors import InputError, sentence

Severity = Literal["error", "warning"]

_LINES = 100  # errors that a refusal names: more nobody reads on a terminal


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
    total = f"{len(wrong)} {'error' if len(wrong) == 1 else 'errors'} in the data"
    where = f" in {len(cases)} {'case' if len(cases) == 1 else 'cases'}" if cases else ""
    raise BadDataError(wrong, f"{total}{where}; {remedy}")
