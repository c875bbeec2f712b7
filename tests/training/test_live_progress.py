"""What a person sees of a training: a bar on a terminal, a line an epoch in a file."""

from __future__ import annotations

import io
from types import SimpleNamespace

import torch
from rich.console import Console

from pipeline.training.live_progress import LiveProgress


def trained(console, n_epochs=2):
    values = {"train_loss": 0.5, "train_accuracy": 0.75, "val_loss": 1.25, "val_mIoU": 0.125, "loss": 0.5}
    trainer = SimpleNamespace(
        is_global_zero=True, max_epochs=n_epochs, num_training_batches=3, current_epoch=0, callback_metrics=values
    )
    sums = SimpleNamespace(total=torch.tensor(6.0), weight=torch.tensor(8.0))
    module = SimpleNamespace(train_accuracy=sums, validated_epoch=None)
    progress = LiveProgress(console)
    progress.on_train_start(trainer, module)
    for epoch in range(n_epochs):
        trainer.current_epoch = epoch
        progress.on_train_epoch_start(trainer, module)
        for step in range(3):
            progress.on_train_batch_end(trainer, module, None, None, step)
        module.validated_epoch = epoch
        progress.on_train_epoch_end(trainer, module)
    progress.teardown(trainer, module, "fit")


def test_a_file_gets_a_line_an_epoch_with_all_four_values():
    file = io.StringIO()
    trained(Console(file=file, width=40))
    first, second = file.getvalue().splitlines()
    assert first.startswith("Epoch 1/2  loss 0.5000  accuracy 0.7500  val loss 1.2500  val mIoU 0.1250  ")
    assert second.startswith("Epoch 2/2 ")
    assert second.endswith("left 0 s")


def test_a_terminal_gets_one_bar_that_ends_full():
    file = io.StringIO()
    trained(Console(file=file, force_terminal=True, width=120, color_system=None))
    last = next(line for line in reversed(file.getvalue().splitlines()) if "Epoch" in line)
    assert "Epoch 2/2" in last
    assert "6/6" in last
    assert "loss 0.500 accuracy 0.750 mIoU 0.125" in last
