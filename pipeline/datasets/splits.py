"""Dividing cases into train, validation and test by subject, rare classes spread. Pure: opens no file."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from pipeline.datasets.dataset import Case, DatasetError, Split

SIDES = ("train", "val", "test")


def split_by_subject(
    cases: Sequence[Case],
    *,
    seed: int,
    classes_of: Mapping[str, Collection[int]] | None = None,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Split:
    """Divide cases into train, validation and test so that no subject is on two sides.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011) over subjects: the rarest class is dealt out first,
    each subject to the side that lacks it most. Beyond the paper, a class that two subjects hold reaches train *and*
    validation as long as these have room, and sizes are kept to the rounded fractions (whole subjects allowing).
    Validation gets at least one subject; held-out cases form the test side, and the others share its part.

    Args:
        cases: all cases; their order does not matter.
        seed: decides among equals; the same seed gives the same split on every machine.
        classes_of: for each case id the class indices it holds; without it the division is by size alone.
        fractions: shares of train, validation and test.

    Raises:
        DatasetError: fewer than two subjects to divide.
        ValueError: fractions that are negative or do not add up to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or min(fractions[:2]) == 0:
        raise ValueError(f"fractions: expected train and validation above 0 and a sum of 1, got {fractions}")
    held_out = {case.subject for case in cases if case.held_out}
    subjects: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.id):
        if case.subject not in held_out:
            subjects.setdefault(case.subject, []).append(case)
    if len(subjects) < 2:
        raise DatasetError(
            f"expected at least two subjects to divide into train and validation, found {len(subjects)} "
            f"({', '.join(subjects) or 'none'}); add cases or give the list a split column"
        )
    order = sorted(subjects)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda subject: -len(subjects[subject]))  # the large first, the small fill what is left
    room = _room(sum(map(len, subjects.values())), len(subjects), fractions, with_test=not held_out)
    side_of = _deal(order, subjects, classes_of or {}, room)
    _fill_empty_sides(side_of, order)
    side_of.update(dict.fromkeys(held_out, "test"))
    sides = {side: tuple(sorted(case.id for case in cases if side_of[case.subject] == side)) for side in SIDES}
    shares = "/".join(f"{100 * fraction:g}" for fraction in fractions)
    source = f"{shares} by subject, seed {seed}" + (", test cases as the data set holds them out" if held_out else "")
    return Split(**sides, source=source)


def _room(n_cases: int, n_subjects: int, fractions: tuple[float, float, float], *, with_test: bool) -> dict[str, int]:
    """Return how many cases each side should get."""
    train, val, test = fractions
    test = test if with_test and n_subjects > 2 else 0.0
    n_val = max(1, round(n_cases * val / (train + val + test)))
    n_test = round(n_cases * test)
    return {"train": n_cases - n_val - n_test, "val": n_val, "test": n_test}


def _deal(
    order: Sequence[str],
    subjects: Mapping[str, Sequence[Case]],
    classes_of: Mapping[str, Collection[int]],
    room: dict[str, int],
) -> dict[str, str]:
    """Deal the subjects out, those of the rarest class first; `room` counts down."""
    classes = {s: frozenset(int(c) for case in subjects[s] for c in classes_of.get(case.id, ())) for s in order}
    waiting = Counter(c for held in classes.values() for c in held)
    shares = {side: room[side] / sum(room.values()) for side in SIDES}
    wanted: dict[int | None, dict[str, float]] = {c: _wanted(waiting[c], shares) for c in waiting}
    wanted[None] = dict.fromkeys(SIDES, 0.0)
    side_of: dict[str, str] = {}
    while len(side_of) < len(order):
        rarest = min((c for c in waiting if waiting[c]), key=lambda c: (waiting[c], c), default=None)
        for subject in [s for s in order if s not in side_of and (rarest is None or rarest in classes[s])]:
            side = _neediest(room, wanted[rarest], len(subjects[subject]))
            side_of[subject] = side
            room[side] -= len(subjects[subject])
            waiting.subtract(classes[subject])
            for c in classes[subject]:
                wanted[c][side] -= 1
    return side_of


def _neediest(room: Mapping[str, int], wanted: Mapping[str, float], n_cases: int) -> str:
    """Return the side with room for the subject that wants its class most; then the one with most room."""
    return max(SIDES, key=lambda side: (room[side] >= n_cases, wanted[side] * (room[side] >= n_cases), room[side]))


def _wanted(n_subjects: int, shares: Mapping[str, float]) -> dict[str, float]:
    """Return how many of the subjects that hold a class each side should get: train and validation one at least."""
    if n_subjects < 2:
        return {"train": float(n_subjects), "val": 0.0, "test": 0.0}
    test = n_subjects * shares["test"] if n_subjects > 2 else 0.0
    val = max(1.0, n_subjects * shares["val"])
    return {"train": n_subjects - val - test, "val": val, "test": test}


def _fill_empty_sides(side_of: dict[str, str], order: Sequence[str]) -> None:
    """Move the smallest subject of the fullest side where train or validation went empty (few, large subjects)."""
    for side in ("train", "val"):
        if side not in side_of.values():
            sides = list(side_of.values())
            donor = max(SIDES, key=sides.count)
            side_of[next(subject for subject in reversed(order) if side_of[subject] == donor)] = side
