"""The main job, end to end: phantoms in, the documented run folder out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot

from networks.body_net import BodyNet
from pipeline.config.files import to_yaml
from pipeline.config.settings import (
    Config,
    ConfigError,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
)
from pipeline.files.atomic import FileError
from pipeline.phantoms.anatomy import CLASS_NAMES
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.runs.run_folder import RunFolder, run_name
from pipeline.train import train
from pipeline.training.lightning_module import TrainingError
from pipeline.training.prepared_data import prepare_data
from tests.support.settings import settings as settings_from
from tests.support.tiny_training import is_paused, pause_after, start, wait_until
from transforms.chains import validation_chain

SIZE = (24, 20, 40)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, n_cases=6, seed=1, voxel_mm=16.0)
    return folder


@pytest.fixture(scope="module")
def config(data_set, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return Config(
        experiment=ExperimentConfig(name="tiny", log_dir=str(work / "logs")),
        data=DataConfig(
            dataset_root=str(data_set),
            target_size=SIZE,
            batch_size=2,
            num_workers=0,
            data_aug=True,
            cache_dir=str(work / "cache"),
        ),
        model=ModelConfig(base_channels=4),
        training=TrainingConfig(lr=3e-3, max_epochs=3, warmup_epochs=2, n_gpus=0, precision="32", overlay_every=2),
        loss=LossConfig(use_class_weights=True),
    )


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def run(config, lines):
    return train(config, say=lines.append)


def named(config, name, **training):
    return replace(
        config,
        experiment=replace(config.experiment, name=name),
        training=replace(config.training, **training),
    )


def history(run):
    return json.loads((run / "training_log.json").read_text())["training_history"]


def weights(run):
    return torch.load(run / "checkpoints" / "best_model.ckpt", weights_only=True)["state_dict"]


def test_the_run_folder_keeps_its_contract(run, shared_spec):
    checker = [sys.executable, str(shared_spec / "check_run.py"), str(run)]
    result = subprocess.run(checker, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert run.name == "tiny_bs2_lr0.003_ch4_cw0.5_aug"


def test_a_completed_run_holds_nothing_beside_the_documented_files_and_what_it_printed(run, lines):
    found = sorted(p.relative_to(run).as_posix().split(".tfevents")[0] for p in run.rglob("*") if p.is_file())
    assert found == [
        "checkpoints/best_model.ckpt",
        "console.log",
        "training_config.json",
        "training_log.json",
        "training_summary.json",
        "version_0/events.out",
    ]
    printed = (run / "console.log").read_text().splitlines()[1:]
    assert [line for line in printed if not line.startswith("Epoch ")] == lines
    epochs = [line.split("  ")[:5] for line in printed if line.startswith("Epoch ")]
    log = history(run)
    keys = {"loss": "train_loss", "accuracy": "train_accuracy", "val loss": "val_loss", "val mIoU": "val_mIoU"}
    assert epochs == [
        [f"Epoch {epoch} ({epoch + 1}/3)", *(f"{word} {log[key][epoch]:.4f}" for word, key in keys.items())]
        for epoch in log["epoch"]
    ]


def test_training_prints_the_documented_lines_in_order(run, lines):
    wanted = [
        "=" * 60,
        "Experiment: tiny_bs2_lr0.003_ch4_cw0.5_aug",
        f"Log directory: {run}",
        "Setting up data...",
        "BodyDataset [train]: 4 samples",
        "BodyDataset [val]: 1 samples",
        "Train samples: 4",
        "Val samples: 1",
        "Computing class frequencies...",
        "Class weights - min: ",
        "Creating model...",
        "Total parameters: ",
        "Trainable parameters: ",
        "Saving training configuration...",
        f"Training configuration saved to: {run / 'training_config.json'}",
        "Starting training...",
        "Training complete!",
        f"Best checkpoint: {run / 'checkpoints' / 'best_model.ckpt'}",
        "Best val mIoU: ",
        f"Training log: {run / 'training_log.json'}",
        f"Config file: {run / 'training_config.json'}",
        f"Training summary saved to: {run / 'training_summary.json'}",
        f"Training log saved to: {run / 'training_log.json'}",
    ]
    position = 0
    for line in wanted:
        position = next((i for i in range(position, len(lines)) if lines[i].startswith(line)), None)
        assert position is not None, f"{line!r} is missing or out of order"


def test_the_best_weights_carry_what_prediction_needs_to_know_of_the_training(run):
    checkpoint = torch.load(run / "checkpoints" / "best_model.ckpt", weights_only=True)
    record = json.loads((run / "training_config.json").read_text())
    assert checkpoint["precision"] == record["training"]["effective_precision"]
    assert checkpoint["preprocessing"]["label_values"] == list(range(len(CLASS_NAMES)))
    smallest, largest = checkpoint["scans"]["spacing_mm"]
    assert all(14 < low <= high < 23 for low, high in zip(smallest, largest, strict=True))  # drawn around 16 mm
    assert checkpoint["scans"]["darkest"][1] < -900


def test_val_miou_is_what_monai_says_of_the_saved_network(run, config):
    """Everything again from the files: the chain, the best network, one-hot, MONAI's own DiceMetric, D / (2 - D)."""
    checkpoint = torch.load(run / "checkpoints" / "best_model.ckpt", weights_only=True)
    record = json.loads((run / "training_config.json").read_text())
    network = BodyNet.load_from_checkpoint(run / "checkpoints" / "best_model.ckpt").eval()
    metric = DiceMetric(include_background=False, reduction="none")
    chain = validation_chain(**checkpoint["preprocessing"])
    root = Path(config.data.dataset_root)
    for case in record["data"]["split"]["val"]:
        item = chain(
            {
                "image": str(root / "imagesTr" / f"{case}_0000.nii.gz"),
                "label": str(root / "labelsTr" / f"{case}.nii.gz"),
                "case": case,
            }
        )
        with torch.no_grad():
            prediction = network(item["image"].as_tensor()[None]).argmax(1, keepdim=True)
        label = item["label"].as_tensor()[None].long()
        metric(one_hot(prediction, len(CLASS_NAMES)), one_hot(label, len(CLASS_NAMES)))
    dice = metric.get_buffer().numpy()
    dice = dice[:, ~np.isnan(dice).all(axis=0)]
    iou = np.nanmean(dice / (2 - dice), axis=0)
    log = json.loads((run / "training_log.json").read_text())
    # The cache keeps 16 bits of an intensity: a voxel on the fence may fall to the other side.
    assert np.nanmean(iou) == pytest.approx(log["best_metrics"]["best_val_mIoU"], abs=2e-3)


