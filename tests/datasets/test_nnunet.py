"""nnU-Net's raw layout: channels, folds, test images."""

from __future__ import annotations

import pytest

from pipeline.datasets.listing import list_cases
from pipeline.datasets.splits import split_by_subject
from tests.support.datasets import LABELS, nnunet, refused, volume, write_json


def test_the_hippocampus_data_set_lists_its_120_cases(shared_data):
    found = list_cases(shared_data / "hippocampus")
    assert found.layout == "nnunet"
    assert len(found.cases) == 120
    assert found.classes.names == ("background", "Anterior", "Posterior")
    assert found.classes.values == (0, 1, 2)
    assert found.channel_names == ("MRI",)
    assert found.split is None
    assert all(case.image[0].is_file() and case.label.is_file() for case in found.cases)


def test_channels_come_in_their_order(tmp_path):
    found = list_cases(nnunet(tmp_path, channels=2))
    assert found.channel_names == ("CT", "PET")
    assert [path.name for path in found.cases[1].image] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert found.cases[1].label == tmp_path / "labelsTr/b.nii.gz"
    (tmp_path / "imagesTr/b_0001.nii.gz").unlink()
    refused(tmp_path, "case b", "2 channel files", "_0000")


def test_folds_choose_the_validation_cases(tmp_path):
    nnunet(tmp_path)
    write_json(
        tmp_path / "splits_final.json", [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "b"], "val": ["a"]}]
    )
    assert list_cases(tmp_path).split.val == ("c",)
    second = list_cases(tmp_path, fold=1).split
    assert (second.train, second.val, second.test) == (("b", "c"), ("a",), ())
    refused(tmp_path, "fold 2", "found 2 folds, 0, 1; choose one of these", fold=2)
    write_json(tmp_path / "splits_final.json", [{"train": ["a", "c"], "val": ["c"]}])
    refused(tmp_path, "case c is in train and in val")
    write_json(tmp_path / "splits_final.json", [{"train": ["a", "zz"], "val": ["c"]}])
    refused(tmp_path, "case zz", "no image")


@pytest.mark.fault(
    "a fold of a data set whose validation list is empty",
    "refused by name, never replaced in silence",
)
def test_a_fold_without_validation_cases_is_refused(tmp_path):
    nnunet(tmp_path)
    write_json(
        tmp_path / "splits_final.json", [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "b", "c"], "val": []}]
    )
    found = "splits_final.json to have cases to train and to validate, found 3 cases to train and 0 to validate"
    refused(tmp_path, found, fold=1)
    assert list_cases(tmp_path).split.val == ("c",)  # each fold is checked when it is used


def test_test_images_are_kept_apart(tmp_path):
    nnunet(tmp_path)
    volume(tmp_path / "imagesTs/t_0000.nii.gz")
    found = list_cases(tmp_path)
    assert ([case.id for case in found.cases], [case.id for case in found.unlabelled]) == (["a", "b", "c"], ["t"])
    volume(tmp_path / "labelsTs/t.nii.gz")
    found = list_cases(tmp_path)
    assert [case.id for case in found.cases if case.held_out] == ["t"]
    assert split_by_subject(found.cases, seed=0).test == ("t",)


def test_the_ignore_label_is_not_a_class(tmp_path):
    nnunet(tmp_path, labels={"background": 0, "liver": 1, "spleen": 3, "ignore": 4})
    found = list_cases(tmp_path)
    assert (found.classes.names, found.classes.values) == (("background", "liver", "spleen"), (0, 1, 3))
    assert found.classes.ignore_value == 4


def test_folds_are_found_where_nnunet_keeps_them(tmp_path, monkeypatch):
    root = nnunet(tmp_path / "nnUNet_raw" / "Dataset001_Toy")
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}]
    beside = write_json(tmp_path / "nnUNet_preprocessed" / "Dataset001_Toy" / "splits_final.json", folds)
    split = list_cases(root, fold=1).split
    assert (split.val, split.source) == (("b",), f"fold 1 of {beside}")
    beside.rename(beside.with_name("gone.json"))
    assert list_cases(root).split is None
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "elsewhere"))
    elsewhere = write_json(tmp_path / "elsewhere" / "Dataset001_Toy" / "splits_final.json", folds)
    assert list_cases(root).split.source == f"fold 0 of {elsewhere}"
    write_json(root / "splits_final.json", folds[:1])
    refused(root, "another one in", str(elsewhere))


