"""A data set's own division for cross-validation, and one that a person names."""

from __future__ import annotations

import pytest

from pipeline.datasets.errors import DatasetError
from pipeline.datasets.listing import list_cases, list_folds
from pipeline.datasets.splits import split_by_subject
from tests.support.datasets import LABELS, decathlon, nnunet, pairs, refused, volume, write_json

FOLDS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}, {"train": ["b", "c"], "val": ["a"]}]


def listed(folder, *rows, header="case,image,label,split,fold"):
    """A list of cases that all have the same image and label."""
    volume(folder / "a.nii.gz")
    (folder / "cases.csv").write_text("\n".join([header, *rows]))
    write_json(folder / "labels.json", LABELS)
    return folder


def test_all_folds_of_splits_final_are_there_beside_the_one_that_is_used(tmp_path):
    path = write_json(nnunet(tmp_path) / "splits_final.json", FOLDS)
    found = list_cases(tmp_path, fold=1)
    assert [split.val for split in found.folds.splits.values()] == [("c",), ("b",), ("a",)]
    assert found.split == found.folds.splits[1]
    assert found.split.source == f"fold 1 of {path}"
    assert list_folds(tmp_path) == (0, 1, 2)
    assert list_cases(tmp_path, fold=2).folds == found.folds
    with pytest.raises(DatasetError, match="no such file or folder; correct the path"):
        list_folds(tmp_path / "elsewhere")
    path.unlink()
    assert list_cases(tmp_path).folds is None
    assert list_folds(tmp_path) == ()


def test_a_file_of_folds_serves_any_layout_and_comes_before_the_data_sets_own(tmp_path):
    path = write_json(tmp_path / "mine.json", FOLDS[:2])
    found = list_cases(pairs(tmp_path / "pairs", cases="abc"), fold=1, split_file=str(path))
    assert (found.split.val, found.split.source) == (("b",), f"fold 1 of {path}")
    assert list_folds(tmp_path / "pairs", split_file=str(path)) == (0, 1)
    own = nnunet(tmp_path / "nnunet")
    write_json(own / "splits_final.json", FOLDS[::-1])
    assert list_cases(own, split_file=str(path)).split.val == ("c",)
    refused(own, "cannot be read", split_file=str(tmp_path / "missing.json"))
    refused(own, "a list of folds", split_file=str(write_json(tmp_path / "mine.json", {"train": []})))


def test_a_fold_column_divides_and_test_cases_stay_apart(tmp_path):
    rows = [f"c{n},a.nii.gz,a.nii.gz,,{n % 3 + 1}" for n in range(6)]
    listed(tmp_path, *rows, "t,a.nii.gz,a.nii.gz,test,")
    assert list_folds(tmp_path) == (1, 2, 3)  # as the file numbers them
    second = list_cases(tmp_path, fold=2).split
    assert (second.val, second.test) == (("c1", "c4"), ("t",))
    assert second.source == f"fold 2 of the cases' own folds in {tmp_path}"
    refused(tmp_path, "fold 0 (data.fold)", "3 folds, 1, 2, 3", "choose one of these")
    listed(tmp_path, *rows, "c9,a.nii.gz,a.nii.gz,,")
    refused(tmp_path, "a fold for every training case", "none for case c9", fold=1)
    listed(tmp_path, *rows, "c9,a.nii.gz,a.nii.gz,,first")
    refused(tmp_path, "case c9", "expected a fold of 0, 1, 2, …, found 'first'", fold=1)


def test_a_test_case_that_has_the_number_of_a_fold_trains_none(tmp_path):
    rows = [f"c{n},a.nii.gz,a.nii.gz,{'test' if n > 3 else 'train'},{n % 2 if n < 5 else 7}" for n in range(6)]
    folds = list_cases(listed(tmp_path, *rows)).folds.splits
    assert {number: (split.train, split.val, split.test) for number, split in folds.items()} == {
        0: (("c1", "c3"), ("c0", "c2"), ("c4", "c5")),
        1: (("c0", "c2"), ("c1", "c3"), ("c4", "c5")),
    }


def test_a_subject_in_two_parts_of_a_fold_is_refused(tmp_path):
    rows = [f"c{n},p{n // 2},a.nii.gz,a.nii.gz,{fold}" for n, fold in enumerate((0, 0, 1, 2))]
    listed(tmp_path, *rows, header="case,subject,image,label,fold")
    refused(tmp_path, "subject p1 in two: case c2 in val, case c3 in train", fold=1)


def test_folds_that_are_asked_for_leave_the_dividing_to_the_caller(tmp_path):
    """A data set's own split is given up but for its test cases; its own folds are not."""
    listed(
        tmp_path,
        *(f"{c},a.nii.gz,a.nii.gz,{part}," for c, part in zip("abcd", ("train", "val", "test", "train"), strict=True)),
    )
    found = list_cases(tmp_path, fold=3, n_folds=5)
    assert (found.split, found.folds) == (None, None)
    assert [case.id for case in found.cases if case.held_out] == ["c"]
    assert split_by_subject(found.cases, seed=0).test == ("c",)
    own = nnunet(tmp_path / "own")
    write_json(own / "splits_final.json", FOLDS)
    assert list_cases(own, n_folds=3).folds is not None
    refused(own, "expected 5 folds (data.folds)", "3 of its own", n_folds=5)


def test_a_fold_of_a_data_set_without_folds_says_how_to_have_them(tmp_path):
    refused(nnunet(tmp_path), "data.fold is 3, found none", "--data.folds 5", "--data.split_file", fold=3)


def test_a_case_in_no_fold_is_named_and_unused(tmp_path, caplog):
    write_json(nnunet(tmp_path, cases="abcd") / "splits_final.json", FOLDS)
    assert [case.id for case in list_cases(tmp_path).cases] == ["a", "b", "c"]
    assert "1 cases are in no fold and stay unused (d)" in caplog.text


def test_folds_may_be_of_other_cases_each(tmp_path):
    write_json(nnunet(tmp_path, cases="abcd") / "splits_final.json", [{"train": ["a"], "val": ["b"]}, *FOLDS[:1]])
    found = list_cases(tmp_path)
    assert [case.id for case in found.cases] == ["a", "b"]
    assert [split.train for split in found.folds.splits.values()] == [("a",), ("a", "b")]
    assert list_cases(tmp_path, fold=1).folds.hash == found.folds.hash


def test_validation_cases_of_a_datalist_with_folds_validate_in_every_fold(tmp_path):
    description = decathlon(tmp_path)
    for fold, entry in enumerate(description["training"]):
        entry["fold"] = fold
    description["validation"] = [description["training"].pop()]
    del description["validation"][0]["fold"]
    write_json(tmp_path / "dataset.json", description)
    found = list_cases(tmp_path, fold=1)
    assert [split.val for split in found.folds.splits.values()] == [("a", "c"), ("b", "c")]
    assert found.folds.twice_validated() == ("c", 0, 1)
    description["training"][0]["fold"] = True
    write_json(tmp_path / "dataset.json", description)
    with pytest.raises(DatasetError, match=r"case a.*expected a fold of 0, 1, 2, …, found True"):
        list_cases(tmp_path)
