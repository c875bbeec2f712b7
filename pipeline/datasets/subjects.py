"""Find out whose scan a case is, and which cases look like several scans of one subject. Opens no file."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from pipeline.console.text import some_of
from pipeline.datasets.errors import DatasetError

_WORDS = (
    r"t|tp|timepoint|time|v|vis|visit|s|ses|sess|session|scan|fu|followup|follow-up|day|d|week|w|month|mo|m|year|yr|y|"
    r"exam|study|date"
)
_VISIT = re.compile(
    rf"(?P<subject>.*[A-Za-z0-9])(?P<between>[_. -]?)(?P<word>(?<![A-Za-z])(?:{_WORDS}))(?P<join>[_-]?)(?P<number>\d+)",
    re.IGNORECASE,
)
"""pat0_t0, pat0_v1, P07-visit2, p1_ses-02, A12_month06."""
_NAMED_VISIT = re.compile(
    r"(?P<subject>.*[A-Za-z0-9])[_. -](?P<number>baseline|screening|followup|follow-up|pre|post|preop|postop)",
    re.IGNORECASE,
)
"""pat0_baseline, pat0_post."""
_DATE = re.compile(r"(?P<subject>.*[A-Za-z0-9])[_. -](?P<number>(19|20)\d{2}[_.-]?\d{2}[_.-]?\d{2})")
"""pat0_20240131, pat0_2024-01-31."""
_NUMBER = re.compile(r"(?P<subject>.*\d)(?P<between>[_.-])(?P<number>\d{1,5})")
"""pat0_0800 and pat0_0801, BraTS-GLI-00005-000 and BraTS-GLI-00005-001: a number behind the number of the patient."""


_MOST_SCANS = 20
"""Of one subject, as a rule; more cases of one beginning are a data set's numbering."""


class SuspectedSubject(NamedTuple):
    """Cases that look like several scans of one subject."""

    name: str
    cases: tuple[str, ...]


def subject_by_pattern(case: str, pattern: str) -> str:
    r"""Return whose scan a case is by data.subject_pattern: the first group of the expression.

    Raises:
        DatasetError: the expression does not match the whole name, or its group is empty.

    >>> subject_by_pattern("pat0_t1", r"(.+)_t\d+")
    'pat0'
    """
    match = re.fullmatch(pattern, case)
    if match is None or not match[1]:
        raise DatasetError(
            "subject_pattern", "data.subject_pattern", f"names of cases that match {pattern!r}", "another name",
            r"extend the expression, as in '(.+?)(_t\d+)?' for names with and without a visit", case,
        )  # fmt: skip
    return match[1]


def suspect_subjects(cases: Iterable[str]) -> list[SuspectedSubject]:
    """Return the groups of cases whose names differ in a visit, a date or a second number alone.

    Nothing is suspected where the number is the case's: where all names have one beginning, or where more than a
    subject's scans have one in most groups or behind a beginning without a number ("train").

    >>> suspect_subjects(["pat0_t0", "pat0_t1", "pat1_t0", "amos_0001", "amos_0002"])
    [SuspectedSubject(name='pat0', cases=('pat0_t0', 'pat0_t1'))]
    """
    by_subject: dict[str, list[str]] = {}
    for case in cases:
        match = _visit_of(case)
        by_subject.setdefault(match["subject"] if match else case, []).append(case)
    several = {name: tuple(sorted(group)) for name, group in sorted(by_subject.items()) if len(group) > 1}
    large = [name for name, group in several.items() if len(group) > _MOST_SCANS]
    is_numbering = 2 * len(large) > len(several) or not all(re.search(r"\d", name) for name in large)
    if len(by_subject) < 2 or is_numbering:
        return []
    return [SuspectedSubject(name, group) for name, group in several.items()]


def _visit_of(case: str) -> re.Match[str] | None:
    for form in (_VISIT, _NAMED_VISIT, _DATE, _NUMBER):
        match = form.fullmatch(case)
        if match:
            return match
    return None


def suggest_pattern(suspected: Sequence[SuspectedSubject], cases: Sequence[str]) -> str | None:
    r"""Return a data.subject_pattern that gives exactly the suspected groups; None where no short one does.

    >>> suspected = suspect_subjects(["pat0_t0", "pat0_t1", "pat1_t0"])
    >>> suggest_pattern(suspected, ["pat0_t0", "pat0_t1", "pat1_t0"])
    '(.+)_t\\d+'
    """
    first = suspected[0]
    ends = [case[len(first.name) :] for case in first.cases]
    end = re.sub(r"\d+", r"\\d+", re.sub(r"([.\-])", r"\\\1", ends[0]))
    wanted = {case: group.name for group in suspected for case in group.cases}
    for pattern in (f"(.+){end}", f"(.+?)(?:{end})?"):
        matches = {case: re.fullmatch(pattern, case) for case in cases}
        if all(match and match[1] == wanted.get(case, match[1]) for case, match in matches.items()):
            return pattern
    return None


def suspicion(
    suspected: Sequence[SuspectedSubject], cases: Sequence[str], stated: Container[str], where: object
) -> DatasetError:
    """Return the warning about cases that look like scans of one subject but count as several.

    Args:
        suspected: the groups.
        cases: all cases.
        stated: cases whose subject the data set states.
        where: the data set.
    """
    groups = [f"{group.name} ({some_of(group.cases, 3)})" for group in suspected]
    pattern = suggest_pattern(suspected, cases)
    rule = f"data.subject_pattern (such as {pattern!r})" if pattern else "data.subject_pattern"
    remedy = f"say whose they are with {rule} or a subject column; nothing, if they are of different subjects"
    scans = [case for group in suspected for case in group.cases]
    unstated = [case for case in scans if case not in stated]
    if len(unstated) < len(scans):
        remedy = f"give every case its subject: none is stated for {some_of(unstated, 4)}"
    return DatasetError(
        "suspected_subjects", where, "scans of one subject to have one subject, so that a split keeps them together",
        f"{len(suspected)} groups of cases that look like scans of one subject: {some_of(groups, 4)}",
        remedy,
    )  # fmt: skip
