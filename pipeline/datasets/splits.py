"""Divide cases by subject into train, validation and test, or into folds, so that rare classes are spread."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from pipeline.datasets.dataset import SPLITS, Case, Folds, Split
from pipeline.datasets.errors import DatasetError


def split_by_subject(
    cases: Sequence[Case],
    *,
    seed: int,
    classes_of: Mapping[str, Collection[int]] | None = None,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Split:
    """Divide cases into train, validation and test so that no subject is in two of them.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011) over subjects: the rarest class is dealt out first,
    each subject to the split that lacks it most. Beyond the paper, a class that two subjects hold reaches train *and*
    validation as long as these are not full, and sizes are kept to the rounded fractions (whole subjects allowing).
    Validation gets at least one subject unless its fraction is 0; held-out cases form the test split, and the others
    share its part.

    Args:
        cases: all cases; their order does not matter.
        seed: decides among equals; the same seed gives the same split on every machine.
        classes_of: for each case id the class indices it holds; without it the division is by size alone.
        fractions: shares of train, validation and test; the last two may be 0.

    Raises:
        DatasetError: fewer than two subjects to divide, or none where all train.
        ValueError: fractions that are negative or do not add up to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise ValueError(f"fractions: expected train above 0 and a sum of 1, got {fractions}")
    held_out, subjects = _subjects(cases)
    validates = fractions[1] > 0
    if len(subjects) < 1 + validates:
        expected = "at least two subjects to divide into train and validation" if validates else "a subject to train on"
        found = f"{len(subjects)} ({', '.join(subjects) or 'none'})"
        raise DatasetError("dataset", "", expected, found, "add cases or give the list a split column")
    order = _shuffled(subjects, seed)
    capacity = _capacities(sum(map(len, subjects.values())), len(subjects), fractions, with_test=not held_out)
    split_of = _deal(order, subjects, classes_of or {}, capacity, _share_of_class)
    _fill_empty_splits(split_of, order, SPLITS, ("train", "val") if validates else ("train",))
    split_of.update(dict.fromkeys(held_out, "test"))
    shares = "/".join(f"{100 * fraction:g}" for fraction in fractions)
    source = f"{shares} by subject, seed {seed}" + (", test cases as the data set holds them out" if held_out else "")
    return Split.of_parts({case.id: split_of[case.subject] for case in cases}, source)


def fold_by_subject(
    cases: Sequence[Case],
    n_folds: int,
    *,
    seed: int,
    classes_of: Mapping[str, Collection[int]] | None = None,
) -> Folds:
    """Divide cases into folds for cross-validation, so that no subject is in two of them and every one validates once.

    Iterative stratification over subjects, as in `split_by_subject`: of each class, the rarest first, every fold gets
    its share of the subjects that hold it, as far as whole subjects go up; the sizes of the folds differ by one case
    where each subject has one. Held-out cases are the test cases of every fold and train none.

    Args:
        cases: all cases; their order does not matter.
        n_folds: how many folds, numbered from 0 on.
        seed: decides among equals; the same seed gives the same folds on every machine.
        classes_of: for each case id the class indices it holds; without it the division is by size alone.

    Raises:
        DatasetError: fewer subjects than folds.
        ValueError: fewer than two folds.
    """
    if n_folds < 2:
        raise ValueError(f"n_folds: expected two or more, got {n_folds}")
    held_out, subjects = _subjects(cases)
    if len(subjects) < n_folds:
        expected, found = f"at least {n_folds} subjects for {n_folds} folds (data.folds)", f"{len(subjects)}"
        raise DatasetError("dataset", "", expected, found, "ask for fewer folds")
    order = _shuffled(subjects, seed)
    n_cases = sum(map(len, subjects.values()))
    capacity = {str(n): (n_cases + n_folds - 1 - n) // n_folds for n in range(n_folds)}
    fold_of = _deal(order, subjects, classes_of or {}, capacity, _equal_share_of_class)
    _fill_empty_splits(fold_of, order, list(capacity), list(capacity))
    test = {case.id: "test" for case in cases if case.subject in held_out}
    source = f"{n_folds} folds by subject, seed {seed}"
    source += ", test cases as the data set holds them out" if held_out else ""
    splits = {}
    for number in range(n_folds):
        part_of = {
            case.id: "val" if fold == str(number) else "train"
            for subject, fold in fold_of.items()
            for case in subjects[subject]
        }
        splits[number] = Split.of_parts(part_of | test, f"fold {number} of {source}")
    return Folds(splits, source)


def _subjects(cases: Sequence[Case]) -> tuple[set[str], dict[str, list[Case]]]:
    """The subjects that are held out, and the cases of the others."""
    held_out = {case.subject for case in cases if case.held_out}
    subjects: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.id):
        if case.subject not in held_out:
            subjects.setdefault(case.subject, []).append(case)
    return held_out, subjects


