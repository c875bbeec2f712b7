"""The layout images/ + labels/."""

from __future__ import annotations

import pytest

from pipeline.datasets.listing import find_images, list_cases
from tests.support.datasets import LABELS, nnunet, pairs, refused, volume, write_json


def test_suffixes_may_differ_and_names_come_from_a_table_or_the_settings(tmp_path):
    found = list_cases(pairs(tmp_path / "a"))
    assert (found.layout, found.classes.names) == ("pairs", ("background", "liver", "spleen"))
    assert [(case.image[0].name, case.label.name) for case in found.cases] == [
        ("x.nii.gz", "x.nii"),
        ("y.nii.gz", "y.nii"),
    ]
    unnamed = pairs(tmp_path / "b", names=None)
    refused(unnamed, "names of the classes, found none", "labels.json", "data.class_names")
    assert list_cases(unnamed, class_names=["background", "organ"]).classes.names == ("background", "organ")


def test_an_image_may_be_a_dicom_folder(tmp_path, shared_data):
    pairs(tmp_path)
    (tmp_path / "images/ct").symlink_to(shared_data / "dicom_seg/ct-3slice")
    (tmp_path / "labels/ct.nrrd").symlink_to(shared_data / "dicom_seg/liver_seg.nrrd")
    refused(tmp_path, "case ct: ", "leads out of the data set", "--follow_links")
    assert [case.id for case in list_cases(tmp_path, follow_links=True).cases] == ["ct", "x", "y"]


def test_two_files_of_one_case_are_named(tmp_path):
    pairs(tmp_path)
    volume(tmp_path / "labels/x.nii.gz")
    refused(tmp_path, "case x: expected one file, found ", "labels/x.nii and ", "labels/x.nii.gz; remove one")


@pytest.mark.parametrize("label", ["{}.seg.nrrd", "{}-label.nii.gz", "{}_seg.nii.gz", "{}_mask.nii"])
def test_labels_may_be_called_as_slicer_and_others_call_them(tmp_path, label):
    for case in ("c0", "c1"):
        volume(tmp_path / f"images/{case}.nii.gz")
        written = volume(tmp_path / f"labels/{case}.nii.gz")
        written.rename(written.with_name(label.format(case)))
    write_json(tmp_path / "labels.json", LABELS)
    found = list_cases(tmp_path)
    assert [(case.id, case.label.name) for case in found.cases] == [(c, label.format(c)) for c in ("c0", "c1")]


def test_a_case_that_is_called_label_keeps_its_name(tmp_path):
    pairs(tmp_path, cases=("a", "a_label"))
    assert [case.id for case in list_cases(tmp_path).cases] == ["a", "a_label"]
    volume(tmp_path / "labels/a-seg.nii")
    refused(tmp_path, "case a: expected one file, found ", "a-seg.nii")


@pytest.mark.parametrize(
    ("images", "labels"), [("Images", "Labels"), ("img", "masks"), ("imgs", "seg"), ("TrainingImg", "TrainingMask")]
)
def test_the_two_folders_may_have_other_names(tmp_path, images, labels):
    for case in "ab":
        volume(tmp_path / f"{images}/{case}.nii.gz")
        volume(tmp_path / f"{labels}/{case}.nii.gz")
    write_json(tmp_path / "labels.json", LABELS)
    assert [case.id for case in list_cases(tmp_path).cases] == ["a", "b"]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("volume-{}.nii", "segmentation-{}.nii"),
        ("img{:04d}.nii.gz", "label{:04d}.nii.gz"),
        ("c{}_ct.nii.gz", "c{}_seg.nii.gz"),
        ("c{}.nii.gz", "c{}_roi.nii.gz"),
    ],
)
@pytest.mark.parametrize("folders", [("images", "labels"), (".", ".")])
def test_image_and_label_are_paired_by_what_both_names_say(tmp_path, image, label, folders):
    for number in range(3):
        volume(tmp_path / folders[0] / image.format(number))
        volume(tmp_path / folders[1] / label.format(number))
    write_json(tmp_path / "labels.json", LABELS)
    found = list_cases(tmp_path)
    names = [(case.image[0].name, case.label.name) for case in found.cases]
    assert (found.layout, names) == ("pairs", [(image.format(n), label.format(n)) for n in range(3)])
    assert [*find_images(tmp_path).images] == [case.id for case in found.cases]


