"""The Lightning callback that shows a training as it runs: a line an epoch, on a terminal with a bar below them.

Epochs are called by their numbers in training_log.json, from 0.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from rich.console import Console

from pipeline.console.progress import Bar
from pipeline.training.lightning_module import metrics_of_epoch
from pipeline.training.recorder import RunRecorder

_IN_THE_LINE = {"loss": "train_loss", "accuracy": "train_accuracy", "val loss": "val_loss", "val mIoU": "val_mIoU"}
"""What the line of an epoch calls the metrics."""

_BESIDE_A_BAR = ("loss", "val loss", "val mIoU")
"""Those that fit into the 80 columns of a terminal, whose bar shows accuracy and time left."""

NOTE_EVERY_S = 0.5
"""Seconds between two readings of loss and accuracy, for each of which the processor waits for the GPU."""


class LiveProgress(pl.Callback):
    """Print a line an epoch, and show on a terminal one bar over all steps with loss, accuracy and time left.

    Args:
        console: where to show it.
        recorder: says which epoch is the best; it must have recorded an epoch that this is told of.
        record: takes the whole lines, also where a terminal shows shorter ones.
    """

    def __init__(self, console: Console, recorder: RunRecorder, record: Callable[[str], object]) -> None:
        self.console = console
        self.recorder = recorder
        self.record = record
        self._bar: Bar | None = None
        self._epoch_began = time.monotonic()
        self._epoch_seconds: list[float] = []
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
        title = _epoch_in_words(trainer)
        now = time.monotonic()
        if now - self._noted > NOTE_EVERY_S or batch_idx + 1 == steps:
            self._noted = now
            # This process's own sums: compute() would wait for the others, which show no bar and never call it.
            sums: Any = pl_module.train_accuracy
            accuracy = float(sums.total / sums.weight)
            loss = float(trainer.callback_metrics.get("loss", float("nan")))  # absent while every step was left out
            self._note = f"loss {loss:.3f} accuracy {accuracy:.3f}"
        self._bar.update(done, steps * int(trainer.max_epochs or 1), title, self._note)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's line."""
        if not trainer.is_global_zero:
            return
        values = metrics_of_epoch(trainer, pl_module)
        shown = {words: values[key] for words, key in _IN_THE_LINE.items() if key in values}
        is_best = bool(shown.keys() & {"val loss", "val mIoU"})
        is_best &= self.recorder.history.best_epoch == trainer.current_epoch
        seconds = time.monotonic() - self._epoch_began
        self._epoch_seconds.append(seconds)
        left = statistics.median(self._epoch_seconds) * (int(trainer.max_epochs or 1) - trainer.current_epoch - 1)
        parts = [_epoch_in_words(trainer), *_in_words(shown, tuple(shown), is_best)]
        line = "  ".join([*parts, f"{seconds:.1f} s", f"left {left:.0f} s"])
        self.record(line)
        if self._bar is not None:
            parts = [f"Epoch {trainer.current_epoch:3}", *_in_words(shown, _BESIDE_A_BAR, is_best), f"{seconds:.1f} s"]
            self.console.print("  ".join(parts), highlight=False, markup=False)
        else:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, however the training ended."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar: Lightning calls no teardown then."""
        self.teardown(trainer, pl_module, "fit")


def _epoch_in_words(trainer: pl.Trainer) -> str:
    """Its number, and how many have begun of how many."""
    return f"Epoch {trainer.current_epoch} ({trainer.current_epoch + 1}/{trainer.max_epochs})"


def _in_words(values: Mapping[str, float], names: Sequence[str], is_best: bool) -> list[str]:
    """The values of these names as "loss 0.5000", and "best" behind them where the epoch is."""
    return [*(f"{name} {values[name]:.4f}" for name in names if name in values), *(["best"] if is_best else [])]