def test_the_documented_three_lines_load_the_network(run):
    summary = json.loads((run / "training_summary.json").read_text())
    model = BodyNet.load_from_checkpoint(summary["best_checkpoint"])
    model.eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 1, *SIZE)).shape == (1, 71, *SIZE)


def test_what_a_run_found_out_does_not_stand_against_an_edit_of_its_record(run):
    """A setting that nobody gave stays open; who augments then is beside it."""
    path = str(run / "training_config.json")
    data = json.loads(Path(path).read_text())["data"]
    assert (data["augment_on_device"], data["augmented_on_device"]) == (None, False)
    assert settings_from("--config", path, "--data_aug", "false").data.augment_on_device is None
    patches = ("--data.mode", "patch", "--data.spacing_mm", "1", "1", "1")
    assert settings_from("--config", path, *patches).data.augment_on_device is None


def test_training_again_from_the_runs_own_record_repeats_it_bit_for_bit(run, config, tmp_path):
    record = str(run / "training_config.json")
    again = settings_from("--config", record, "--log_dir", str(tmp_path), "--num_workers", "2")
    second = train(again)
    assert history(second) == history(run)
    one, two = weights(run), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_seed_gives_other_weights(run, config):
    other = train(named(config, "other", seed=43, max_epochs=1, warmup_epochs=1))
    assert history(other)["train_loss"][0] != history(run)["train_loss"][0]


