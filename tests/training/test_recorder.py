"""The files that appear while a network trains."""

from __future__ import annotations

import os
import shutil
import signal
import time
from functools import partial

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pipeline.runs.run_folder import RunFolder
from pipeline.train import train as run_training
from pipeline.training.checkpoint import write_tensors
from pipeline.training.trackers import Trackers
from tests.support.tiny_training import (
    EPOCHS,
    ended,
    interrupted_run,
    resumed,
    settings_of,
    strict_json,
    summary,
    train,
)


def test_the_files_of_a_run_are_readable_by_the_group(work):
    process, run, output = train(work, "group", max_epochs=1, before=partial(os.umask, 0o027))
    ended(process, run, output, code=0)
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.rglob("*")}
    folders = {path.name for path in run.rglob("*") if path.is_dir()}
    assert {name: oct(mode) for name, mode in modes.items() if mode != (0o750 if name in folders else 0o640)} == {}


@pytest.mark.parametrize(
    ("validate_every", "overlay_every", "expected"), [("2", "3", [1, 3, 4]), ("1", "2", [0, 2, 4])]
)
def test_pictures_are_of_epochs_that_were_validated(work, validate_every, overlay_every, expected):
    """One after the first validation since every so many epochs, of the best and the last, read back by TensorBoard."""
    often = {"training.validate_every": validate_every, "training.overlay_every": overlay_every}
    config, run = settings_of(work, f"pictures{validate_every}", max_epochs="5", **often)
    run_training(config)
    events = EventAccumulator(str(run / "version_0"))
    events.Reload()
    assert [picture.step for picture in events.Images("validation/label_and_segmentation")] == expected
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = set(HParamsPluginData.FromString(start).session_start_info.hparams)
    assert {"training.lr", "data.target_size", "model.total_parameters"} <= settings
    assert settings.isdisjoint({"data.split", "data.check"})  # what was found out about the cases is no setting
    log = strict_json(run / "training_log.json")
    (best,) = events.Images("validation/best")
    assert best.step == log["best_metrics"]["best_epoch"]
    assert min(best.width, best.height) > 400
    validated = [
        epoch
        for epoch, loss in enumerate(strict_json(run / "training_log.json")["training_history"]["val_loss"])
        if loss
    ]
    assert set(expected) <= set(validated)


def test_the_best_of_a_resumed_training_stands_at_its_own_epoch(work):
    run = interrupted_run(work, "best_curve")
    resumed(work, "best_curve")
    scores = strict_json(run / "training_log.json")["training_history"]["val_mIoU"]
    points = []
    for folder in sorted(run.glob("version_*")):
        events = EventAccumulator(str(folder))
        events.Reload()
        points += [(event.step, event.value) for event in events.Scalars("best_val_mIoU")]
    assert len(points) > 1
    for step, value in points:
        assert value == pytest.approx(scores[step])


@pytest.mark.fault("SIGKILL between an epoch's log and its curves, then `--resume`", "TensorBoard has every epoch once")
def test_an_epoch_that_was_killed_before_its_curves_gets_them_when_resumed(work):
    process, run, output = train(work, "curves", pause=2)
    process.kill()
    ended(process, run, output, code=-signal.SIGKILL)
    resumed(work, "curves")
    history = strict_json(run / "training_log.json")["training_history"]
    for name in ("train_loss", "train_accuracy", "val_loss", "val_mIoU", "learning_rate"):
        points = []
        for folder in sorted(run.glob("version_*")):
            events = EventAccumulator(str(folder))
            events.Reload()
            points += [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(epoch, pytest.approx(history[name][epoch])) for epoch in range(EPOCHS)]


def test_what_a_slow_disk_and_a_slow_tracker_take_is_in_the_time_of_an_epoch(work, monkeypatch):
    """That of the tracker, which gets an epoch after its curves, in the time of the next one."""
    slow_s = 0.25

    def slow(write):
        def slowly(*given):
            time.sleep(slow_s)
            write(*given)

        return slowly

    monkeypatch.setattr(RunFolder, "write_log", slow(RunFolder.write_log))
    monkeypatch.setattr(Trackers, "after_epoch", slow(Trackers.after_epoch))
    config, run = settings_of(work, "slow_disk", max_epochs="3")
    run_training(config)
    events = EventAccumulator(str(run / "version_0"))
    events.Reload()
    parts = [tag for tag in events.Tags()["scalars"] if tag.startswith("time_share/")]
    assert set(parts) == {f"time_share/{part}" for part in ("data", "step", "validation", "writing")}
    shares = {tag: [event.value for event in events.Scalars(tag)] for tag in parts}
    assert [sum(epoch) for epoch in zip(*shares.values(), strict=True)] == pytest.approx([1.0] * 3)
    seconds = [event.value for event in events.Scalars("seconds_per_epoch")]
    writing = [share * whole for share, whole in zip(shares["time_share/writing"], seconds, strict=True)]
    assert min(writing) >= slow_s
    assert min(writing[1:]) >= 2 * slow_s


def test_the_time_in_training_of_a_resumed_run_has_no_pauses_and_stays_unknown_where_it_was(work, tmp_path):
    run = interrupted_run(work, "timed")
    earlier = tmp_path / run.name
    shutil.copytree(run, earlier)
    state = torch.load(run / "resume" / "last.ckpt", weights_only=True)
    assert 0 < state["log"]["training_seconds"] == summary(run)["training_seconds"]
    began = time.monotonic()
    write_tensors(run / "resume" / "last.ckpt", state | {"log": state["log"] | {"training_seconds": 1e6}})
    run_training(settings_of(work, "timed", max_epochs=EPOCHS)[0], resume=True)
    assert 0 < summary(run)["training_seconds"] - 1e6 < time.monotonic() - began
    assert strict_json(run / "training_log.json")["training_seconds"] == summary(run)["training_seconds"]
    del state["log"]["training_seconds"]
    write_tensors(earlier / "resume" / "last.ckpt", state)
    run_training(settings_of(work, "timed", max_epochs=EPOCHS, log_dir=str(tmp_path))[0], resume=True)
    assert "training_seconds" not in summary(earlier)
