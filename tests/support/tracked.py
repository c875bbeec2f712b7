"""A training that trackers follow, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.files import as_mapping
from pipeline.config.settings import Config, DataConfig
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
from pipeline.training.tracked_run import TrackedRun
from pipeline.training.trackers import Trackers

CLASS_NAMES = ("background", "liver", "=1+1", "a\x1b[2J", "Milz ü", "Milz ö", "..", "a/../b")
"""As anybody may have written them."""


def history_of(scores: Sequence[float | None]) -> TrainingLog:
    """A history with these val_mIoU."""
    history = TrainingLog()
    for epoch, score in enumerate(scores):
        values = {"train_loss": 2.0 ** (1 - epoch), "train_accuracy": 0.75, "val_loss": 1.0, "learning_rate": 1e-3}
        history.append_epoch(epoch, val_mIoU=score, per_class_iou={"liver": score}, **values)
    return history


def tracked_run(tmp_path: Path) -> TrackedRun:
    """The run "run" of the experiment "spine"; its folder is made."""
    folder = RunFolder(tmp_path / "logs", "run")
    folder.path.mkdir(parents=True, exist_ok=True)
    return TrackedRun(folder, tmp_path / "logs", "spine", CLASS_NAMES)


def document() -> dict[str, dict[str, Any]]:
    """A training_config.json."""
    return as_mapping(Config(data=DataConfig(dataset_root="d")))


def follow(trackers: Trackers, scores: Sequence[float | None], n_before: int = 0) -> None:
    """Train epochs n_before, n_before + 1, … of these scores; every class has the IoU of its epoch."""
    trackers.begin(document(), history_of(scores[:n_before]))
    for n_epochs in range(n_before + 1, len(scores) + 1):
        trackers.after_epoch(history_of(scores[:n_epochs]), dict.fromkeys(CLASS_NAMES[1:], scores[n_epochs - 1]))