def test_the_tensorboard_file_holds_the_logs_numbers_and_a_picture(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "version_0"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train_loss", "val_loss", "val_mIoU", "train_accuracy", "learning_rate", "time_share/data"} <= scalars
    assert any(tag.startswith("val_IoU/") for tag in scalars)
    got = [event.value for event in events.Scalars("val_mIoU")]
    assert got == pytest.approx(history(run)["val_mIoU"], rel=1e-6)
    assert [event.step for event in events.Images("validation/label_and_segmentation")] == [0, 2]


def test_a_run_is_never_overwritten_unasked(run, config):
    before = (run / "training_log.json").read_bytes()
    with pytest.raises(FileError, match="--overwrite"):
        train(config)
    with pytest.raises(FileError, match="nothing is left to --resume"):
        train(config, resume=True)
    assert (run / "training_log.json").read_bytes() == before


def test_a_contradicting_class_count_is_refused(config):
    with pytest.raises(ValueError, match=r"expected 5 classes .*model.n_classes.*, found 71"):
        train(replace(named(config, "wrong"), model=replace(config.model, n_classes=5)))


def test_a_run_killed_in_mid_epoch_and_resumed_equals_one_never_interrupted(config):
    whole = train(named(config, "whole", max_epochs=4))
    killed = named(config, "killed", max_epochs=4)
    folder = Path(config.experiment.log_dir) / "killed_bs2_lr0.003_ch4_cw0.5_aug"
    settings, output = folder.with_name("killed.yaml"), folder.with_name("killed.txt")
    settings.write_text(to_yaml(killed))
    process = start(["train", "--config", str(settings)], output, partial(pause_after, 2))
    assert wait_until(lambda: is_paused(process), process), output.read_text()
    process.kill()
    process.join()
    assert not (folder / "training_summary.json").exists()
    assert len(history(folder)["epoch"]) == 2
    with pytest.raises(FileError, match="--resume"):
        train(killed)
    with pytest.raises(ConfigError, match=r"begun with other settings: training.seed 42, now 7; a resumed run"):
        train(replace(killed, training=replace(killed.training, seed=7)), resume=True)
    resumed = train(killed, resume=True)
    assert history(resumed) == history(whole)
    one, two = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert RunFolder.at(resumed).state == "finished"


def test_a_loss_that_is_no_number_ends_as_failed_and_names_the_cases(config):
    wild = named(config, "wild", lr=1e30, warmup_epochs=0, gradient_clip=0.0)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch 0, step \d+ \(cases body_\d+"):
        train(wild)
    summary = json.loads((Path(wild.experiment.log_dir) / run_name(wild) / "training_summary.json").read_text())
    assert summary["status"] == "failed"
    assert "smaller --lr" in summary["reason"]


def test_early_stopping_ends_as_interrupted_and_can_be_resumed(config):
    patient = named(config, "patient", lr=1e-12, max_epochs=9, early_stopping_patience=2)
    run = RunFolder.at(train(patient))
    summary = run.read_summary()
    assert (summary["status"], summary["total_epochs"]) == ("interrupted", run.read_log().best_epoch + 3)
    assert summary["reason"] == "val_mIoU has not risen for 2 epochs"
    assert run.resume_checkpoint.exists()


def test_what_people_do_with_the_files_works_as_written(run, tmp_path):
    import pandas as pd
    from matplotlib.figure import Figure

    log = json.loads((run / "training_log.json").read_text())["training_history"]
    figure = Figure()
    axes = figure.subplots(2, 2).ravel()
    for axis, key in zip(axes, ("train_loss", "val_loss", "val_mIoU", "learning_rate"), strict=True):
        axis.plot(log["epoch"], log[key])
    figure.savefig(tmp_path / "training_curves.png")
    assert (tmp_path / "training_curves.png").stat().st_size > 10_000
    rows = []
    for folder in run.parent.iterdir():
        if (folder / "training_summary.json").exists():
            summary = json.loads((folder / "training_summary.json").read_text())
            record = json.loads((folder / "training_config.json").read_text())
            rows.append(
                {key: summary[key] for key in ("best_val_mIoU", "total_epochs")}
                | {key: record["model"][key] for key in ("base_channels", "total_parameters")}
            )
    table = pd.DataFrame(rows)
    assert set(table["base_channels"]) == {4}
    assert (table["total_parameters"] == sum(v.numel() for v in weights(run).values())).all()


def test_no_subject_is_on_both_sides_and_the_record_names_the_split(run, config):
    record = json.loads((run / "training_config.json").read_text())["data"]["split"]
    assert record["sizes"] == {"train": 4, "val": 1, "test": 1}
    sides = [set(record[side]) for side in ("train", "val", "test")]
    assert len(set.union(*sides)) == 6
    assert prepare_data(config).split.hash == record["hash"]
