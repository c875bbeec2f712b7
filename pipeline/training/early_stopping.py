"""Decide whether a training has gone on long enough without getting better."""

from __future__ import annotations

from pipeline.config.settings import Config
from pipeline.runs.history import TrainingLog
from pipeline.training.patch_schedule import PatchSchedule


def early_stop_reason(log: TrainingLog, settings: Config) -> str | None:
    """Say why a training with this history must stop early; None where it must not.

    Patience begins with the first epoch whose patches have their final size; a training that has reached its last epoch
    is complete and not stopped early.
    """
    patience = settings.training.early_stopping_patience
    if not patience or log.best_epoch is None or len(log) >= settings.training.max_epochs:
        return None
    grown = PatchSchedule.from_settings(settings.data).n_growth_epochs
    n_validated = sum(epoch > log.best_epoch and epoch >= grown for epoch in log.validated_epochs)
    if n_validated < patience:
        return None
    change = "val_mIoU has not risen" if log.best_by == "val_mIoU" else "val_loss has not fallen"
    what = "epochs" if n_validated == len(log) - 1 - log.best_epoch else "validations"
    return f"{change} for {patience} {what}"