def test_a_folder_of_scans_some_of_which_have_a_mask_is_no_data_set(tmp_path):
    for name in ("a", "a_seg", "b"):
        volume(tmp_path / f"{name}.nii.gz")
    refused(tmp_path, "3 volumes")


@pytest.mark.parametrize(("image", "label"), [("volume-{}", "segmentation-{}"), ("a{}", "a{}_seg")])
def test_an_image_without_its_label_among_pairs_in_one_folder_is_named(tmp_path, image, label):
    for number in range(3):
        volume(tmp_path / f"{image.format(number)}.nii.gz")
        if number != 1:
            volume(tmp_path / f"{label.format(number)}.nii.gz")
    write_json(tmp_path / "labels.json", LABELS)
    refused(tmp_path, f"case {image.format(1)}: ", "expected a label beside the image, found none")
    images = find_images(tmp_path).images
    assert [paths[0].name for paths in images.values()] == [f"{image.format(n)}.nii.gz" for n in range(3)]


def test_a_label_without_its_image_among_pairs_in_one_folder_is_named(tmp_path):
    for name in ("volume-0", "segmentation-0", "volume-1", "segmentation-1", "segmentation-2"):
        volume(tmp_path / f"{name}.nii.gz")
    write_json(tmp_path / "labels.json", LABELS)
    refused(tmp_path, "case segmentation-2: ", "expected an image beside the label, found none")


def test_channels_of_nnunet_without_a_description_are_those_of_a_case(tmp_path):
    nnunet(tmp_path, cases=("F_0001", "F_0002"), channels=2)
    (tmp_path / "dataset.json").unlink()
    write_json(tmp_path / "labels.json", LABELS)
    found = list_cases(tmp_path)
    assert [(case.id, len(case.image)) for case in found.cases] == [("F_0001", 2), ("F_0002", 2)]
    assert found.cases[0].label.name == "F_0001.nii.gz"


def test_names_that_several_images_may_mean_are_not_guessed(tmp_path):
    for name in ("c0_t1", "c0_t2"):
        volume(tmp_path / f"images/{name}.nii.gz")
    volume(tmp_path / "labels/c0_seg.nii.gz")
    write_json(tmp_path / "labels.json", LABELS)
    refused(tmp_path, "case c0_seg", "an image beside the label")


@pytest.mark.parametrize(("image", "other"), [("ct_1", "ct_1_mr"), ("mr_1", "mr_1_t1"), ("scan_1", "scan_1_ct")])
def test_a_label_of_an_images_own_name_is_not_that_of_a_longer_one(tmp_path, image, other):
    for name in (image, other):
        volume(tmp_path / f"images/{name}.nii.gz")
    volume(tmp_path / f"labels/label_{image}.nii.gz")
    write_json(tmp_path / "labels.json", LABELS)
    refused(tmp_path, f"label_{image}", "an image beside the label")
    (tmp_path / f"images/{other}.nii.gz").unlink()
    assert [case.image[0].name for case in list_cases(tmp_path).cases] == [f"{image}.nii.gz"]


def test_the_label_of_case_1_is_not_that_of_image_t11(tmp_path):
    """The name t11 is not T1 with the number 1."""
    for image, label in (("a", "a"), ("t11", "seg1"), ("t23", "seg3")):
        volume(tmp_path / f"images/{image}.nii.gz")
        volume(tmp_path / f"labels/{label}.nii.gz")
    write_json(tmp_path / "labels.json", LABELS)
    found = list_cases(tmp_path, strict=False)
    assert [case.id for case in found.cases] == ["a"]
    assert sorted(error.case for error in found.refused) == ["seg1", "seg3", "t11", "t23"]


def test_a_case_with_two_images_is_refused_and_no_case_beside(tmp_path):
    volume(pairs(tmp_path) / "images/x.nii")
    found = find_images(tmp_path)
    assert (list(found.images), [error.case for error in found.refused]) == (["y"], ["x"])


def test_a_link_to_nothing_refuses_its_case_alone(tmp_path):
    pairs(tmp_path, cases=("x", "y", "z"))
    (tmp_path / "images/x.nii.gz").unlink()
    (tmp_path / "images/x.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    (tmp_path / "images/README").symlink_to(tmp_path / "nowhere")
    found = list_cases(tmp_path, strict=False)
    assert ([case.id for case in found.cases], [error.case for error in found.refused]) == (["y", "z"], ["x"])
    refused(tmp_path, "case x", "images/x.nii.gz: expected a file")
