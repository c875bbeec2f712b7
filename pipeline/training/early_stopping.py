"""Decide whether a training has gone on long enough without getting better."""

from __future__ import annotations

from pipeline.runs.history import TrainingLog


def early_stop_reason(log: TrainingLog, patience: int, max_epochs: int, grown: int = 0) -> str | None:
    """Say why a training with this history must stop early; None where it must not.

    Args:
        log: the finished epochs.
        patience: validated epochs without a better one after which training stops; 0 = never.
        max_epochs: a training that has reached them is complete and not stopped early.
        grown: the first epoch whose patches have their final size; patience begins with it.
    """
    if not patience or log.best_epoch is None or len(log) >= max_epochs:
        return None
    n_validated = sum(epoch > log.best_epoch and epoch >= grown for epoch in log.validated_epochs)
    if n_validated < patience:
        return None
    change = "val_mIoU has not risen" if log.best_by == "val_mIoU" else "val_loss has not fallen"
    what = "epochs" if n_validated == len(log) - 1 - log.best_epoch else "validations"
    return f"{change} for {patience} {what}"
