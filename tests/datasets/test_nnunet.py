"""nnU-Net's raw layout: channels, folds, test images."""

from __future__ import annotations

from pipeline.datasets.listing import list_cases
from pipeline.datasets.splits import split_by_subject
from tests.support.datasets import nnunet, refused, volume, write_json


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
    refused(tmp_path, "fold 2", "found 2 folds", fold=2)
    write_json(tmp_path / "splits_final.json", [{"train": ["a", "c"], "val": ["c"]}])
    refused(tmp_path, "case c is in train and in val")
    write_json(tmp_path / "splits_final.json", [{"train": ["a", "zz"], "val": ["c"]}])
    refused(tmp_path, "case zz", "no image")


def test_a_fold_without_validation_cases_is_refused(tmp_path):
    nnunet(tmp_path)
    write_json(tmp_path / "splits_final.json", [{"train": ["a", "b", "c"], "val": []}])
    refused(tmp_path, "3 cases to train and 0 to validate")


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