def test_a_fold_without_folds_is_refused(tmp_path):
    refused(nnunet(tmp_path), "data.fold is 2", "found none", fold=2)
    assert len(list_cases(tmp_path, fold=None).cases) == 3


def test_files_that_lie_beside_the_scans_are_passed_over(tmp_path):
    nnunet(tmp_path)
    for name in ("a_0000.json", "Thumbs.db", "README.txt", ".DS_Store", "._a_0000.nii.gz"):
        (tmp_path / "imagesTr" / name).write_bytes(b"x")
        (tmp_path / "labelsTr" / name).write_bytes(b"x")
    found = list_cases(tmp_path)
    assert [case.id for case in found.cases] == ["a", "b", "c"]
    assert found.refused == ()


@pytest.mark.parametrize("ending", [".NII.GZ", ".nii", ".nrrd"])
def test_another_suffix_than_file_ending_is_read(tmp_path, ending):
    nnunet(tmp_path)
    for path in [*(tmp_path / "imagesTr").iterdir(), *(tmp_path / "labelsTr").iterdir()]:
        path.rename(path.with_name(path.name.replace(".nii.gz", ending)))
    assert [case.id for case in list_cases(tmp_path).cases] == ["a", "b", "c"]


def test_of_two_files_of_a_channel_that_with_file_ending_counts(tmp_path):
    nnunet(tmp_path)
    volume(tmp_path / "imagesTr/a_0000.nii")
    assert list_cases(tmp_path).cases[0].image == (tmp_path / "imagesTr/a_0000.nii.gz",)
    volume(tmp_path / "labelsTr/b.nii")
    (tmp_path / "labelsTr/b.nii.gz").rename(tmp_path / "labelsTr/b.nrrd")
    refused(tmp_path, "case b: expected one file, found ", "b.nii and ", "b.nrrd")


@pytest.mark.parametrize("cases", [("a", "b"), ("amos_0001", "amos_0004"), ("_0000", "_0001")])
def test_the_only_channel_of_a_case_needs_no_number(tmp_path, cases):
    nnunet(tmp_path, cases=cases)
    assert [case.id for case in list_cases(tmp_path).cases] == sorted(cases)
    for path in (tmp_path / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000.nii.gz", ".nii.gz")))
    found = list_cases(tmp_path)
    assert (found.layout, [case.id for case in found.cases]) == ("nnunet", sorted(cases))


def test_dataset_json_may_name_the_files_of_every_case(tmp_path):
    for name in ("x", "y"):
        volume(tmp_path / f"elsewhere/{name}.nii.gz")
        volume(tmp_path / f"elsewhere/{name}_seg.nii.gz")
    named = {
        name: {"images": [f"elsewhere/{name}.nii.gz"], "label": f"elsewhere/{name}_seg.nii.gz"} for name in ("x", "y")
    }
    description = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", "dataset": named}
    write_json(tmp_path / "dataset.json", description)
    found = list_cases(tmp_path)
    assert found.layout == "nnunet"
    assert [(case.id, case.image[0].name, case.label.name) for case in found.cases] == [
        ("x", "x.nii.gz", "x_seg.nii.gz"),
        ("y", "y.nii.gz", "y_seg.nii.gz"),
    ]
    named["x"]["images"] = ["/etc/passwd"]
    write_json(tmp_path / "dataset.json", description)
    refused(tmp_path, "leads out of the data set")


def test_a_folder_with_test_images_alone_is_a_data_set(tmp_path):
    nnunet(tmp_path)
    (tmp_path / "imagesTr").rename(tmp_path / "imagesTs")
    (tmp_path / "labelsTr").rename(tmp_path / "labelsTs")
    found = list_cases(tmp_path)
    assert (found.layout, [case.id for case in found.cases if case.held_out]) == ("nnunet", ["a", "b", "c"])


def test_labels_may_be_called_as_beside_their_images(tmp_path):
    nnunet(tmp_path, file_ending="nii.gz")
    for case in ("a", "b"):
        (tmp_path / f"labelsTr/{case}.nii.gz").rename(tmp_path / f"labelsTr/{case}_seg.nii.gz")
    found = list_cases(tmp_path)
    assert [(case.id, case.label.name) for case in found.cases][::2] == [("a", "a_seg.nii.gz"), ("c", "c.nii.gz")]
    volume(tmp_path / "labelsTr/a.nii.gz")
    refused(tmp_path, "case a_seg", "an image beside the label")
