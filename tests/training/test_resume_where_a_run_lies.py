"""Runs that are continued where they were moved to, beside others, or with less than they left: nothing is lost."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from pipeline.config.settings import ConfigError
from pipeline.files.atomic import FileError
from pipeline.train import train as run_training
from tests.support.tiny_training import (
    EPOCHS,
    ended,
    interrupted_run,
    settings_of,
    strict_json,
    summary,
    tiny_training,
    train,
)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A folder with an interrupted training "own", of data with folds of their own."""
    folder = tmp_path_factory.mktemp("folded")
    tiny_training(folder, "own", max_epochs=1)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "data" / "labelsTr").iterdir())
    (folder / "data" / "splits_final.json").write_text(json.dumps([{"train": cases[:3], "val": cases[3:]}]))
    return folder, interrupted_run(folder, "own")


def copied(folded, tmp_path):
    """Where it lies once it and its data were moved: flags for log folder and data set."""
    folder, run = folded
    shutil.copytree(run, tmp_path / run.name)
    shutil.copytree(folder / "data", tmp_path / "data")
    return folder, {"log_dir": str(tmp_path), "dataset_root": str(tmp_path / "data")}


def test_moved_data_with_folds_of_their_own_are_resumed(folded, tmp_path):
    folder, place = copied(folded, tmp_path)
    config, run = settings_of(folder, "own", max_epochs=EPOCHS, **place)
    run_training(config, resume=True)
    assert (summary(run)["status"], summary(run)["total_epochs"]) == ("completed", EPOCHS)


def test_fewer_epochs_than_are_finished_are_refused_and_the_state_is_kept(folded, tmp_path):
    folder, place = copied(folded, tmp_path)
    config, run = settings_of(folder, "own", max_epochs=1, **place)
    with pytest.raises(ConfigError, match=r"max_epochs is 1, but .* has finished 2 epochs already; .* 2 or more"):
        run_training(config, resume=True)
    assert (run / "resume" / "last.ckpt").exists()


def test_an_ending_after_an_epoch_without_a_validation_is_refused_and_the_state_is_kept(folded, tmp_path):
    """As with training.validate_every: the weights of the last validation would be kept, those after it be lost."""
    folder, place = copied(folded, tmp_path)
    config, run = settings_of(folder, "own", max_epochs=2, **place)
    last = run / "resume" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    for name in ("val_mIoU", "val_loss"):
        state["log"]["training_history"][name][1] = None
    torch.save(state, last)
    with pytest.raises(ConfigError, match=r"max_epochs is 2, .* weights would be lost; give 3 or more"):
        run_training(config, resume=True)
    assert last.exists()


def test_weights_without_a_history_are_never_replaced(folded, tmp_path):
    folder, place = copied(folded, tmp_path)
    config, run = settings_of(folder, "own", max_epochs=EPOCHS, **place)
    shutil.rmtree(run / "resume")
    (run / "training_log.json").unlink()
    (run / "training_summary.json").unlink()
    weights = (run / "checkpoints" / "best_model.ckpt").read_bytes()
    with pytest.raises(FileError, match="expected the state after the last epoch, found nothing"):
        run_training(config, resume=True)
    assert (run / "checkpoints" / "best_model.ckpt").read_bytes() == weights


def test_a_folder_beside_it_with_another_name_hinders_no_run(folded, tmp_path):
    folder, place = copied(folded, tmp_path)
    (tmp_path / "fresh_bs1_lr0.1..old").mkdir()
    process, run, output = train(folder, "fresh", "--resume", max_epochs=1, **place)
    ended(process, run, output, code=0)
    assert strict_json(run / "training_summary.json")["status"] == "completed"
