"""Trainings on patches that grow, deeply supervised: the log, resume, workers, processes, and predictions."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot

from networks.body_net import BodyNet
from networks.errors import NetworkError
from networks.sliding_window import gaussian_weights, window_starts
from pipeline.predict import PredictionOptions, predict
from pipeline.train import train as run_training
from tests.support.paths import ROOT
from tests.support.tiny_training import (
    EPOCHS,
    WHOLE,
    differences,
    ended,
    finish,
    settings_of,
    strict_json,
    tiny_training,
    train,
)
from transforms.chains import validation_chain
from transforms.restore import FeatureMap, restore

PATCH = (16, 16, 24)
SETTINGS = {
    "data.mode": "patch",
    "data.spacing_mm": "20 20 20",
    "target_size": "16 16 24",
    "data.patch_growth": "[8,8,8,3,1] [12,12,16,2,1]",
    "data.patches_per_case": "2",
    "data.flips": "1",
    "training.deep_supervision": "true",
    "training.ema": "0.9",
    "training.validate_every": "2",
}


@pytest.fixture(scope="session")
def grown(work):
    """A finished training on growing patches."""
    process, run, output = train(work, "grown", max_epochs=EPOCHS, **SETTINGS)
    ended(process, run, output, code=0)
    return run


UNET = '{"_target_":"UNet","channels":[2,4,8,8],"strides":[2,2,2],"norm":"%s"}'


def test_a_unet_is_trained_and_used_on_patches_of_one_voxel_at_its_coarsest_level(work, tmp_path):
    growth = "[4,8,4,3,1] [8,8,8,2,1]"
    more = {"data.patch_growth": growth, "model.network": UNET % "instance", "training.deep_supervision": "false"}
    config, run = settings_of(work, "unet", **SETTINGS | more | {"max_epochs": 3})
    run_training(config)
    history = strict_json(run / "training_log.json")["training_history"]
    assert len(history["train_loss"]) == 3
    assert None not in history["train_loss"]
    path = next((work / "data" / "imagesTr").glob("*.nii.gz"))
    options = PredictionOptions(device="cpu", precision="32", roi=(8, 8, 8))
    assert predict([run], [path], tmp_path, options).cases[0].status == "done"


def test_patches_that_a_network_cannot_be_trained_on_are_refused_before_a_case_is_prepared(work, tmp_path):
    more = {"data.patch_growth": "[8,8,8,1,1]", "model.network": UNET % "batch", "training.deep_supervision": "false"}
    more["data.cache_dir"] = str(tmp_path)
    config, run = settings_of(work, "one_voxel", **SETTINGS | more | {"max_epochs": 3})
    with pytest.raises(NetworkError, match=r"data\.patch_growth: .* found 8×8×8 voxels in batches of 1 .*1 value per"):
        run_training(config)
    assert not run.exists() or not any(run.glob("*.json"))
    assert not list(tmp_path.rglob("*.bodycase"))
    two = settings_of(work, "one_voxel", **SETTINGS | more | {"data.patch_growth": "[8,8,8,2,1]", "max_epochs": 2})[0]
    run_training(two)
    assert strict_json(run / "training_summary.json")["status"] == "completed"


def test_epochs_that_are_not_validated_are_null_and_the_last_one_is(work, grown):
    history = strict_json(grown / "training_log.json")["training_history"]
    assert [value is None for value in history["val_mIoU"]] == [True, False, True, False]
    assert [value is None for value in history["val_loss"]] == [True, False, True, False]
    assert None not in history["train_loss"]
    process, run, output = train(work, "odd", max_epochs=3, **SETTINGS)
    ended(process, run, output, code=0)
    assert [v is None for v in strict_json(run / "training_log.json")["training_history"]["val_loss"]] == [1, 0, 0]


def test_patience_begins_with_the_final_patch_and_a_best_epoch_before_it_is_named(work):
    settings = SETTINGS | {"lr": "1e-12", "warmup_epochs": "0", "training.validate_every": "1", "max_epochs": "9"}
    settings |= {"data.patch_growth": "[8,8,8,3,2] [12,12,16,2,2]", "training.early_stopping_patience": "1"}
    (config, run), said = settings_of(work, "grows", **settings), []
    run_training(config, say=said.append)
    log = strict_json(run / "training_log.json")
    assert [value is None for value in log["training_history"]["val_mIoU"]] == [True, False, True, False, False]
    assert log["best_metrics"]["best_epoch"] == 1  # nothing is learnt, and the first of equal ones is the best
    assert sum("the best epoch, 1, had smaller patches than data.target_size" in line for line in said) == 1
    more = settings_of(work, "grows", **settings | {"training.early_stopping_patience": "2"})[0]
    run_training(more, resume=True)
    assert len(strict_json(run / "training_log.json")["training_history"]["epoch"]) == 6


def test_the_best_weights_are_those_of_a_plain_network(grown):
    checkpoint = torch.load(grown / "checkpoints" / "best_model.ckpt", weights_only=True)
    plain = BodyNet(**{key: value for key, value in checkpoint["network"].items() if key != "_target_"})
    plain.load_state_dict(checkpoint["state_dict"], strict=True)
    record = strict_json(grown / "training_config.json")
    assert record["model"]["total_parameters"] == sum(p.numel() for p in plain.parameters())


def logits_by_monai(network, image):
    weights = torch.einsum("i,j,k->ijk", *map(gaussian_weights, PATCH))
    with torch.no_grad():
        return sliding_window_inference(image[None], PATCH, 1, network, overlap=0.5, roi_weight_map=weights)[0]


def test_ct_is_scaled_by_numbers_of_the_training_cases_that_run_and_checkpoint_hold(work, grown):
    data = strict_json(grown / "training_config.json")["data"]
    moments = []
    for case in data["split"]["train"]:
        image, label = (
            nib.load(next((Path(data["dataset_root"]) / folder).glob(f"{case}*"))).get_fdata()
            for folder in ("imagesTr", "labelsTr")
        )
        voxels = np.clip(image[label > 0], *data["window"])
        moments.append((voxels.mean(), (voxels**2).mean()))
    mean, mean_square = np.mean(moments, axis=0)
    np.testing.assert_allclose(data["mean_std"], (mean, (mean_square - mean**2) ** 0.5), rtol=0.01)
    checkpoint = torch.load(grown / "checkpoints" / "best_model.ckpt", weights_only=True)
    assert checkpoint["preprocessing"]["mean_std"] == data["mean_std"]


def test_val_miou_is_monais_of_whole_volumes_through_monais_window(work, grown):
    checkpoint = torch.load(grown / "checkpoints" / "best_model.ckpt", weights_only=True)
    assert checkpoint["preprocessing"]["spacing_mm"] == [20, 20, 20]
    network = BodyNet.load_from_checkpoint(grown / "checkpoints" / "best_model.ckpt").eval()
    chain = validation_chain(**checkpoint["preprocessing"])
    n_classes, metric = len(checkpoint["class_names"]), DiceMetric(include_background=False, reduction="none")
    root = work / "data"
    for case in json.loads((grown / "training_config.json").read_text())["data"]["split"]["val"]:
        image, label = (root / "imagesTr" / f"{case}_0000.nii.gz", root / "labelsTr" / f"{case}.nii.gz")
        item = chain({"image": str(image), "label": str(label), "case": case})
        found = logits_by_monai(network, item["image"].as_tensor()).argmax(0)[None, None]
        metric(one_hot(found, n_classes), one_hot(item["label"].as_tensor()[None].long(), n_classes))
    dice = metric.get_buffer().numpy()
    dice = dice[:, ~np.isnan(dice).all(axis=0)]
    expected = np.nanmean(np.nanmean(dice / (2 - dice), axis=0))
    log = strict_json(grown / "training_log.json")
    # Windows that do not fill the volume evenly lie elsewhere in MONAI
    assert log["best_metrics"]["best_val_mIoU"] == pytest.approx(expected, abs=0.02)


def test_a_training_killed_and_resumed_equals_one_never_interrupted(work, grown):
    process, run, output = train(work, "killed", pause=2, **SETTINGS)
    process.kill()
    process.join()
    process, run, output = train(work, "killed", "--resume", **SETTINGS)
    ended(process, run, output, code=0)
    assert differences(grown, run) == []


def test_the_number_of_workers_changes_nothing(work, grown):
    process, run, output = train(work, "workers", **SETTINGS | {"num_workers": "2"})
    ended(process, run, output, code=0)
    assert differences(grown, run) == []


def logits_window_by_window(network, image):
    """Blended logits (C, I, J, K), all windows at once; smaller images are padded with their lowest value."""
    before = [max(0, w - n) // 2 for w, n in zip(PATCH, image.shape[1:], strict=True)]
    pad = [(b, max(0, w - n) - b) for b, w, n in zip(before, PATCH, image.shape[1:], strict=True)]
    padded = torch.from_numpy(np.pad(image[0].numpy(), pad, constant_values=float(image.min())))[None, None]
    weights = torch.einsum("i,j,k->ijk", *map(gaussian_weights, PATCH))
    total, weight = 0.0, torch.zeros(padded.shape[2:])
    for corner in itertools.product(*(window_starts(n, w) for n, w in zip(padded.shape[2:], PATCH, strict=True))):
        box = tuple(slice(c, c + w) for c, w in zip(corner, PATCH, strict=True))
        with torch.no_grad():
            logits = network(padded[(slice(None), slice(None), *box)])[0]
        if not weight.any():
            total = torch.zeros(len(logits), *weight.shape)
        total[(slice(None), *box)] += logits * weights
        weight[box] += weights
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    return (total / weight)[(slice(None), *inside)]


def test_a_scan_is_predicted_through_the_window_of_the_training_on_its_own_grid(work, grown, tmp_path):
    path = next((work / "data" / "imagesTr").glob("*.nii.gz"))
    options = PredictionOptions(device="cpu", precision="32", label_values="index")
    report = predict([grown], [path], tmp_path, options)
    assert report.cases[0].status == "done", report.cases[0]
    found = nib.load(tmp_path / f"{report.cases[0].case}.nii.gz")
    source = nib.load(path)
    assert found.shape == source.shape
    np.testing.assert_allclose(found.affine, source.affine, atol=1e-4)
    checkpoint = torch.load(grown / "checkpoints" / "best_model.ckpt", weights_only=True)
    network = BodyNet.load_from_checkpoint(grown / "checkpoints" / "best_model.ckpt").eval()
    chain = validation_chain(**checkpoint["preprocessing"])
    label = work / "data" / "labelsTr" / path.name.replace("_0000", "")
    item = chain({"image": str(path), "label": str(label), "case": "x"})
    logits = logits_window_by_window(network, item["image"].as_tensor())
    expected = restore([FeatureMap(logits, item["image"].affine.numpy())], source.shape, source.affine).segmentation
    assert np.mean(np.asarray(found.dataobj) != expected) < 0.002


def test_two_processes_train_as_one_does_on_the_same_patches(work):
    histories = []
    # An encoder that is frozen at first: its gradients are left out in one process, and computed for nothing in several
    started = {"training.start_from": str(work / "logs" / WHOLE), "training.freeze_epochs": "1"}
    for name, batch, growth, n_processes in (("one", "2", "[8,8,8,4,1]", "1"), ("two", "1", "[8,8,8,2,1]", "2")):
        settings = SETTINGS | {"data.patch_growth": growth, "batch_size": batch, "training.n_processes": n_processes}
        settings |= started
        command, run = tiny_training(work, name, max_epochs=2, **settings)
        if n_processes == "1":
            finish(command, work / f"{name}.txt")
        else:  # a command line of its own: the second process is started with it
            subprocess.run([sys.executable, "-m", "pipeline", *command], check=True, capture_output=True, cwd=ROOT)
        histories.append(strict_json(run / "training_log.json")["training_history"])
    for key in ("train_loss", "train_accuracy"):
        assert histories[0][key] == pytest.approx(histories[1][key], rel=1e-3, abs=2e-3)
    assert histories[0]["val_loss"][1] == pytest.approx(histories[1]["val_loss"][1], rel=1e-3)
