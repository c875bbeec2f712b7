"""The layout images/ + labels/."""

from __future__ import annotations

from pipeline.datasets.listing import list_cases
from tests.support.datasets import pairs, refused, volume


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