def _shuffled(subjects: Mapping[str, Sequence[Case]], seed: int) -> list[str]:
    order = sorted(subjects)
    random.Random(seed).shuffle(order)
    return sorted(order, key=lambda subject: -len(subjects[subject]))  # the large first, the small fill what is left


def _capacities(
    n_cases: int, n_subjects: int, fractions: tuple[float, float, float], *, with_test: bool
) -> dict[str, int]:
    """Return how many cases each split should get."""
    train, val, test = fractions
    test = test if with_test and n_subjects > 1 + (val > 0) else 0.0
    n_val = max(1, round(n_cases * val / (train + val + test))) if val else 0
    n_test = round(n_cases * test)
    return {"train": n_cases - n_val - n_test, "val": n_val, "test": n_test}


def _deal(
    order: Sequence[str],
    subjects: Mapping[str, Sequence[Case]],
    classes_of: Mapping[str, Collection[int]],
    capacity: dict[str, int],
    share_of_class: Callable[[int, Mapping[str, float]], dict[str, float]],
) -> dict[str, str]:
    """Deal the subjects out to the splits or folds that `capacity` names, those of the rarest class first.

    capacity: cases that each takes; counts down.
    share_of_class: how many of the subjects that hold a class each should get, see `_share_of_class`.
    """
    classes = {s: frozenset(int(c) for case in subjects[s] for c in classes_of.get(case.id, ())) for s in order}
    undealt = Counter(c for held in classes.values() for c in held)
    shares = {name: capacity[name] / sum(capacity.values()) for name in capacity}
    lacking: dict[int | None, dict[str, float]] = {c: share_of_class(undealt[c], shares) for c in undealt}
    lacking[None] = dict.fromkeys(capacity, 0.0)
    split_of: dict[str, str] = {}
    while len(split_of) < len(order):
        rarest = min((c for c in undealt if undealt[c]), key=lambda c: (undealt[c], c), default=None)
        for subject in [s for s in order if s not in split_of and (rarest is None or rarest in classes[s])]:
            name = _neediest(capacity, lacking[rarest], len(subjects[subject]))
            split_of[subject] = name
            capacity[name] -= len(subjects[subject])
            undealt.subtract(classes[subject])
            for c in classes[subject]:
                lacking[c][name] -= 1
    return split_of


def _neediest(capacity: Mapping[str, int], lacking: Mapping[str, float], n_cases: int) -> str:
    """Return the split that can take the subject and lacks its class most; then the one with the largest capacity."""

    def need(name: str) -> tuple[bool, float, int]:
        fits = capacity[name] >= n_cases
        return fits, lacking[name] * fits, capacity[name]

    return max(capacity, key=need)


def _share_of_class(n_subjects: int, shares: Mapping[str, float]) -> dict[str, float]:
    """Return how many of the subjects that hold a class each split should get: train and validation one at least."""
    if n_subjects < 2:
        return {"train": float(n_subjects), "val": 0.0, "test": 0.0}
    test = n_subjects * shares["test"] if n_subjects > 2 else 0.0
    val = max(1.0, n_subjects * shares["val"]) if shares["val"] else 0.0
    return {"train": n_subjects - val - test, "val": val, "test": test}


def _equal_share_of_class(n_subjects: int, shares: Mapping[str, float]) -> dict[str, float]:
    """Return how many of the subjects that hold a class each fold should get: as many in every fold.

    Which folds get one more then depends on how many subjects they still lack, and not on their order.
    """
    return dict.fromkeys(shares, n_subjects / len(shares))


def _fill_empty_splits(
    split_of: dict[str, str], order: Sequence[str], names: Sequence[str], needed: Sequence[str]
) -> None:
    """Move the smallest subject of the fullest split where one that is needed went empty (few, large subjects)."""
    for name in needed:
        if name not in split_of.values():
            fullest = max(names, key=list(split_of.values()).count)
            split_of[next(subject for subject in reversed(order) if split_of[subject] == fullest)] = name
