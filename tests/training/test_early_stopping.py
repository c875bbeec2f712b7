"""When a training stops by itself, and that a loop which repeats `--resume` sees an end."""

from __future__ import annotations

import pytest

from pipeline.config.settings import Config, DataConfig, TrainingConfig
from pipeline.runs.history import TrainingLog
from pipeline.train import train as run_training
from pipeline.training.early_stopping import early_stop_reason
from tests.support.finished_run import append
from tests.support.tiny_training import settings_of, strict_json, summary


def history(scores, losses=None):
    log = TrainingLog()
    for score, loss in zip(scores, losses or [1.0] * len(scores), strict=True):
        append(log, score, val_loss=loss)
    return log


def reason_to_stop(log, patience, max_epochs):
    training = TrainingConfig(early_stopping_patience=patience, max_epochs=max_epochs)
    return early_stop_reason(log, Config(data=DataConfig("."), training=training))


@pytest.mark.parametrize(
    ("scores", "patience", "reason"),
    [
        ([], 1, None),
        ([0.5], 1, None),
        ([0.5, 0.5], 1, "val_mIoU has not risen for 1 epochs"),
        ([0.5, 0.4, 0.5], 2, "val_mIoU has not risen for 2 epochs"),
        ([0.5, 0.4, 0.6], 2, None),
        ([0.5, None, None, None], 3, "val_mIoU has not risen for 3 epochs"),
        ([0.5, 0.1, 0.1, 0.1], 0, None),
    ],
)
def test_a_training_stops_after_as_many_epochs_without_a_better_one_as_it_has_patience(scores, patience, reason):
    assert reason_to_stop(history(scores), patience, max_epochs=9) == reason


def test_without_a_score_the_loss_decides_and_a_complete_training_has_not_stopped_early():
    log = history([None] * 4, [1.0, 0.5, 0.7, 0.6])
    assert reason_to_stop(log, 2, max_epochs=9) == "val_loss has not fallen for 2 epochs"
    assert reason_to_stop(log, 2, max_epochs=4) is None


def test_patience_counts_the_epochs_that_were_validated():
    """With training.validate_every 3; with every third epoch alone the same history stops after the same validation."""
    scores = [None, None, 0.5, None, None, 0.4, None, None, 0.5, None]
    log = history(scores, [score and 1.0 for score in scores])
    assert reason_to_stop(log, 2, max_epochs=99) == "val_mIoU has not risen for 2 validations"
    assert reason_to_stop(log, 3, max_epochs=99) is None
    thinned = history([score for score in scores if score])
    assert [bool(reason_to_stop(thinned, n, max_epochs=99)) for n in (1, 2, 3)] == [True, True, False]


def test_resuming_a_training_that_stopped_early_trains_nothing_until_it_has_more_patience(work):
    settings = {"lr": "1e-12", "warmup_epochs": "0", "max_epochs": "9"}
    patience = {"training.early_stopping_patience": "1"}
    config, run = settings_of(work, "content", **settings, **patience, **{"experiment.logger": "csv"})
    run_training(config)
    before, table = strict_json(run / "training_log.json"), run / "csv" / "metrics.csv"
    lines_before = table.read_text()
    # As if it had been killed once the log was written
    (run / "training_summary.json").unlink()
    table.write_text("".join(lines_before.splitlines(keepends=True)[:-1]))
    for _ in range(2):
        lines = []
        assert run_training(config, resume=True, say=lines.append) == run
        assert "Training stopped early: val_mIoU has not risen for 1 epochs." in lines
        assert strict_json(run / "training_log.json") == before
        assert len(table.read_text().splitlines()) == len(lines_before.splitlines())
        assert (summary(run)["status"], summary(run)["reason"]) == (
            "interrupted",
            "val_mIoU has not risen for 1 epochs",
        )
    config, _ = settings_of(work, "content", **settings, **{"training.early_stopping_patience": "2"})
    run_training(config, resume=True)
    assert summary(run)["total_epochs"] == len(before["training_history"]["epoch"]) + 1


def test_patience_that_ends_with_the_last_epoch_completes_the_training(work):
    settings = {"lr": "1e-12", "warmup_epochs": "0", "max_epochs": "2", "training.early_stopping_patience": "1"}
    config, run = settings_of(work, "just", **settings)
    run_training(config)
    log = strict_json(run / "training_log.json")
    assert log["best_metrics"]["best_epoch"] == 0
    assert (summary(run)["status"], summary(run)["total_epochs"]) == ("completed", 2)
