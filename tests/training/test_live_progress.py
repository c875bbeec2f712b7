"""What a person sees of a training: a line an epoch, on a terminal above a bar."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from pipeline.runs.history import TrainingLog
from pipeline.training.live_progress import LiveProgress
from tests.support.screen import shown_at_the_end

SCORES = (0.125, 0.5, 0.25)


def trained(console, scores=SCORES):
    """Follow a training whose epochs have these val_mIoU; None: the epoch is not validated."""
    values = {"train_loss": 0.5, "train_accuracy": 0.75, "val_loss": 1.25, "loss": 0.5}
    trainer = SimpleNamespace(
        is_global_zero=True, max_epochs=len(scores), num_training_batches=3, current_epoch=0, callback_metrics=values
    )
    sums = SimpleNamespace(total=torch.tensor(6.0), weight=torch.tensor(8.0))
    module = SimpleNamespace(train_accuracy=sums, validated_epoch=None)
    recorder = SimpleNamespace(history=TrainingLog())
    lines = []
    progress = LiveProgress(console, recorder, lines.append)
    progress.on_train_start(trainer, module)
    for epoch, score in enumerate(scores):
        trainer.current_epoch = epoch
        progress.on_train_epoch_start(trainer, module)
        for step in range(3):
            progress.on_train_batch_end(trainer, module, None, None, step)
        if score is not None:
            module.validated_epoch, values["val_mIoU"] = epoch, score
        losses = {"train_loss": 0.5, "train_accuracy": 0.75, "val_loss": None if score is None else 1.25}
        recorder.history.append_epoch(epoch, val_mIoU=score, learning_rate=1e-3, **losses)
        progress.on_train_epoch_end(trainer, module)
    progress.teardown(trainer, module, "fit")
    return recorder.history, lines


def on_a_terminal(width, scores=SCORES):
    file = io.StringIO()
    trained(Console(file=file, force_terminal=True, width=width, color_system=None), scores)
    return [line for line in shown_at_the_end(file.getvalue()) if line]


def test_a_file_gets_a_line_an_epoch_with_all_four_values():
    file = io.StringIO()
    _, recorded = trained(Console(file=file, width=40))
    assert file.getvalue().splitlines() == recorded
    first, second, third = file.getvalue().splitlines()
    assert first.startswith("Epoch 0 (1/3)  loss 0.5000  accuracy 0.7500  val loss 1.2500  val mIoU 0.1250  best  ")
    assert second.startswith("Epoch 1 (2/3) ")
    assert third.endswith("left 0 s")


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_gets_the_lines_of_the_epochs_above_a_bar_that_ends_full(width):
    *lines, bar = on_a_terminal(width)
    assert [re.split(" {2,}", line)[:-1] for line in lines] == [
        ["Epoch", "0", "loss 0.5000", "val loss 1.2500", "val mIoU 0.1250", "best"],
        ["Epoch", "1", "loss 0.5000", "val loss 1.2500", "val mIoU 0.5000", "best"],
        ["Epoch", "2", "loss 0.5000", "val loss 1.2500", "val mIoU 0.2500"],
    ]
    assert bar.startswith("Epoch 2 (3/3)")
    assert "9/9" in bar
    assert bar.endswith("loss 0.500 accuracy 0.750")


def test_an_epoch_that_was_not_validated_shows_no_score_of_an_earlier_one():
    lines = on_a_terminal(80, (None, 0.5, None, 0.25))
    assert ["mIoU" in line for line in lines] == [False, True, False, True, False]
    assert ["best" in line for line in lines] == [False, True, False, False, False]


def test_an_epoch_is_called_by_its_number_in_the_log():
    history, _ = trained(Console(file=io.StringIO(), width=80))
    best = next(line for line in reversed(on_a_terminal(80)) if "best" in line)
    assert int(best.split()[1]) == history.best_epoch == history.to_dict()["best_metrics"]["best_epoch"]


def test_the_bar_is_closed_where_a_training_ends_in_an_error():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, height=20)
    trainer = SimpleNamespace(is_global_zero=True, max_epochs=2, num_training_batches=3, current_epoch=0)
    module = SimpleNamespace(train_accuracy=None, validated_epoch=None)
    progress = LiveProgress(console, SimpleNamespace(history=TrainingLog()), [].append)
    progress.on_train_start(trainer, module)
    progress.on_train_epoch_start(trainer, module)
    progress.on_exception(trainer, module, KeyboardInterrupt())
    shown, hidden = text.getvalue().rfind("\x1b[?25h"), text.getvalue().rfind("\x1b[?25l")
    assert shown > hidden >= 0
