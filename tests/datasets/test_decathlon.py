"""The Decathlon layout and MONAI datalists."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.listing import find_images, list_cases
from tests.support.datasets import LABELS, decathlon, nnunet, refused, volume, write_json


def test_lists_and_their_reversed_labels(tmp_path):
    decathlon(tmp_path, test=["./imagesTs/t.nii.gz"])
    volume(tmp_path / "imagesTs/t.nii.gz")
    volume(tmp_path / "imagesTr/._a.nii.gz")
    found = list_cases(tmp_path)
    assert found.layout == "msd"
    assert (found.classes.names, found.channel_names) == (("background", "liver", "tumour"), ("CT",))
    assert [case.id for case in found.cases] == ["a", "b", "c"]
    assert [case.id for case in found.unlabelled] == ["t"]
    assert found.split is None


def test_test_images_that_are_not_there_are_a_warning_for_a_training_and_an_error_for_a_prediction(tmp_path):
    decathlon(tmp_path, test=["./imagesTs/t.nii.gz", "./imagesTs/u.nii.gz"])
    found = list_cases(tmp_path)
    assert [case.id for case in found.cases] == ["a", "b", "c"]
    assert [(warning.kind, warning.found) for warning in found.warnings] == [("missing_case", "none for 2: t, u")]
    assert [error.case for error in find_images(tmp_path).refused] == ["t", "u"]


def test_case_numbers_of_four_digits_are_not_channels(tmp_path):
    """AMOS and WORD lie like this."""
    decathlon(tmp_path, cases=("amos_0001", "amos_0004", "amos_0005"))
    found = list_cases(tmp_path)
    assert found.layout == "msd"
    assert [case.id for case in found.cases] == ["amos_0001", "amos_0004", "amos_0005"]


def test_the_list_of_nnunet_1_names_files_without_their_channel_number(tmp_path):
    nnunet(tmp_path, channels=2)
    for extra in ({}, {"channel_names": None, "file_ending": None}):
        entries = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "abc"]
        description = {"modality": {"0": "CT", "1": "PET"}, "labels": LABELS, "training": entries, **extra}
        write_json(tmp_path / "dataset.json", {key: value for key, value in description.items() if value is not None})
        found = list_cases(tmp_path)
        assert (found.layout, [len(case.image) for case in found.cases]) == ("nnunet", [2, 2, 2])


def test_folds_of_a_datalist_choose_the_validation_cases(tmp_path):
    description = decathlon(tmp_path)
    for fold, entry in enumerate(description["training"]):
        entry["fold"] = fold
    write_json(tmp_path / "dataset.json", description)
    split = list_cases(tmp_path, fold=1).split
    assert (split.train, split.val) == (("a", "c"), ("b",))
    refused(tmp_path, "fold 7", fold=7)


def frames(path, n):
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, n), np.uint8), np.eye(4)), path)


def test_the_frames_of_a_4d_file_are_the_channels_that_dataset_json_names(tmp_path):
    decathlon(tmp_path, modality={"0": "T1", "1": "T2"})
    for case in "abc":
        frames(tmp_path / f"imagesTr/{case}.nii.gz", 2)
    found = list_cases(tmp_path)
    assert found.channel_names == ("T1", "T2")
    assert [(case.image, case.frames) for case in found.cases[:1]] == [((tmp_path / "imagesTr/a.nii.gz",), (0, 1))]
    assert find_images(tmp_path).images["a"] == (tmp_path / "imagesTr/a.nii.gz",)


@pytest.mark.parametrize(("n", "said"), [(1, "1 image file of 1 frame;"), (3, "1 image file of 3 frames;")])
def test_a_file_with_other_frames_than_channels_is_refused(tmp_path, n, said):
    decathlon(tmp_path, modality={"0": "T1", "1": "T2"})
    for case in "abc":
        frames(tmp_path / f"imagesTr/{case}.nii.gz", n)
    refused(tmp_path, "case a", "expected 2 channels", said, "4-D", "list of channels")


def test_a_damaged_file_that_may_hold_the_channels_is_named(tmp_path):
    decathlon(tmp_path, modality={"0": "T1", "1": "T2"})
    (tmp_path / "imagesTr/a.nii.gz").write_bytes(b"no volume")
    refused(tmp_path, "case a", "a.nii.gz", "expected a NIfTI file")


def test_a_link_out_of_the_data_set_is_refused_before_its_frames_are_counted(tmp_path):
    root = tmp_path / "data"
    decathlon(root, modality={"0": "T1", "1": "T2"})
    frames(tmp_path / "secret.nii.gz", 2)
    (root / "imagesTr/a.nii.gz").unlink()
    (root / "imagesTr/a.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    refused(root, "case a", "a link that leads out of the data set")


@pytest.mark.parametrize(
    "name", ["../secret.nii.gz", "/etc/passwd", "a/../../secret.nii.gz", "C:\\secret.nii.gz", "", 7]
)
def test_names_in_dataset_json_stay_inside_the_data_set(tmp_path, name):
    entry = {"image": name, "label": "b.nii.gz"}
    write_json(tmp_path / "dataset.json", {"labels": LABELS, "training": [entry]})
    refused(tmp_path, "dataset.json", repr(name))


def test_paths_of_windows_and_labels_in_a_list_are_read(tmp_path):
    description = decathlon(tmp_path)
    for entry in description["training"]:
        entry["image"] = entry["image"].replace("/", "\\")
        entry["label"] = [entry["label"]]
    write_json(tmp_path / "dataset.json", description)
    found = list_cases(tmp_path)
    assert found.cases[0].image == (tmp_path / "imagesTr/a.nii.gz",)
    assert found.cases[0].label == tmp_path / "labelsTr/a.nii.gz"
    description["training"][0]["image"] = "..\\..\\secret.nii.gz"
    write_json(tmp_path / "dataset.json", description)
    refused(tmp_path, "leads out of the data set")
    description["training"][0] = {"image": "imagesTr/a.nii.gz", "label": ["labelsTr/a.nii.gz", "labelsTr/b.nii.gz"]}
    write_json(tmp_path / "dataset.json", description)
    refused(tmp_path, "one label for case a, found 2 files", "name one label map")


def test_a_datalist_may_have_any_name_and_the_keys_of_others(tmp_path):
    description = decathlon(tmp_path)
    entries = [
        {"img": e["image"], "seg": str(tmp_path / e["label"]), "fold": n} for n, e in enumerate(description["training"])
    ]
    (tmp_path / "dataset.json").unlink()
    listed = write_json(tmp_path / "task.json", {**description, "training": entries})
    found = list_cases(listed, fold=1)
    assert [case.id for case in found.cases] == ["a", "b", "c"]
    assert (found.split.val, found.channel_names) == (("b",), ("CT",))
    assert found.cases[0].label == tmp_path / "labelsTr/a.nii.gz"


def test_absolute_paths_that_stay_inside_are_read(tmp_path):
    description = decathlon(tmp_path)
    for entry in description["training"]:
        entry["image"] = str(tmp_path / entry["image"])
    write_json(tmp_path / "dataset.json", description)
    assert list_cases(tmp_path).cases[0].image == (tmp_path / "imagesTr/a.nii.gz",)
    description["training"][0]["image"] = f"{tmp_path}/../secret.nii.gz"
    write_json(tmp_path / "dataset.json", description)
    refused(tmp_path, "leads out of the data set")


def test_files_of_another_suffix_or_case_of_letters_are_taken_where_there_is_only_one(tmp_path):
    decathlon(tmp_path, cases="ab")
    (tmp_path / "imagesTr/a.nii.gz").rename(tmp_path / "imagesTr/A.nii")
    assert [case.image[0].name for case in list_cases(tmp_path).cases] == ["A.nii", "b.nii.gz"]
    (tmp_path / "imagesTr/a.NII.GZ").touch()
    refused(tmp_path, "case a", "does not exist")
