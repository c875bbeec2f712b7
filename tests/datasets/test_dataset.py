"""Splits and labels as records."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import Case, Dataset, Folds, Split, label_files, label_path


def test_the_hash_of_a_split_is_the_same_on_every_machine():
    split = Split(("a", "b"), ("c",), (), "anywhere")
    text = '{"test": [], "train": ["a", "b"], "val": ["c"]}'
    assert split.hash == hashlib.sha256(text.encode()).hexdigest()
    assert split.hash == Split(("b", "a"), ("c",), (), "elsewhere").hash


def test_a_split_tells_where_a_case_is():
    split = Split(("a", "b"), ("c",), (), "anywhere")
    assert dict(split.items()) == {"train": ("a", "b"), "val": ("c",), "test": ()}
    assert [split.of(case) for case in "abcd"] == ["train", "train", "val", None]


def test_folds_are_known_by_their_cases_and_numbers():
    first, second = Split(("a",), ("b",), (), "x"), Split(("b",), ("a",), (), "y")
    folds = Folds({0: first, 1: second}, "by hand")
    assert folds.hash == Folds({0: first, 1: second}, "elsewhere").hash
    assert folds.hash != Folds({0: second, 1: first}, "by hand").hash
    assert folds.hash != Folds({1: first, 2: second}, "by hand").hash
    assert folds.twice_validated() is None
    assert Folds({0: first, 4: first}, "").twice_validated() == ("b", 0, 4)
    assert [split.val for split in folds.without(["a"]).splits.values()] == [("b",), ()]


def test_a_label_is_a_file_or_the_folder_of_its_masks():
    masks = ((1, Path("s1/segmentations/liver.nii.gz")), (2, Path("s1/segmentations/spleen.nii.gz")))
    assert (label_path(Path("a.nii")), label_files(Path("a.nii"))) == (Path("a.nii"), (Path("a.nii"),))
    assert (label_path(masks), label_files(masks)) == (Path("s1/segmentations"), tuple(path for _, path in masks))
    assert (label_path(None), label_files(None), label_path(())) == (None, (), None)


def test_a_case_is_found_without_going_through_all_cases():
    """A finding a case names its label: with 10,000 cases that looked at 10,000² of them."""

    class Counted(tuple):
        n_iterations = 0

        def __iter__(self):
            type(self).n_iterations += 1
            return super().__iter__()

    cases = Counted(Case(f"c{n}", f"c{n}", (Path(f"c{n}.nii"),), Path(f"l{n}.nii")) for n in range(50))
    dataset = Dataset(Path("root"), "list", cases, ClassTable(("background", "liver"), (0, 1)), ("CT",))
    assert [dataset.case(f"c{n}").label for n in range(50)] == [Path(f"l{n}.nii") for n in range(50)]
    assert Counted.n_iterations <= 1
