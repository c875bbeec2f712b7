"""The Lightning callback that shows a training as it runs: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console

from pipeline.console.progress import Bar
from pipeline.training.lightning_module import metrics_of_epoch

_IN_THE_LINE = {"loss": "train_loss", "accuracy": "train_accuracy", "val loss": "val_loss", "val mIoU": "val_mIoU"}
"""What the line of an epoch calls the metrics."""


NOTE_EVERY_S = 0.5
"""Seconds between two readings of loss and accuracy, for each of which the processor waits for the GPU."""


class LiveProgress(pl.Callback):
    """Show one bar over all steps of the training with loss, accuracy, mIoU and time left.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Bar | None = None
        self._epoch_began = time.monotonic()
        self._epoch_seconds: list[float] = []
        self._score = ""
        self._note = ""
        self._noted = -NOTE_EVERY_S

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar = Bar("Training", self.console).__enter__()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_began = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar."""
        if self._bar is None:
            return
        steps = int(trainer.num_training_batches)
        done = trainer.current_epoch * steps + batch_idx + 1
        title = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        now = time.monotonic()
        if now - self._noted > NOTE_EVERY_S or batch_idx + 1 == steps:
            self._noted = now
            # This process's own sums: compute() would wait for the others, which show no bar and never call it.
            sums: Any = pl_module.train_accuracy
            accuracy = float(sums.total / sums.weight)
            loss = float(trainer.callback_metrics.get("loss", float("nan")))  # absent while every step was left out
            self._note = f"loss {loss:.3f} accuracy {accuracy:.3f}"
        self._bar.update(done, steps * int(trainer.max_epochs or 1), title, self._note + self._score)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's line, unless there is a bar."""
        if not trainer.is_global_zero:
            return
        values = metrics_of_epoch(trainer, pl_module)
        if "val_mIoU" in values:
            self._score = f" mIoU {values['val_mIoU']:.3f}"
        if self._bar is not None:
            return
        seconds = time.monotonic() - self._epoch_began
        self._epoch_seconds.append(seconds)
        max_epochs = int(trainer.max_epochs or 1)
        left = statistics.median(self._epoch_seconds) * (max_epochs - trainer.current_epoch - 1)
        line = "  ".join(f"{words} {values[key]:.4f}" for words, key in _IN_THE_LINE.items() if key in values)
        self.console.print(
            f"Epoch {trainer.current_epoch + 1}/{max_epochs}  {line}  {seconds:.1f} s  left {left:.0f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, however the training ended."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
