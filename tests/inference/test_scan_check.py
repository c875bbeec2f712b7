"""Scans that are unlike those of the training are warned of, on the terminal and in the record; all others are not."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.cli.main import main
from pipeline.inference.model import load_models
from pipeline.inference.passes import prepare
from pipeline.planning.scan_range import ScanRange
from tests.support.tiny_prediction import checkpoint
from transforms.io.grid import SHEAR_IN_ITK

CT = ScanRange(
    spacing_mm=((0.7, 0.7, 2.0), (1.0, 1.0, 5.0)),
    extent_mm=((350, 350, 200), (400, 400, 400)),
    orientations=("LPS",),
    modalities=(),
    darkest=(-1024, -1000),
)
MR = replace(CT, darkest=(0, 0))


def saved(path, lowest=-1000.0, spacing=(8.0, 8.0, 4.0), shape=(45, 44, 75), axes="LPS", value=None):
    """A scan of 360 × 352 × 300 mm whose voxels hold noise above `lowest`, or one value."""
    array = np.random.default_rng(0).normal(lowest + 800, 50, shape)
    array[0, 0, 0] = lowest
    if value is not None:
        array[:] = value
    image = nib.Nifti1Image(array.astype(np.float32), np.diag([*spacing, 1.0]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), path)
    return path


def warnings_for(tmp_path, path, scans, **chain):
    # Coarse voxels keep the test fast: the range of the training is widened to them.
    if scans is not None:
        scans = scans.to_document() | {"spacing_mm": [[6, 6, 2], [8, 8, 5]]}
    run = checkpoint(tmp_path / "m.ckpt", extra={"scans": scans}, **chain)
    return prepare(load_models([run], torch.device("cpu")), [path], "case").warnings


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PLI"])
def test_a_scan_as_those_of_the_training_is_not_warned_of(tmp_path, axes):
    path = saved(tmp_path / "a.nii", axes=axes)
    assert warnings_for(tmp_path, path, CT) == ()
    assert warnings_for(tmp_path, path, None) == ()
    path = saved(tmp_path / "b.nii", lowest=0, axes=axes)
    assert warnings_for(tmp_path, path, MR, intensity="mr") == ()
    assert warnings_for(tmp_path, path, None, intensity="zscore") == ()


@pytest.mark.parametrize(
    ("scan", "scans", "chain", "words"),
    [
        ({}, MR, {"intensity": "mr"}, "the scan is CT (it has values down to -1000, as air in HU)"),
        ({}, None, {"intensity": "mr"}, "the network was trained on MR"),
        ({"lowest": 0}, CT, {}, "the scan is no CT in HU (its lowest value is 0, that of the training's scans -1000"),
        ({"value": 7}, CT, {}, "every voxel of the scan is 7"),
        ({"spacing": (8, 8, 12), "shape": (45, 44, 25)}, CT, {}, "voxels of 12 mm foot-head, those of the training 2 "),
        ({"shape": (45, 44, 20)}, CT, {}, "a field of view of 80 mm foot-head, those of the training 200 to 400 mm"),
        (
            {"shape": (45, 20, 20)},
            CT,
            {},
            "a field of view of 160 mm back-front, 80 mm foot-head, those of the training 350 to 400, 200 to 400 mm",
        ),
        ({"axes": "PSR"}, CT, {}, "the scan's slices lie left-right, those of the training foot-head"),
    ],
    ids=["CT for MR", "CT for MR, earlier", "MR for CT", "constant", "thick", "short", "small", "sagittal"],
)
def test_a_scan_unlike_those_of_the_training_is_warned_of(tmp_path, scan, scans, chain, words):
    (warning,) = warnings_for(tmp_path, saved(tmp_path / "a.nii", **scan), scans, **chain)
    assert words in warning


@pytest.mark.parametrize(
    ("way", "highest", "is_unlike"),
    [("0to1", 0.4, False), ("0to1", 255, True), ("0to255", 200, False), ("0to255", 1, True), ("0to255", 0, False)],
)
def test_a_mask_in_other_numbers_than_those_of_the_training_is_warned_of(tmp_path, way, highest, is_unlike):
    scan, mask = saved(tmp_path / "a.nii"), tmp_path / "a_mask.nii"
    image = nib.load(scan)
    prior = np.zeros(image.shape, np.float32)
    prior[3:9] = highest
    nib.save(nib.Nifti1Image(prior, image.affine), mask)
    run = checkpoint(tmp_path / "m.ckpt", channels=("CT", "prior"), intensity=["ct", way])
    found = prepare(load_models([run], torch.device("cpu")), [scan, mask], "case").warnings
    words = f"channel prior of the scan has values from 0 to {highest}, that of the training from 0 to {way[3:]}"
    assert found == ((words,) if is_unlike else ())


def test_a_channel_without_contrast_is_warned_of(tmp_path):
    files = [saved(tmp_path / "ct.nii"), saved(tmp_path / "pet.nii", value=0.0), saved(tmp_path / "m.nii", value=0.0)]
    run = checkpoint(tmp_path / "run.ckpt", channels=("CT", "PET", "mask"), intensity=["ct", "zscore", "0to1"])
    found = prepare(load_models([run], torch.device("cpu")), files, "case").warnings
    assert found == ("every voxel of channel PET of the scan is 0: nothing can be seen in it",)


@pytest.mark.parametrize("kind", ["T2w", "seg-subreg", "seg-vert"])
def test_a_label_map_in_the_place_of_a_scan_is_warned_of(shared_data, tmp_path, kind):
    (path,) = (shared_data / "spine_crops" / "sample_mri").glob(f"*{kind}*")
    found = warnings_for(tmp_path, path, None, intensity="mr")
    assert ["label map" in words for words in found] == ([] if kind == "T2w" else [True])
    run = checkpoint(tmp_path / "m.ckpt", channels=("MR", "prior"), intensity=["mr", "0to255"])
    (scan,) = path.parent.glob("*T2w*")
    two = prepare(load_models([run], torch.device("cpu")), [scan, path], "case").warnings
    assert not any("label map" in words for words in two)  # a mask as a channel is one


def test_a_sheared_scan_is_warned_of(tmp_path):
    affine = np.diag([8.0, 8.0, 4.0, 1.0])
    affine[0, 2] = 0.5
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(-200, 300, (45, 44, 75)), affine), tmp_path / "a.nii")
    (warning,) = warnings_for(tmp_path, tmp_path / "a.nii", CT)
    assert warning.startswith("the scan's voxel axes are 7.1 degrees off right angles: ")
    assert SHEAR_IN_ITK in warning


def test_warnings_are_printed_and_recorded(tmp_path, capsys):
    run = checkpoint(tmp_path / "m.ckpt", intensity="mr")
    path = saved(tmp_path / "case.nii")
    assert main(["predict", str(run), str(path), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    counts, heading, line, *_ = capsys.readouterr().out.splitlines()
    assert (counts, heading) == ("1 done, 0 skipped, 0 failed", "Warnings:")
    assert line.startswith("  case: the scan is CT")
    (recorded,) = json.loads((tmp_path / "out" / "case.json").read_text())["warnings"]
    assert line.endswith(recorded)


def test_the_header_of_a_dicom_series_says_what_it_is(shared_data, tmp_path):
    path = shared_data / "dicom_seg" / "ct-3slice"
    assert warnings_for(tmp_path, path, None) == ()
    (warning,) = warnings_for(tmp_path, path, None, intensity="mr")
    assert warning == "the scan is CT (its header says so), the network was trained on MR"
