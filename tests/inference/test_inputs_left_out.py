"""What lies beside the scans to segment and is none: results, label maps, a case's second file."""

from __future__ import annotations

import json

import pydicom
import pytest

from pipeline.inference.inputs import InputCase, list_inputs, list_volumes
from pipeline.writers.segmentation import SegmentationError
from tests.support.datasets import volume as save
from tests.support.volumes import write_series
from transforms.io.errors import VolumeError


def ids(cases: tuple[InputCase, ...]) -> list[str]:
    return [case.id for case in cases]


def test_results_inside_the_input_tree_are_no_scans(tmp_path):
    save(tmp_path / "in" / "a.nii.gz")
    save(tmp_path / "in" / "out" / "b.nii.gz")
    assert ids(list_inputs([tmp_path / "in"], output=tmp_path / "in" / "out")) == ["a"]
    (tmp_path / "results").symlink_to(tmp_path / "in" / "out")
    assert ids(list_inputs([tmp_path / "in"], output=tmp_path / "results")) == ["a"]
    assert ids(list_inputs([tmp_path / "in"], output=tmp_path)) == ["a", "out_b"]
    with pytest.raises(SegmentationError, match="would lie in one folder"):
        list_inputs([tmp_path / "in"], output=tmp_path / "in")


def nnunet_data_set(folder):
    for name in ("imagesTr/a_0000", "labelsTr/a"):
        save(folder / f"{name}.nii.gz")
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


def test_a_data_set_whose_scans_all_lie_in_the_folder_of_the_results_is_refused(tmp_path):
    nnunet_data_set(tmp_path / "set")
    with pytest.raises(SegmentationError, match="imagesTr: scans and results would lie in one folder"):
        list_inputs([tmp_path / "set"], output=tmp_path / "set" / "imagesTr")


def test_label_maps_of_a_data_set_within_the_folder_of_the_results_are_no_scans(tmp_path):
    scans = tmp_path / "work" / "scans"
    nnunet_data_set(scans / "setA")
    assert ids(list_inputs([scans], output=tmp_path / "work")) == ["setA_a"]


def test_a_doubled_file_of_a_data_set_fails_its_case_alone(tmp_path):
    for name in ("images/a.nii.gz", "images/a.nii", "images/b.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz"):
        save(tmp_path / name)
    (tmp_path / "labels.json").write_text(json.dumps({"background": 0, "liver": 1}))
    good, bad = sorted(list_inputs([tmp_path]), key=lambda case: case.error)
    assert (good.id, bad.id) == ("b", "a")
    assert "expected one file" in bad.error


def test_two_scans_of_one_tree_that_would_share_a_name_are_to_be_renamed(tmp_path):
    save(tmp_path / "a" / "b_c.nii.gz")
    save(tmp_path / "a_b" / "c.nii.gz")
    with pytest.raises(VolumeError, match="rename one or move it away"):
        list_volumes([tmp_path])


def test_label_maps_beside_the_images_of_a_tree_are_no_scans_and_are_named(tmp_path, caplog):
    names = ("c0/imaging", "c0/aggregated_OR_seg", "c0/aggregated_MAJ_seg", "c0/segmentations/kidney", "p_mask")
    for name in names:
        save(tmp_path / f"{name}.nii.gz")
    assert ids(list_inputs([tmp_path])) == ["c0_imaging", "p_mask"]
    assert "3 label maps beside images" in caplog.text
    assert "aggregated_MAJ_seg.nii.gz" in caplog.text
    assert ids(list_inputs([tmp_path / "c0" / "aggregated_OR_seg.nii.gz"])) == ["aggregated_OR_seg"]
    assert "p_mask" in ids(list_inputs([tmp_path], ["CT", "brain_mask"]))


def test_a_dicom_segmentation_beside_its_series_is_no_scan_whatever_a_series_of_pictures_is_called(tmp_path):
    for name in ("1.0-CT for mask", "2.0-MR", "300.0-Segmentation"):
        write_series(tmp_path / name, [0.0])
    (path,) = (tmp_path / "300.0-Segmentation").iterdir()
    header = pydicom.dcmread(path)
    header.Modality = "SEG"
    header.save_as(path)
    assert ids(list_inputs([tmp_path])) == ["1.0-CT for mask", "2.0-MR"]
