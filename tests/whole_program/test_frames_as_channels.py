"""Channels that are the frames of one file, as in the Decathlon's BrainTumour: all commands take them as files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from pipeline.cli.main import main
from tests.support.datasets import write_json
from tests.support.plans import step
from tests.support.tiny_prediction import predicted, voxels
from tests.support.tiny_training import differences, tiny_training

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
CASES = [f"BRATS_00{n}" for n in range(1, 6)]
TEST = "BRATS_009"


def task01(root: Path, *, split: bool, order=(0, 1, 2, 3)) -> Path:
    """An imitation of Task01_BrainTumour, or the same with a file a channel; the frames in this order."""
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for number, case in enumerate([*CASES, TEST]):
        rng = np.random.default_rng(number)
        tumour = np.zeros((18, 16, 14), np.uint8)
        tumour[4:10, 5:11, 3 + number : 8 + number], tumour[6:8, 7:9, 4 + number : 7 + number] = 1, 2
        image = rng.normal(300, 40, (*tumour.shape, 4)) + tumour[..., None] * np.array([90, -40, 60, 120])
        image = nib.Nifti1Image(image[..., list(order)].astype(np.float32), AFFINE)
        path = root / f"images{'Ts' if case == TEST else 'Tr'}" / f"{case}.nii.gz"
        for channel, frame in enumerate(nib.four_to_three(image)) if split else ():
            nib.save(frame, path.with_name(f"{case}_{channel:04d}.nii.gz"))
        if not split:
            nib.save(image, path)
        if case != TEST:
            nib.save(nib.Nifti1Image(tumour, AFFINE), root / f"labelsTr/{case}.nii.gz")
    content = {
        "modality": {str(n): CHANNELS[frame] for n, frame in enumerate(order)},
        "labels": {"0": "background", "1": "edema", "2": "enhancing tumour"},
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in CASES],
        "test": [f"./imagesTs/{TEST}.nii.gz"],
    }
    write_json(root / "dataset.json", content)
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    task01(folder / "frames", split=False)
    task01(folder / "files", split=True)
    (folder / "data").mkdir()
    for name in ("frames", "files"):
        root = str(folder / name)
        more = {"dataset_root": root, "training.overlay_every": "1"}
        assert main(tiny_training(folder, name, max_epochs=2, **more)[0]) == 0
    return folder


def run_of(work: Path, name: str) -> Path:
    return work / "logs" / f"{name}_bs1_lr0.003_ch2_aug"


def test_a_training_is_that_of_the_same_data_with_a_file_a_channel(work):
    assert differences(run_of(work, "frames"), run_of(work, "files")) == []


def test_a_prediction_is_that_of_the_same_data_with_a_file_a_channel(work, tmp_path):
    run = run_of(work, "frames")
    turned = task01(tmp_path / "turned", split=False, order=(2, 0, 3, 1))
    given = {
        "files": work / "files",
        "frames": work / "frames",
        "named in another order": turned,
        "one scan": work / "frames/imagesTs" / f"{TEST}.nii.gz",
    }
    found = {}
    for name, source in given.items():
        report = predicted([run], [source], tmp_path / name, preview=True)
        assert report.n_failed == 0, report.cases
        found[name] = {case.case: voxels(tmp_path / name / f"{case.case}.nii.gz") for case in report.cases}
    assert [len(cases) for cases in found.values()] == [6, 6, 6, 1]
    assert len(np.unique(found["files"][TEST])) > 1
    for cases in found.values():
        assert all(np.array_equal(array, found["files"][case]) for case, array in cases.items())
    pictures = {(tmp_path / name / f"{TEST}.png").read_bytes() for name in given}
    assert len(pictures) == 1, "a preview of another channel"
    header = nib.load(tmp_path / "one scan" / f"{TEST}.nii.gz").header
    assert (header.get_data_shape(), header.get_zooms()) == ((18, 16, 14), (2, 2, 3))
    # what is there is known again, whatever its path, but not with the channels in other places
    assert predicted([run], [work / "frames"], tmp_path / "frames", preview=True).n_skipped == 6
    assert predicted([run], [given["one scan"]], tmp_path / "frames", preview=True).n_skipped == 1
    write_json(turned / "dataset.json", json.loads((work / "frames/dataset.json").read_text()))
    assert predicted([run], [turned], tmp_path / "named in another order", preview=True).n_done == 6


def test_plan_and_evaluate_say_the_same_of_both(work, tmp_path, monkeypatch):
    steps = [step((8, 8, 8), 2, 0.1, 0.1, 1000), step((16, 8, 8), 2, 0.2, 0.2, 2000)]
    monkeypatch.setattr("pipeline.plan.measure_steps", lambda request: steps)
    said = {}
    for name in ("frames", "files"):
        plan = tmp_path / f"{name}.yaml"
        flags = ["--budget", "2min", "--output", str(plan), "--cache_dir", str(tmp_path / "cache")]
        assert main(["plan", str(work / name), *flags]) == 0
        run = run_of(work, name)
        assert main(["evaluate", str(run), "--split", "val", "--device", "cpu"]) == 0
        scores = json.loads((run / "evaluation/val/metrics.json").read_text())
        planned = yaml.safe_load(plan.read_text())["data"]
        assert planned.pop("dataset_root") == str(work / name)
        said[name] = planned, [(case["case"], case["classes"]) for case in scores["cases"]]
    assert said["frames"] == said["files"]
