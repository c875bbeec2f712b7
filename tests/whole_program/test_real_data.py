"""The main job on real scans: folders as people have them in, a run that the contract's checker accepts out."""

from __future__ import annotations

import json
import runpy

import nibabel as nib
import numpy as np
import pytest

from pipeline.config.settings import Config, DataConfig, ExperimentConfig, LossConfig, ModelConfig, TrainingConfig
from pipeline.train import train


def cropped_and_rotated(image_path, label_path, names, folder, n_cases, step):
    """Write a few cases in the nnU-Net raw layout: crops of one scan, each tilted in the world and reoriented."""
    image, label = nib.load(image_path), nib.load(label_path)
    values = np.asarray(label.dataobj)[::step, ::step, :].astype(np.uint8)
    voxels = np.asarray(image.dataobj)[::step, ::step, :].astype(np.int16)
    held = {name: int(value) for name, value in names.items() if value == 0 or (values == value).sum() > 200}
    values[~np.isin(values, list(held.values()))] = 0
    affine = image.affine @ np.diag([step, step, 1, 1])
    rng = np.random.default_rng(0)
    for side in ("imagesTr", "labelsTr"):
        (folder / side).mkdir(parents=True)
    for case, axes in zip(range(n_cases), ("LPS", "RAS", "ASL", "SRA", "PIL"), strict=False):
        low = rng.integers(0, 8, 3)
        high = np.array(values.shape) - rng.integers(0, 8, 3)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        angle = np.deg2rad(rng.uniform(-10, 10))
        tilt = np.eye(4)
        tilt[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        grid = tilt @ affine @ np.block([[np.eye(3), low[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
        turn = nib.orientations.ornt_transform(nib.io_orientation(grid), nib.orientations.axcodes2ornt(axes))
        for array, name in ((voxels, f"imagesTr/c{case}_0000.nii.gz"), (values, f"labelsTr/c{case}.nii.gz")):
            written = nib.Nifti1Image(array[box], grid)
            written.set_sform(grid, 1)
            written.set_qform(grid, 1)
            nib.save(written.as_reoriented(turn), folder / name)
    document = {"channel_names": {"0": "CT"}, "labels": held, "numTraining": n_cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(document))
    return len(held)


def settings(root, work, **data):
    return Config(
        experiment=ExperimentConfig(name="real", log_dir=str(work / "logs")),
        data=DataConfig(dataset_root=str(root), num_workers=0, cache_dir=str(work / "cache"), data_aug=True, **data),
        model=ModelConfig(base_channels=4),
        training=TrainingConfig(lr=3e-3, max_epochs=2, warmup_epochs=1, n_gpus=0, precision="32", overlay_every=0),
        loss=LossConfig(use_class_weights=True),
    )


def faults(run, spec):
    return runpy.run_path(str(spec / "check_run.py"))["faults"](run, True)[0]


@pytest.mark.parametrize("scan", ["abdomen_ct", "chest_ct"])
def test_a_many_organ_ct_trains_into_a_valid_run_folder(scan, shared_data, shared_spec, tmp_path):
    tables = json.loads((shared_data / "class_names.json").read_text())
    names = next(table for title, table in tables.items() if title.split()[0].rstrip(",") == scan)
    image, label, step = {
        "abdomen_ct": ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz", 1),
        "chest_ct": ("cxr.nii.gz", "mask.nii.gz", 4),
    }[scan]
    root = tmp_path / "set"
    folder = shared_data / scan
    n_classes = cropped_and_rotated(folder / image, folder / label, names, root, 4, step)
    assert n_classes > 40
    run = train(settings(root, tmp_path, target_size=(32, 32, 32), batch_size=2))
    assert faults(run, shared_spec) == []
    record = json.loads((run / "training_config.json").read_text())
    assert record["model"]["n_classes"] == n_classes
    assert record["data"]["intensity_found"]["intensity"] == "ct"
    losses = json.loads((run / "training_log.json").read_text())["training_history"]["train_loss"]
    assert losses[1] < losses[0]


def test_the_hippocampus_learns_in_two_epochs(shared_data, shared_spec, tmp_path):
    run = train(settings(shared_data / "hippocampus", tmp_path, target_size=(24, 32, 24), batch_size=4))
    assert faults(run, shared_spec) == []
    record = json.loads((run / "training_config.json").read_text())
    assert record["data"]["intensity_found"]["intensity"] == "mr"
    assert record["model"]["class_names"] == ["background", "Anterior", "Posterior"]
    assert record["data"]["split"]["sizes"] == {"train": 96, "val": 12, "test": 12}
    log = json.loads((run / "training_log.json").read_text())
    assert log["best_metrics"]["best_val_mIoU"] > 0.2  # background everywhere scores 0
