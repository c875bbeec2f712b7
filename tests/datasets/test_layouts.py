"""Layouts are recognised, and a folder in none of them hears what was looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.layouts import READERS, find_layout, recognise
from pipeline.datasets.listing import list_cases
from pipeline.inference.inputs import list_inputs
from tests.support.datasets import decathlon, nnunet, pairs, refused, totalsegmentator, volume, write_json
from tests.support.questions import counted
from tests.support.volumes import write_series
from transforms.io import dicom


@pytest.mark.parametrize(
    ("layout", "build"),
    [("nnunet", nnunet), ("msd", decathlon), ("totalsegmentator", totalsegmentator), ("pairs", pairs)],
)
def test_every_layout_is_recognised(tmp_path, layout, build):
    build(tmp_path)
    assert recognise(tmp_path, FileIndex()) == layout
    assert list_cases(tmp_path).layout == layout


def test_a_list_is_a_file_or_a_folder_with_one(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("case,image\n")
    assert recognise(path, FileIndex()) == "list"
    path.rename(tmp_path / "cases.csv")
    assert recognise(tmp_path, FileIndex()) == "list"


def test_a_folder_that_is_not_a_data_set_hears_what_was_looked_for(tmp_path):
    refused(tmp_path, str(tmp_path), "dataset.json", "segmentations", "images/", "cases.csv")
    refused(tmp_path / "absent", "no such file")
    refused(tmp_path, "nnunet, msd, totalsegmentator, pairs, folders, list", layout="bids")
    assert find_layout(tmp_path, FileIndex()) is None
    assert find_layout(volume(tmp_path / "scan.nii.gz"), FileIndex()) is None


def test_what_lies_in_the_place_of_a_data_set_is_named(tmp_path):
    scan = volume(tmp_path / "scans" / "ct.nii.gz")
    volume(tmp_path / "scans" / "mask.nii.gz")
    refused(tmp_path / "scans", "2 volumes (ct.nii.gz, mask.nii.gz)", "cases.csv with the columns image,label")
    refused(scan, "a single volume", "cases.csv with the columns image,label")
    write_series(tmp_path / "series", [0, 3])
    refused(tmp_path / "series", "a DICOM series, but none of", "cases.csv with the columns image,label")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.mgz").touch()
    refused(tmp_path / "other", "only a.mgz, none of")
    pairs(tmp_path / "tasks" / "Task1")
    refused(tmp_path / "tasks", "a folder that is a data set (Task1)", f"name that folder, {tmp_path / 'tasks/Task1'}")
    pairs(tmp_path / "tasks" / "Task2")
    refused(tmp_path / "tasks", "folders that are data sets (Task1, Task2)", "name one or several of them")
    pairs(tmp_path / "BTCV" / "RawData" / "Training")
    refused(tmp_path / "BTCV", "set (RawData/Training)", f"name that folder, {tmp_path / 'BTCV/RawData/Training'}")


def test_volumes_of_bids_and_of_several_raters_are_named_and_not_the_tables_beside_them(tmp_path):
    for name in ("derivatives/sub-1/sub-1_msk", "rawdata/sub-1/anat/sub-1_T1w"):
        volume(tmp_path / "bids" / f"{name}.nii.gz")
    (tmp_path / "bids/participants.tsv").write_text("participant_id\tage\nsub-1\t60\n")
    write_json(tmp_path / "bids/dataset_description.json", {"Name": "x", "BIDSVersion": "1.6"})
    refused(
        tmp_path / "bids", "volumes in folders below it (derivatives/sub-1/sub-1_msk.nii.gz), but none", "cases.csv"
    )
    for name in ("imaging", "aggregated_MAJ_seg", "aggregated_OR_seg"):
        volume(tmp_path / f"kits21/case_00000/{name}.nii.gz")
    write_json(tmp_path / "kits21/kits.json", [{"case_id": "case_00000"}])
    refused(
        tmp_path / "kits21", "below it (case_00000/aggregated_MAJ_seg.nii.gz", "columns image,label, one line a case"
    )


def test_a_list_of_another_name_is_named(tmp_path):
    (tmp_path / "train.csv").write_text("image,label\na.nii.gz,b.nii.gz\n")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t60\n")
    refused(tmp_path, "train.csv, but none of", f"name the file itself: {tmp_path / 'train.csv'}")
    (tmp_path / "Dataset.json").write_text("{}")
    refused(tmp_path, "found Dataset.json", "rename it to dataset.json")


def test_one_dicom_file_in_a_list_hears_of_its_folder(tmp_path):
    write_series(tmp_path / "series", [0, 3])
    name = next((tmp_path / "series").iterdir()).name
    (tmp_path / "cases.csv").write_text(f"case,image,label\nc,series/{name},series\n")
    (tmp_path / "labels.json").write_text('{"liver": 1}')
    refused(tmp_path, "one DICOM file of it", f"name its folder, {tmp_path / 'series'}")


@pytest.mark.parametrize("layout", [name for name in READERS if name not in ("pairs", "folders")])
def test_a_layout_that_is_asked_for_must_be_there(tmp_path, layout):
    refused(tmp_path, str(tmp_path), layout=layout)


@pytest.mark.parametrize("layout", ["pairs", "folders"])
def test_cases_that_are_asked_for_must_be_there(tmp_path, layout):
    refused(tmp_path, f"expected cases in the {layout} layout", layout=layout, class_names=["background", "organ"])


def test_label_maps_of_data_sets_below_a_folder_are_no_scans(tmp_path):
    root = tmp_path / "in"
    for name in ("volume-0", "segmentation-0", "volume-1", "segmentation-1", "volume-2"):
        volume(root / "lits" / f"{name}.nii.gz")
    for name in ("Dataset001_X/imagesTr/a_0000", "Dataset001_X/labelsTr/a", "deep/p/images/b", "deep/p/labels/b"):
        volume(root / "more" / f"{name}.nii.gz")
    volume(root / "mr" / "imagesTs" / "c_0000.nii.gz")
    volume(root / "mr" / "labelsTs" / "c.nii.gz")
    volume(root / "tree" / "images" / "day1" / "f.nii.gz")
    (root / "tree" / "labels").mkdir()
    volume(root / "broken" / "labelsTr" / "d.nii.gz")
    (root / "broken" / "dataset.json").write_text("{")
    expected = [
        "broken",
        "lits_volume-0",
        "lits_volume-1",
        "lits_volume-2",
        "more_Dataset001_X_a",
        "more_deep_p_b",
        "mr_c",
        "tree_images_day1_f",
    ]
    cases = list_inputs([root])
    assert [case.id for case in list_inputs([root / "more"])] == [
        "Dataset001_X_a",
        "deep_p_b",
    ]  # no scan beside the data sets
    assert sorted(case.id for case in cases) == expected
    assert [case.id for case in cases if case.error] == ["broken"]
    volume(root / "single.nii.gz")
    volume(root / "out" / "images" / "e.nii.gz")
    volume(root / "out" / "labels" / "e.nii.gz")
    assert sorted(case.id for case in list_inputs([root], output=root / "out")) == sorted([*expected, "single"])


def test_data_sets_below_a_folder_are_read_in_the_order_of_the_networks_channels(tmp_path):
    for name in ("imagesTr/a_0000", "imagesTr/a_0001", "labelsTr/a"):
        volume(tmp_path / "in" / "set" / f"{name}.nii.gz")
    description = {"channel_names": {"0": "PET", "1": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (tmp_path / "in" / "set" / "dataset.json").write_text(json.dumps(description))
    (case,) = list_inputs([tmp_path / "in"], ("CT", "PET"))
    assert (case.id, [path.name for path in case.images]) == ("set_a", ["a_0001.nii.gz", "a_0000.nii.gz"])
    (case,) = list_inputs([tmp_path / "in"], ("T1", "T2"))
    assert "T1" in case.error


def test_a_mask_beside_a_scan_may_be_a_channel(tmp_path):
    for name in ("a_CT", "a_mask", "b_CT", "b_mask"):
        volume(tmp_path / "in" / f"{name}.nii.gz")
    for folder in (tmp_path / "in", tmp_path):
        found = [[path.name for path in case.images] for case in list_inputs([folder], ("CT", "mask"))]
        assert found == [[f"{c}_CT.nii.gz", f"{c}_mask.nii.gz"] for c in "ab"]


def test_a_folder_of_scans_is_walked_once(tmp_path, monkeypatch):
    """A folder of 50,000 may lie on another machine's disk: it is listed, and each file only asked if it is DICOM."""
    opened: list[Path] = []
    is_dicom = dicom.is_dicom
    monkeypatch.setattr(dicom, "is_dicom", lambda path: opened.append(path) or is_dicom(path))
    asked = {}
    for n in (3, 8):
        for number in range(n):
            volume(tmp_path / str(n) / "deep" / f"scan{number}.nii.gz")
        opened.clear()
        with counted() as asked[n]:
            assert len(list_inputs([tmp_path / str(n)])) == n
        assert len(opened) == n
    assert asked[8] == asked[3]
    assert asked[8]["scandir"] <= 6
