"""Histories of runs that never trained."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.runs.history import TrainingLog


def a_log(n_epochs: int, undefined: Collection[int] = ()) -> TrainingLog:
    """A history whose numbers follow from the epoch; in the `undefined` epochs val_loss and val_mIoU are null."""
    log = TrainingLog()
    for epoch in range(n_epochs):
        value = None if epoch in undefined else 1 - 1 / (epoch + 2)
        values = {"train_loss": 2 / (epoch + 1), "train_accuracy": 0.5, "val_loss": value}
        log.append_epoch(epoch, val_mIoU=value, learning_rate=1e-4, **values)
    return log
