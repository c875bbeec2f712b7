"""Cases are divided by subject, by size and so that rare classes are spread."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.dataset import Case
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.splits import fold_by_subject, split_by_subject


def cases_of(subjects) -> list[Case]:
    return [Case(f"case{i}", str(subject), (Path("x"),), Path("y")) for i, subject in enumerate(subjects)]


@settings(deadline=None, max_examples=60, database=None)
@given(
    subjects=st.lists(st.integers(0, 12), min_size=2, max_size=60),
    seed=st.integers(0, 5),
    held=st.sets(st.integers(0, 12), max_size=1),
)
def test_no_subject_is_in_two_splits(subjects, seed, held):
    cases = [Case(c.id, c.subject, c.image, c.label, int(c.subject) in held) for c in cases_of(subjects)]
    if len({c.subject for c in cases if not c.held_out}) < 2:
        with pytest.raises(DatasetError, match="at least two subjects"):
            split_by_subject(cases, seed=seed)
        return
    split = split_by_subject(cases, seed=seed)
    subject_of = {case.id: case.subject for case in cases}
    subjects_of = {name: {subject_of[case] for case in ids} for name, ids in split.items()}
    assert subjects_of["train"]
    assert subjects_of["val"]
    assert sum(map(len, subjects_of.values())) == len(set.union(*subjects_of.values()))
    assert Counter(split.train + split.val + split.test) == Counter(list(subject_of))
    assert {c.id for c in cases if c.held_out} <= set(split.test)


@pytest.mark.parametrize(
    ("n", "sizes"), [(2, (1, 1, 0)), (3, (2, 1, 0)), (10, (8, 1, 1)), (120, (96, 12, 12)), (4028, (3222, 403, 403))]
)
def test_sizes_are_80_10_10(n, sizes):
    split = split_by_subject(cases_of(range(n)), seed=1)
    assert (len(split.train), len(split.val), len(split.test)) == sizes


def test_a_single_case_cannot_be_divided():
    with pytest.raises(DatasetError, match="found 1"):
        split_by_subject(cases_of([0]), seed=0)
    with pytest.raises(ValueError, match="fractions"):
        split_by_subject(cases_of(range(9)), seed=0, fractions=(0.0, 0.9, 0.1))


@pytest.mark.parametrize(
    ("n", "fractions", "sizes"),
    [
        (1, (1, 0, 0), (1, 0, 0)),
        (10, (1, 0, 0), (10, 0, 0)),
        (10, (0.8, 0, 0.2), (8, 0, 2)),
        (2, (0.5, 0, 0.5), (1, 0, 1)),
    ],
)
def test_no_case_validates_where_the_fraction_is_0(n, fractions, sizes):
    """Also where two subjects hold a rare class, of which validation would get one otherwise."""
    cases = cases_of(range(n))
    classes_of = {case.id: {0, 1} if case.id in ("case0", "case1") else {0} for case in cases}
    split = split_by_subject(cases, seed=3, classes_of=classes_of, fractions=fractions)
    assert (len(split.train), len(split.val), len(split.test)) == sizes
    with pytest.raises(DatasetError, match="expected a subject to train on, found 0"):
        split_by_subject([Case("held", "s", (Path("x"),), Path("y"), True)], seed=0, fractions=fractions)


def test_the_seed_decides_and_the_order_of_cases_does_not():
    cases = cases_of(range(50))
    first, again = split_by_subject(cases, seed=7), split_by_subject(cases[::-1], seed=7)
    assert first == again
    assert first.hash == again.hash != split_by_subject(cases, seed=8).hash


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_reach_train_and_validation(seed):
    """40 cases, 4 to validate: classes of 2 to 4 subjects must be in both; chance seldom does that."""
    cases = cases_of(range(40))
    rare = {20: (3, 17), 21: (8, 30), 22: (1, 12, 33), 23: (5, 6, 7, 39)}
    classes_of = {case.id: {0, 1, *(c for c, at in rare.items() if i in at)} for i, case in enumerate(cases)}
    split = split_by_subject(cases, seed=seed, classes_of=classes_of)
    assert (len(split.train), len(split.val), len(split.test)) == (32, 4, 4)
    for rare_class in rare:
        for ids in (split.train, split.val):
            assert any(rare_class in classes_of[case] for case in ids), rare_class


def test_common_classes_keep_their_share_in_every_split():
    rng = np.random.default_rng(0)
    cases = cases_of(range(400))
    classes_of = {case.id: set(np.flatnonzero(rng.random(10) < np.linspace(0.1, 0.9, 10))) for case in cases}
    whole = np.array([sum(c in held for held in classes_of.values()) for c in range(10)]) / 400

    def distance(split):
        """How far the validation cases' class shares are from the data set's, on average."""
        return np.mean([abs(sum(c in classes_of[case] for case in split.val) / 40 - whole[c]) for c in range(10)])

    drawn = np.mean([distance(split_by_subject(cases, seed=seed)) for seed in range(20)])
    dealt = [distance(split_by_subject(cases, seed=seed, classes_of=classes_of)) for seed in range(5)]
    assert max(dealt) < 0.75 * drawn
    assert np.mean(dealt) < 0.6 * drawn


@settings(deadline=None, max_examples=60, database=None)
@given(
    subjects=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    n_folds=st.integers(2, 6),
    seed=st.integers(0, 5),
    held=st.sets(st.integers(0, 12), max_size=1),
)
def test_every_case_validates_in_one_fold_and_no_subject_is_on_both_sides(subjects, n_folds, seed, held):
    cases = [Case(c.id, c.subject, c.image, c.label, int(c.subject) in held) for c in cases_of(subjects)]
    pool = [case.id for case in cases if not case.held_out]
    n_subjects = len({case.subject for case in cases if not case.held_out})
    if n_subjects < n_folds:
        with pytest.raises(DatasetError, match=f"{n_folds} subjects for {n_folds} folds .* found {n_subjects};"):
            fold_by_subject(cases, n_folds, seed=seed)
        return
    folds = fold_by_subject(cases, n_folds, seed=seed)
    assert list(folds.splits) == list(range(n_folds))
    assert Counter(case for split in folds.splits.values() for case in split.val) == Counter(pool)
    subject_of = {case.id: case.subject for case in cases}
    for split in folds.splits.values():
        assert split.val
        assert sorted(split.train + split.val) == sorted(pool)
        assert {c.id for c in cases if c.held_out} == set(split.test)
        assert not {subject_of[case] for case in split.train} & {subject_of[case] for case in split.val}
    assert fold_by_subject(cases[::-1], n_folds, seed=seed).hash == folds.hash


@pytest.mark.parametrize("seed", range(4))
def test_every_fold_gets_its_share_of_every_class(seed):
    """Where each case holds one class, n of them, the closed form: n / 5 of each in a fold, rounded up or down."""
    counts = {1: 50, 2: 23, 3: 7, 4: 3}
    held = [c for c, n in counts.items() for _ in range(n)]
    cases = cases_of(range(len(held)))
    classes_of = {case.id: {0, c} for case, c in zip(cases, held, strict=True)}
    folds = fold_by_subject(cases, 5, seed=seed, classes_of=classes_of)
    sizes = [len(split.val) for split in folds.splits.values()]
    assert max(sizes) - min(sizes) <= 1
    for c, n in counts.items():
        in_fold = [sum(c in classes_of[case] for case in split.val) for split in folds.splits.values()]
        assert set(in_fold) <= {n // 5, -(-n // 5)}, (c, in_fold)


def test_the_seed_decides_the_folds():
    cases = cases_of(range(30))
    one, other = (fold_by_subject(cases, 5, seed=seed) for seed in (7, 8))
    assert one.hash != other.hash
    assert one.source == "5 folds by subject, seed 7"
    assert one.splits[3].source == "fold 3 of 5 folds by subject, seed 7"
    with pytest.raises(ValueError, match="two or more"):
        fold_by_subject(cases, 1, seed=0)
