"""A folder a case with its images and one label map, as KiTS and BraTS lie on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.listing import find_images, list_cases
from tests.support.datasets import LABELS, refused, volume, write_json


def kits(root: Path) -> Path:
    for case in ("case_00000", "case_00001"):
        volume(root / case / "imaging.nii.gz")
        volume(root / case / "segmentation.nii.gz")
    write_json(root / "labels.json", LABELS)
    return root


def brats(root: Path) -> Path:
    for case in ("BraTS-GLI-00000-000", "BraTS-GLI-00001-000"):
        for name in ("t1n", "t1c", "t2w", "t2f", "seg"):
            volume(root / case / f"{case}-{name}.nii.gz")
    write_json(root / "labels.json", LABELS)
    return root


def test_kits_is_read(tmp_path):
    found = list_cases(kits(tmp_path))
    assert (found.layout, found.channel_names) == ("folders", ("imaging",))
    assert [(case.id, case.image[0].name, case.label.name) for case in found.cases] == [
        (case, "imaging.nii.gz", "segmentation.nii.gz") for case in ("case_00000", "case_00001")
    ]


def test_the_channels_of_brats_come_in_one_order(tmp_path):
    found = list_cases(brats(tmp_path))
    assert (found.layout, found.channel_names) == ("folders", ("t1c", "t1n", "t2f", "t2w"))
    case = found.cases[1]
    assert [path.name for path in case.image] == [f"{case.id}-{name}.nii.gz" for name in found.channel_names]
    assert case.label.name == f"{case.id}-seg.nii.gz"
    assert list(find_images(tmp_path).images) == [case.id for case in found.cases]


def test_what_a_case_folder_lacks_is_named(tmp_path):
    brats(tmp_path)
    (tmp_path / "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii.gz").unlink()
    refused(tmp_path, "case BraTS-GLI-00001-000", "the images t1c, t1n, t2f, t2w", "none for t2f")
    (tmp_path / "BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz").unlink()
    volume(tmp_path / "BraTS-GLI-00002-000/BraTS-GLI-00002-000-seg.nii.gz")
    volume(tmp_path / "BraTS-GLI-00002-000/BraTS-GLI-00002-000-mask.nii.gz")
    (tmp_path / "BraTS-GLI-00001-000/extra.json").write_text("{}")
    refused(tmp_path, "case BraTS-GLI-00000-000", "a label beside the image", layout="folders")
    refused(tmp_path, "case BraTS-GLI-00002-000", "one label map", layout="folders")


def test_a_file_that_one_case_alone_has_is_refused_there_and_not_missed_everywhere(tmp_path):
    kits(tmp_path)
    for name in ("case_00001/venous", "case_00002/imaging", "case_00002/W39_1998.09.19_Segm"):
        volume(tmp_path / f"{name}.nii.gz")
    found = list_cases(tmp_path, strict=False)
    assert (found.channel_names, [case.id for case in found.cases]) == (("imaging",), ["case_00000", "case_00002"])
    assert found.cases[1].label.name == "W39_1998.09.19_Segm.nii.gz"  # one label map of BraTS 2020 is called so
    assert [(error.case, error.found) for error in found.refused] == [("case_00001", "venous besides")]


def test_an_image_may_have_the_name_of_its_folder(tmp_path):
    for case in ("Patient_01", "Patient_02"):  # SegTHOR
        volume(tmp_path / f"{case}/{case}.nii.gz")
        volume(tmp_path / f"{case}/GT.nii.gz")
    write_json(tmp_path / "labels.json", LABELS)
    found = list_cases(tmp_path)
    assert (found.channel_names, [case.id for case in found.cases]) == (("image",), ["Patient_01", "Patient_02"])


@pytest.mark.parametrize("name", ["imaging.nrrd", "case_00001_imaging.nii.gz", "case_00001-segmentation.nii"])
def test_two_files_of_one_name_are_not_chosen_between(tmp_path, name):
    kits(tmp_path)
    (tmp_path / f"case_00001/{name}").write_bytes(b"")
    refused(tmp_path, "case case_00001: expected one file", f"case_00001/{name}", "remove one")
    if "imaging" in name:
        assert list(find_images(tmp_path).images) == ["case_00000"]


@pytest.mark.parametrize("name", ["seg_rater2", "aggregated_MAJ_seg", "LesionSeg", "case-label2", "GT_second"])
def test_a_second_segmentation_is_no_input_of_the_network(tmp_path, name):
    kits(tmp_path)
    volume(tmp_path / f"case_00001/{name}.nii.gz")
    refused(
        tmp_path,
        "case case_00001",
        f"found the segmentations {', '.join(sorted([name, 'segmentation']))};",
        "cases.csv",
    )
    found = list_cases(tmp_path, strict=False)
    assert found.channel_names == ("imaging",)
    assert [case.id for case in found.cases] == ["case_00000"]
    volume(tmp_path / f"case_00000/{name}.nii.gz")
    refused(tmp_path, "case case_00000", "case case_00001")


def test_a_mask_among_the_channels_is_a_warning(tmp_path):
    kits(tmp_path)
    for case in ("case_00000", "case_00001"):
        volume(tmp_path / f"{case}/{case}_brain_mask.nii.gz")
    found = list_cases(tmp_path)
    assert found.channel_names == ("brain_mask", "imaging")
    assert [(warning.kind, warning.found) for warning in found.warnings] == [
        ("mask_channel", "the channels brain_mask")
    ]


@pytest.mark.parametrize("name", ["aggregated_MAJ_seg", "truth", "Segmentation"])
def test_the_label_map_may_have_another_name_that_says_what_it_is(tmp_path, name):
    for path in kits(tmp_path).glob("*/segmentation.nii.gz"):
        path.rename(path.with_name(f"{name}.nii.gz"))
    found = list_cases(tmp_path)
    assert (found.layout, found.channel_names) == ("folders", ("imaging",))
    assert {case.label.name for case in found.cases} == {f"{name}.nii.gz"}
