"""The layout images/ + labels/."""

from __future__ import annotations

import pytest

from pipeline.datasets.listing import list_cases
from tests.support.datasets import LABELS, pairs, refused, volume, write_json


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
