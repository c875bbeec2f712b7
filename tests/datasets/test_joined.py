"""Several data sets as one: classes, channels, cases, subjects and divisions."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.errors import DatasetError
from pipeline.datasets.joined import list_data_sets, list_own_folds
from pipeline.datasets.rows import LabelReading
from tests.support.datasets import decathlon, nnunet, pairs, totalsegmentator, volume, write_json


def refused(roots, *words, layout="auto"):
    with pytest.raises(DatasetError) as error:
        list_data_sets(roots, layout)
    for word in words:
        assert word in str(error.value)


def test_one_data_set_is_listed_as_it_is(tmp_path):
    nnunet(tmp_path)
    alone = list_data_sets([tmp_path], "auto")
    assert alone == list_data_sets(str(tmp_path), ["nnunet"])
    assert (alone.parts, alone.is_partly_labelled) == ((), False)


def test_classes_are_joined_by_name_and_each_set_keeps_its_values(tmp_path):
    """nnU-Net's liver 1 and spleen 2, Decathlon's liver 1 and tumour 2, masks of spleen and kidney."""
    one = nnunet(tmp_path / "one", labels={"background": 0, "liver": 1, "spleen": 2})
    decathlon(tmp_path / "two", cases="xy")
    three = totalsegmentator(tmp_path / "three", structures=("kidney", "spleen"))
    joined = list_data_sets([one, tmp_path / "two", three], "auto")
    assert joined.classes.names == ("background", "liver", "spleen", "tumour", "kidney")
    # Spleen and tumour are both 2, and the masks have values of their own.
    assert joined.classes.values == (0, 1, 2, 3, 4)
    case = {case.id: case for case in joined.cases}
    assert [case[name].annotated for name in ("a", "x", "s1")] == [(1, 2), (1, 3), (2, 4)]
    assert case["a"].table.class_of_value == {0: 0, 1: 1, 2: 2}
    assert case["x"].table.class_of_value == {0: 0, 1: 1, 2: 3}
    folder = three / "s1/segmentations"
    assert case["s1"].label == ((2, folder / "spleen.nii.gz"), (4, folder / "kidney.nii.gz"))
    assert joined.n_annotated(list(case)) == {"liver": 5, "spleen": 5, "tumour": 2, "kidney": 2}
    assert [(part.name, part.layout, part.n_cases) for part in joined.parts] == [
        ("one", "nnunet", 3), ("two", "msd", 2), ("three", "totalsegmentator", 2)
    ]  # fmt: skip


def test_values_stay_where_all_agree_on_them(tmp_path):
    one = pairs(tmp_path / "one", names={"background": 0, "liver": 4, "ignore": 7})
    two = pairs(tmp_path / "two", cases=("z",), names={"spleen": 9, "liver": 4})
    joined = list_data_sets([one, two], "pairs")
    assert joined.classes.values == (0, 4, 9)
    assert joined.classes.ignores_voxels
    tables = {case.id: case.table for case in joined.cases}
    assert tables["x"].class_of_value == {0: 0, 4: 1}
    assert tables["x"].ignored_values == (7,)
    assert (tables["z"].class_of_value, tables["z"].ignored_values) == ({0: 0, 4: 1, 9: 2}, ())


def test_a_remap_to_an_index_of_other_classes_in_each_data_set_is_refused(tmp_path):
    """Class 1 is the liver in one and the spleen in the other: a number would say both."""
    roots = [
        pairs(tmp_path / "one", names={"background": 0, "liver": 1}),
        pairs(tmp_path / "two", cases=("z",), names={"background": 0, "spleen": 1}),
    ]
    with pytest.raises(DatasetError, match=r"label_remap: 7: .* same class.*found 1, which is liver, spleen; write"):
        list_data_sets(roots, "auto", labels=LabelReading({7: 1}))
    for background in (0, "background"):
        joined = list_data_sets(roots, "auto", labels=LabelReading({7: background}))
        assert {case.table.class_of_value[7] for case in joined.cases} == {0}


def test_a_remap_to_an_index_that_is_one_class_in_all_data_sets_is_that_class(tmp_path):
    """Runs were trained so: their labels stay as they were."""
    roots = [pairs(tmp_path / "one"), pairs(tmp_path / "two", cases=("z",))]
    by_index, by_name = (list_data_sets(roots, "auto", labels=LabelReading({7: to})) for to in (1, "liver"))
    assert by_index == by_name
    assert {case.table.class_of_value[7] for case in by_index.cases} == {1}


def test_cases_and_subjects_of_one_name_stay_apart(tmp_path):
    one, two = (nnunet(tmp_path / part / "data", cases=cases) for part, cases in (("p", "ab"), ("q", "bc")))
    joined = list_data_sets([one, two], "auto")
    assert [case.id for case in joined.cases] == ["a", "data_1_b", "data_2_b", "c"]
    assert len({case.subject for case in joined.cases}) == 4
    (warning,) = joined.warnings
    assert "2 that share one; they are called data_1_b, data_2_b" in warning.found


def test_subjects_of_one_name_in_two_data_sets_are_warned_of_unless_one_split_keeps_them_together(tmp_path):
    roots = []
    for name, case in (("ct", "p1_ct"), ("mr", "p1_mr")):
        roots.append(nnunet(tmp_path / name, cases=(case, f"{name}9_{name}", f"{name}8_{name}")))
    joined = list_data_sets(roots, "auto", subject_pattern="(.+)_(?:ct|mr)")
    (warning,) = joined.warnings
    assert (warning.kind, "p1 (p1_ct, p1_mr)" in warning.found) == ("shared_subjects", True)
    for part, kinds in (("train", []), ("val", ["shared_subjects"])):
        for root, name in zip(roots, ("ct", "mr"), strict=True):
            rest = "val" if part == "train" or name == "ct" else "train"
            split = {f"p1_{name}": part if name == "mr" else "train", f"{name}9_{name}": rest, f"{name}8_{name}": rest}
            folds = [{p: [c for c, of in split.items() if of == p] for p in ("train", "val")}]
            write_json(root / "splits_final.json", folds)
        datasets = list_data_sets(roots, "auto", subject_pattern="(.+)_(?:ct|mr)")
        assert [warning.kind for warning in datasets.warnings] == kinds


def test_visits_of_one_patient_in_two_data_sets_are_warned_of_unless_subjects_are_stated(tmp_path):
    one = nnunet(tmp_path / "one", cases=("pat0_t0", "pat1_t0", "amos_0001"))
    two = nnunet(tmp_path / "two", cases=("pat0_t1", "pat2_t0", "amos_0002"))
    (warning,) = list_data_sets([one, two], "auto").warnings
    assert (warning.kind, "1 in several" in warning.found) == ("shared_subjects", True)
    assert "pat0 (pat0_t0, pat0_t1)" in warning.found
    sites = [nnunet(tmp_path / name, cases=(f"TCGA-02-{name}_ct", f"TCGA-0{name}-7_ct")) for name in "45"]
    assert list_data_sets(sites, "auto", subject_pattern="(.+)_ct").warnings == ()  # as stated, if names look alike


def test_a_division_of_their_own_is_kept_beside_one_that_is_to_be_made(tmp_path):
    one, two, three = nnunet(tmp_path / "one"), nnunet(tmp_path / "two", cases="bxy"), pairs(tmp_path / "three", "uv")
    for root, val in ((one, "c"), (two, "b")):
        rest = [case for case in ("abc" if root == one else "bxy") if case != val]
        write_json(root / "splits_final.json", [{"train": rest, "val": [val]}, {"train": [val], "val": rest}])
    both = list_data_sets([one, two], "auto", fold=1)
    assert (both.split.train, both.split.val) == (("c", "two_b"), ("a", "one_b", "x", "y"))
    assert both.folds.splits[0].val == ("c", "two_b")
    assert both.split.source.startswith("one: fold 1 of ")
    assert list_own_folds([one, two], "auto") == (0, 1)
    with pytest.raises(DatasetError, match=r"in all data sets or in none, found .*one: 0, 1, .*three: none; give them"):
        list_own_folds([one, three], ["nnunet", "pairs"])
    with pytest.raises(DatasetError, match="in all data sets or in none"):
        list_data_sets([one, three], "auto", fold=1)
    assert list_own_folds([three], "pairs") == ()
    write_json(three / "dataset.json", {"channel_names": ["CT"]})
    mixed = list_data_sets([one, three], "auto")
    assert (mixed.split, mixed.folds, mixed.own_split.val) == (None, None, ("c",))


def test_channels_are_brought_into_one_order_by_name_or_refused(tmp_path):
    one = nnunet(tmp_path / "one", channels=2)
    two = tmp_path / "two"
    cases = [{"case": "z", "image": ["pet.nii.gz", "ct.nii.gz"], "label": "label.nii.gz"}]
    for name in ("pet", "ct", "label"):
        volume(two / f"{name}.nii.gz")
    listed = {"cases": cases, "labels": {"liver": 1}, "channel_names": ["PET", "ct"]}
    write_json(two / "cases.json", listed)
    joined = list_data_sets([one, two], "auto")
    assert joined.channel_names == ("CT", "PET")
    assert joined.cases[-1].image == (two / "ct.nii.gz", two / "pet.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.uint8), np.eye(4)), two / "both.nii.gz")
    write_json(two / "cases.json", listed | {"cases": [cases[0] | {"image": "both.nii.gz"}]})
    assert list_data_sets([one, two], "auto").cases[-1].frames == (1, 0)
    (two / "cases.json").write_text(json.dumps(listed | {"channel_names": ["PET", "T1"]}))
    refused([one, two], "the channels of", "CT, PET", "found PET, T1", "name the channels alike")
    single = list_data_sets([nnunet(tmp_path / "single"), pairs(tmp_path / "pairs")], "auto")
    assert single.channel_names == ("CT",)
    assert [warning.kind for warning in single.warnings] == ["channel_unnamed"]


def test_names_that_differ_in_spelling_are_named_and_contradictions_refused(tmp_path):
    one = pairs(tmp_path / "one", names={"kidney_left": 1, "liver": 2})
    two = pairs(tmp_path / "two", cases=("z",), names={"Left Kidney": 1})
    joined = list_data_sets([one, two], "auto")
    assert joined.classes.names == ("background", "kidney_left", "liver", "Left Kidney")
    (warning,) = joined.warnings
    assert f"kidney_left ({one}) and Left Kidney ({two})" in warning.found
    write_json(two / "labels.json", {"other": 0, "kidney_left": 1})
    write_json(one / "labels.json", {"other": 1, "liver": 2})
    refused([one, two], "every name to mean the same", "'other' as a structure, which is the background of")


def test_what_cannot_be_joined_is_refused_by_name(tmp_path):
    one, two = nnunet(tmp_path / "one"), nnunet(tmp_path / "two", cases="z")
    refused([one, two], "one for each data set", "3 for 2", layout=["auto"] * 3)
    refused([one, one], "every data set once")
    refused([one, tmp_path / "missing"], "no such file or folder")
    with pytest.raises(
        DatasetError, match=r"since data\.fold is 1, found none; have their cases divided into folds with"
    ):
        list_data_sets([one, two], "auto", fold=1)


def test_a_case_has_one_name_whether_its_namesake_in_another_data_set_can_serve_or_not(tmp_path):
    one, two = nnunet(tmp_path / "one", cases=("a", "b")), nnunet(tmp_path / "two", cases=("a", "c"))
    whole = list_data_sets([one, two], "auto")
    (one / "labelsTr/a.nii.gz").unlink()
    without = list_data_sets([one, two], "auto", strict=False)
    assert [case.id for case in without.cases] == ["b", "two_a", "c"]
    assert [error.case for error in without.refused] == ["one_a"]
    assert {case.id for case in whole.cases} == {"one_a", "b", "two_a", "c"}
