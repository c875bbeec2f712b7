"""Find out whose scan a case is, and which cases look like several scans of one subject. Opens no file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.console.text import some_of
from pipeline.datasets.errors import DatasetError

_LONG_WORDS = (
    r"time[_. -]?point|time|visit|vis|session|sess|ses|scan|run|follow[_. -]?up|day|week|wk|month|mon|year|yr|exam|"
    r"study|series|acq|date|cycle|fraction|phase|stage|round"
)
_SHORT_WORDS = "t|tp|tpt|v|s|fu|fup|d|w|m|mo|y|ex|st|fx"
_NAMES = (
    r"(re)?(scan|test|plan|planning)|bl|base(line)?|sc|screen(ing)?|fu|fup|follow[_. -]?up|initial|first|second|third|"
    r"last|final|prior|current|before|after|"
    r"(pre|post|mid|intra)([_. -]?(op|rt|ct|tx|nac|treat(ment)?|surg(ery)?|therapy|contrast|interim))?"
)
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_DATES = (
    r"(19|20)\d\d[_.-]?\d\d[_.-]?\d\d([t_. -]?\d{4,6})?|\d\d[_.-]\d\d[_.-](19|20)\d\d|"
    r"\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])|"
    rf"(19|20)\d\d[_.-]?{_MONTH}[_.-]?\d\d|\d\d[_.-]?{_MONTH}[_.-]?(19|20)\d\d|(19|20)\d\d[.-](0[1-9]|1[0-2])$"
)
_VISIT = re.compile(
    rf"(?<![a-z0-9])(({_LONG_WORDS})[_. -]?(\d+|[a-z])|({_SHORT_WORDS})(\d+|[_-]\d\d?)|\d+(st|nd|rd|th|d|wk?|mo?|yr?)|"
    rf"{_NAMES}|{_DATES})(?![a-z0-9])([_-]\d{{1,3}}$)?|(?<=\d)({_LONG_WORDS}|{_SHORT_WORDS})\d+$",
    re.IGNORECASE,
)
"""What says which scan of a subject a name means: t0, visit_2, ses-01, 06m, 2nd, preRT, 2024-01-31, 31Jan2024;
at the end also behind a number (P07v2)."""
_FURTHER = re.compile(r"(?P<subject>.*\d)([_. -](\d{1,5}|[A-Za-z]\w{0,11})|[A-Za-z])")
"""A number, a word or a letter behind the number of the patient: pat0_0801, BraTS-GLI-00005-001, patient001_frame12,
P07_L, P07b."""
_GAPS = re.compile(r"[_. -]{2,}")
_MOST_ENDS = 6
"""Spellings of a visit that a suggested pattern lists; no one reads a longer one."""


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
            "extend the expression, as in '(.+?)(_t[0-9]+)?' for names with and without a visit", case,
        )  # fmt: skip
    return match[1]


def suspect_subjects(cases: Iterable[str]) -> list[SuspectedSubject]:
    """Return the groups of cases whose names differ in a visit, a date, or what follows the patient's number alone.

    Nothing is suspected where the number is the case's: where all names have one beginning, or where more than a
    subject's scans have one in most groups or behind a beginning without a number ("train").

    >>> suspect_subjects(["pat0_t0", "pat0_t1", "pat1_t0", "amos_0001", "amos_0002"])
    [SuspectedSubject(name='pat0', cases=('pat0_t0', 'pat0_t1'))]
    """
    by_subject: dict[str, list[str]] = {}
    for case in cases:
        by_subject.setdefault(_probable_subject(case), []).append(case)
    several = {name: tuple(sorted(group)) for name, group in sorted(by_subject.items()) if len(group) > 1}
    large = [name for name, group in several.items() if len(group) > _MOST_SCANS]
    is_numbering = 2 * len(large) > len(several) or not all(re.search(r"\d", name) for name in large)
    if len(by_subject) < 2 or is_numbering:
        return []
    return [SuspectedSubject(name, group) for name, group in several.items()]


def _probable_subject(case: str) -> str:
    """Return a name without its visits, wherever they stand; one without any up to the number of the patient.

    >>> _probable_subject("pat0_t1_ct"), _probable_subject("visit2_P07"), _probable_subject("patient001_frame12")
    ('pat0_ct', 'P07', 'patient001')
    """
    name = case
    for visit in reversed(list(_VISIT.finditer(case))):
        rest = _GAPS.sub("_", f"{name[: visit.start()]}_{name[visit.end() :]}").strip("_. -")
        # In front a visit's number may be the patient's (s0001_ct), unless the patient has one, too.
        if rest and (visit.start() > 0 or (re.search(r"[A-Za-z]", rest) and re.search(r"\d", rest))):
            name = rest
    further = _FURTHER.fullmatch(case) if name == case else None
    return further["subject"] if further else name


def suggest_pattern(suspected: Sequence[SuspectedSubject], cases: Sequence[str]) -> str | None:
    """Return a data.subject_pattern that gives exactly the suspected groups; None where no short one does.

    >>> suspected = suspect_subjects(["pat0_t0", "pat0_t1", "pat1_t0"])
    >>> suggest_pattern(suspected, ["pat0_t0", "pat0_t1", "pat1_t0"])
    '(.+)_t[0-9]+'
    """
    group_of = {case: group.name for group in suspected for case in group.cases}
    for number in ("[0-9]+", "[0-9]"):  # of any length, of the length that it has
        starts, ends = _around_subjects(group_of, number)
        start, end = _one_of(starts), _one_of(ends)
        if len(starts | ends) > _MOST_ENDS:
            return None
        for pattern in (f"{start}(.+){end}", f"(?:{start})?(.+)" if start else f"(.+?)(?:{end})?"):
            if _gives_groups(pattern, group_of, cases):
                return pattern
    return None


def _around_subjects(group_of: Mapping[str, str], number: str) -> tuple[set[str], set[str]]:
    """What stands in front of subjects in the names of their cases, and behind, as parts of a pattern."""
    starts, ends = set(), set()
    for case, subject in group_of.items():
        if case.endswith(subject) and not case.startswith(subject):
            starts.add(_any_number(case.removesuffix(subject), number))
        elif case != subject:
            n_equal = next((i for i, (a, b) in enumerate(zip(case, subject, strict=False)) if a != b), len(subject))
            kept = case[:n_equal].rstrip("_. -")
            ends.add(_any_number(case[len(kept) :], number))
    return starts, ends


def _gives_groups(pattern: str, group_of: Mapping[str, str], cases: Sequence[str]) -> bool:
    """Say whether a pattern gives the cases of a group one subject, and every other case one of its own."""
    matches = {case: re.fullmatch(pattern, case) for case in cases}
    pairs = {(match[1], group_of.get(case, f"case {case}")) for case, match in matches.items() if match}
    subjects, groups = {subject for subject, _ in pairs}, {group for _, group in pairs}
    return all(matches.values()) and len(subjects) == len(groups) == len(pairs)


def _any_number(text: str, number: str) -> str:
    """A part of a pattern that matches a text with any numbers in it; [0-9], since no quotes change its meaning."""
    digits = r"\d+" if number.endswith("+") else r"\d"
    return re.sub(digits, number, text.replace(".", "[.]"))


def _one_of(texts: Collection[str]) -> str:
    return next(iter(texts)) if len(texts) == 1 else f"(?:{'|'.join(sorted(texts))})" if texts else ""


def similar_subjects(subjects: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of subjects whose names differ in spelling alone: in case, blanks, or zeros before a number.

    >>> similar_subjects(["P07", "p7", "P70", "P 07"])
    [('P 07', 'P07', 'p7')]
    """
    groups: dict[str, set[str]] = {}
    for subject in subjects:
        plain = " ".join(unicodedata.normalize("NFKC", subject).casefold().split())
        plain = re.sub(r"(?<!\d) | (?!\d)", "", plain)  # "1 12" is not "11 2"
        groups.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", plain), set()).add(subject)
    return [tuple(sorted(names)) for names in groups.values() if len(names) > 1]


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
    rule = f"data.subject_pattern (such as '{pattern}')" if pattern else "data.subject_pattern"
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
