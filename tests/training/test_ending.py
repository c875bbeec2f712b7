"""What a training leaves at its very end: its summary, whatever ended it."""

from __future__ import annotations

import json
import os
import pty
import runpy
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from networks.body_net import BodyNet
from pipeline.check import check
from pipeline.cli.main import main
from pipeline.runs.run_folder import RunFolder
from pipeline.train import train as run_training
from pipeline.training import recorder
from pipeline.training.ending import say_end
from tests.support.tiny_training import (
    EPOCHS,
    WHOLE,
    complaint,
    differences,
    ended,
    ending_of,
    n_epochs,
    resumed,
    settings_of,
    strict_json,
    summary,
    train,
)


def kill_itself_in(method):
    """Die by SIGKILL where a method of the run folder would begin."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(RunFolder, method, die)


@pytest.mark.fault(
    "SIGKILL after the last epoch, before the summary", "`--resume` trains nothing and writes the ending"
)
def test_a_kill_before_the_summary_leaves_only_the_ending_to_write(work):
    process, run, output = train(work, "endless", before=partial(kill_itself_in, "write_summary"))
    ended(process, run, output, code=-signal.SIGKILL)
    assert n_epochs(run) == EPOCHS
    assert not (run / "training_summary.json").exists()
    assert resumed(work, "endless") == []


@pytest.mark.fault(
    "SIGKILL at the very end, the summary written", "the run is complete; the next start removes resume/"
)
def test_a_kill_at_the_very_end_leaves_a_complete_run_which_the_next_start_tidies(work):
    process, run, output = train(work, "last", before=partial(kill_itself_in, "_remove_resume"))
    ended(process, run, output, code=-signal.SIGKILL)
    assert (summary(run)["status"], (run / "resume" / "last.ckpt").exists()) == ("completed", True)
    process, run, output = train(work, "last", "--resume")
    assert "nothing is left to --resume" in complaint(ended(process, run, output, code=2))
    assert not (run / "resume").exists()
    assert differences(work / "logs" / WHOLE, run) == []


GOES_ON = "the training goes on to its end, exit 0"


def lose_every_reader():
    """Be followed by a `head` that has ended already: nobody reads either stream any more."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def write_to_a_full_disk():
    """Log to a disk without a free byte."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)


def lose_the_terminal():
    """Be left by a terminal that was closed: writing to it fails with EIO."""
    master, terminal = pty.openpty()
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    os.close(terminal)
    os.close(master)


def start_without_streams():
    """Be started as `bodyseg train >&- 2>&-`, where Python has no streams."""
    os.close(1)
    os.close(2)
    sys.stdout = sys.stderr = None


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lose_every_reader, marks=pytest.mark.fault("`bodyseg train 2>&1 | head`", GOES_ON)),
        pytest.param(write_to_a_full_disk, marks=pytest.mark.fault("`train > log` on a full disk", GOES_ON)),
        pytest.param(lose_the_terminal, marks=pytest.mark.fault("a terminal that was closed (EIO)", GOES_ON)),
        pytest.param(start_without_streams, marks=pytest.mark.fault("neither standard output nor error", GOES_ON)),
    ],
)
def test_a_training_that_nobody_can_hear_trains_on(work, lose):
    process, run, output = train(work, f"unheard_{lose.__name__}", max_epochs=2, before=lose)
    ended(process, run, output, code=0)
    assert (summary(run)["status"], summary(run)["total_epochs"]) == ("completed", 2)


def test_a_connection_lost_after_a_signal_is_an_interruption(work):
    from pipeline.compute.ranks import ProcessError
    from pipeline.compute.signals import Stopped

    def lose():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ProcessError("process 1 was ended by SIGTERM")

    with pytest.raises(Stopped, match="SIGTERM"), ending_of(work, "preempted") as (_, run):
        lose()
    assert (summary(run)["status"], summary(run)["reason"]) == ("interrupted", "stopped by SIGTERM")


@pytest.fixture
def without_structures(work, tmp_path):
    """Settings of a data set whose validation case holds background alone."""
    (case,) = strict_json(work / "logs" / WHOLE / "training_config.json")["data"]["split"]["val"]
    shutil.copytree(work / "data", tmp_path / "data")
    path = tmp_path / "data" / "labelsTr" / f"{case}.nii.gz"
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    splits = {"train": [f"body_00{n}" for n in range(4) if f"body_00{n}" != case], "val": [case]}
    (tmp_path / "data" / "splits_final.json").write_text(json.dumps([splits]))
    return {"dataset_root": str(tmp_path / "data")}


@pytest.mark.fault(
    "validation cases that hold no structure",
    "train and check say that val_mIoU is undefined; the weights with the lowest val_loss are kept",
)
def test_a_completed_training_without_a_defined_miou_has_weights_and_says_which(
    work, without_structures, shared_spec, capsys
):
    config, run = settings_of(work, "undefined", max_epochs="3", **without_structures)
    lines = []
    run_training(config, say=lines.append)
    assert "No validation case holds a structure: val_mIoU stays undefined, the lowest val_loss" in " ".join(lines)
    log = strict_json(run / "training_log.json")
    losses = log["training_history"]["val_loss"]
    lowest = losses.index(min(losses))
    assert log["best_metrics"] == {"best_val_mIoU": None, "best_epoch": lowest}
    ending = summary(run)
    assert (ending["status"], ending["best_val_mIoU"], ending["best_by"]) == ("completed", None, "val_loss")
    assert ending["best_checkpoint"] == str(run / "checkpoints" / "best_model.ckpt")
    assert torch.load(ending["best_checkpoint"], weights_only=True)["epoch"] == lowest
    BodyNet.load_from_checkpoint(ending["best_checkpoint"])
    assert f"those of the lowest val_loss (epoch {lowest})" in " ".join(lines)
    for said in (line.split(": ", 1)[1] for line in lines if line.startswith(("Best checkpoint: ", "Training log: "))):
        assert Path(said).is_file()
    assert runpy.run_path(str(shared_spec / "check_run.py"))["faults"](run, True)[0] == []
    assert main(["check", without_structures["dataset_root"], "--no_measure"]) == 1  # warnings
    assert "val_mIoU stays undefined, and the lowest val_loss decides" in " ".join(capsys.readouterr().out.split())


def test_all_cases_may_train_and_the_last_weights_are_kept(work, tmp_path, shared_spec, monkeypatch, capsys):
    """data.split_shares 100 0 0: through training, resuming, checking and evaluating."""
    settings = {"max_epochs": "2", "data.split_shares": "100 0 0", "training.early_stopping_patience": "1"}
    config, run = settings_of(work, "all", **settings)
    lines = []
    run_training(config, say=lines.append)
    said = " ".join(lines)
    assert "Val samples: 0" in lines
    assert "No case validates: val_loss and val_mIoU stay undefined, the last weights are kept" in said
    assert "Best val mIoU: undefined, as is val_loss; the weights are those of the last epoch (1)" in said
    history, best = (strict_json(run / "training_log.json")[key] for key in ("training_history", "best_metrics"))
    assert history["val_loss"] == history["val_mIoU"] == [None] * 2
    assert best == {"best_val_mIoU": None, "best_epoch": 1}
    assert (summary(run)["status"], summary(run)["best_by"]) == ("completed", "epoch")
    assert runpy.run_path(str(shared_spec / "check_run.py"))["faults"](run, True)[0] == []

    monkeypatch.setattr(recorder, "early_stop_reason", lambda log, *_: "as a test wants it" if len(log) == 1 else None)
    parts, torn = settings_of(work, "all_torn", **settings)
    run_training(parts)
    assert summary(torn)["total_epochs"] == 1
    monkeypatch.undo()
    run_training(parts, resume=True)
    assert differences(run, torn) == []
    assert torch.load(torn / "checkpoints" / "best_model.ckpt", weights_only=True)["epoch"] == 1

    report = check(config, costs=True, measure=False)
    assert (report.fingerprint.splits, report.estimate.n_val) == ({"train": 4, "val": 0, "test": 0}, 0)
    assert not [finding for finding in report.findings if "validat" in f"{finding.expected} {finding.remedy}"]
    assert main(["evaluate", str(run), "--split", "train", "--surface", "none", "--output", str(tmp_path)]) == 0
    assert len(list((tmp_path / "predictions").glob("body_*.nii.gz"))) == 4
    assert main(["evaluate", str(run), "--split", "val"]) == 2
    assert "data.split.val: expected cases, found none; there are some for --split train (4)" in capsys.readouterr().err


def test_without_a_defined_miou_the_lowest_validation_loss_stops_a_training_early(work, without_structures):
    settings = {"lr": "1e-12", "warmup_epochs": "0", "training.early_stopping_patience": "1"}
    config, run = settings_of(work, "patient", max_epochs="9", **settings, **without_structures)
    run_training(config)
    ending = summary(run)
    assert ending["total_epochs"] == strict_json(run / "training_log.json")["best_metrics"]["best_epoch"] + 2 < 9
    assert (ending["status"], ending["reason"]) == ("interrupted", "val_loss has not fallen for 1 epochs")


def test_the_state_to_resume_stays_where_its_weights_are_the_only_ones(work):
    with ending_of(work, "deleted") as (recorder, run):
        recorder.folder.resume_checkpoint.write_bytes(b"weights")
    assert summary(run)["best_checkpoint"] is None
    assert recorder.folder.resume_checkpoint.exists()
    recorder.folder.tidy()
    assert recorder.folder.resume_checkpoint.exists()
    lines = []
    say_end(recorder.folder, recorder.history, None, lines.append)
    assert "Best checkpoint: none was written" in lines
