"""The history of one training: six arrays of one entry per finished epoch, and which epoch was best. Opens no file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.files.atomic import FileError
from pipeline.files.json_files import now

HISTORY_KEYS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_mIoU", "learning_rate")
"""The six arrays of training_history, in the documented order."""


@dataclass
class TrainingLog:
    """What training_log.json holds; lists of equal length under HISTORY_KEYS, None where a value is undefined."""

    history: dict[str, list[Any]] = field(default_factory=lambda: {key: [] for key in HISTORY_KEYS})
    per_class_iou: dict[str, float | None] = field(default_factory=dict)
    """Class name -> validation IoU in the best epoch; None where no case holds the class; empty when unknown."""
    last_update: str = field(default_factory=now)
    training_seconds: float | None = None
    """What the finished epochs took, until the last one's files were written, without the pauses before a resume; None
    where an earlier version began the run."""

    def __len__(self) -> int:
        """Count the finished epochs."""
        return len(self.history["epoch"])

    def append_epoch(
        self,
        epoch: int,
        *,
        train_loss: float | None,
        train_accuracy: float | None,
        val_loss: float | None,
        val_mIoU: float | None,  # noqa: N803  the documented key
        learning_rate: float,
        per_class_iou: Mapping[str, float | None] | None = None,
    ) -> bool:
        """Append a finished epoch (counted from 0) and say whether it is the best so far.

        NaN and infinities count as undefined. Raises FileError, and appends nothing, when the epoch is not the
        next one or its learning rate is not a finite number.
        """
        if epoch != len(self):
            raise FileError(f"epoch: expected {len(self)} next, found {epoch}")
        entry = (epoch, *map(_number_or_none, (train_loss, train_accuracy, val_loss, val_mIoU, learning_rate)))
        if entry[-1] is None:
            raise FileError(f"learning_rate[{epoch}]: expected a number, found {learning_rate}")
        for key, value in zip(HISTORY_KEYS, entry, strict=True):
            self.history[key].append(value)
        self.last_update = now()
        is_best = self.best_epoch == epoch
        if is_best:
            self.per_class_iou = {name: _number_or_none(iou) for name, iou in (per_class_iou or {}).items()}
        return is_best

    @property
    def validated_epochs(self) -> list[int]:
        """The epochs that have a score or a loss of a validation."""
        scores = zip(self.history["val_mIoU"], self.history["val_loss"], strict=True)
        return [epoch for epoch, values in enumerate(scores) if any(value is not None for value in values)]

    @property
    def best_by(self) -> Literal["val_mIoU", "val_loss", "epoch"]:
        """What decides which epoch is best: val_mIoU, the lowest val_loss while no epoch has one, else the last epoch.

        val_mIoU is undefined where no validation case holds a structure; a training keeps weights all the same.
        """
        for key in ("val_mIoU", "val_loss"):
            if any(value is not None for value in self.history[key]):
                return key
        return "epoch"

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept, see `best_by`; the first of equal ones; None before the first."""
        if not len(self):
            return None
        if self.best_by == "epoch":
            return len(self) - 1
        values = [(epoch, value) for epoch, value in enumerate(self.history[self.best_by]) if value is not None]
        sign = 1 if self.best_by == "val_mIoU" else -1
        return max(values, key=lambda entry: (sign * entry[1], -entry[0]))[0]

    @property
    def best_val_miou(self) -> float | None:
        """The highest val_mIoU so far; None while no epoch has one."""
        return max((score for score in self.history["val_mIoU"] if score is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Build the document of training_log.json; also what a resume checkpoint keeps."""
        return {
            "training_history": {key: list(self.history[key]) for key in HISTORY_KEYS},
            "best_metrics": {"best_val_mIoU": self.best_val_miou, "best_epoch": self.best_epoch},
            "per_class_iou": dict(self.per_class_iou),
            "last_update": self.last_update,
            "training_seconds": self.training_seconds,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TrainingLog:
        """Restore from to_dict's document, finding the best epoch again; raises FileError when it is damaged."""
        history = document.get("training_history")
        if not isinstance(history, dict):
            raise FileError(f"training_history: expected six arrays, found {_shown(history)}")
        for key in HISTORY_KEYS:
            _check_series(key, history.get(key))
        lengths = {key: len(history[key]) for key in HISTORY_KEYS}
        if len(set(lengths.values())) > 1:
            raise FileError(f"training_history: expected arrays of equal length, found {lengths}")
        if history["epoch"] != list(range(lengths["epoch"])):
            raise FileError(f"training_history.epoch: expected 0, 1, 2, …, found {_shown(history['epoch'])}")
        seconds = document.get("training_seconds")
        if seconds is not None and not (_is_number(seconds) and seconds >= 0):
            raise FileError(f"training_seconds: expected a number from 0, found {_shown(seconds)}")
        iou, updated = document.get("per_class_iou"), document.get("last_update")
        return cls(
            history={key: list(history[key]) for key in HISTORY_KEYS},
            per_class_iou=dict(iou) if isinstance(iou, dict) else {},
            last_update=updated if isinstance(updated, str) else now(),
            training_seconds=seconds,
        )


def _number_or_none(value: Any) -> float | None:
    number = math.nan if value is None else float(value)  # float() also takes tensors and numpy scalars
    return number if math.isfinite(number) else None


def _check_series(key: str, values: Any) -> None:
    if not isinstance(values, list):
        raise FileError(f"training_history.{key}: expected an array, found {_shown(values)}")
    may_be_null = key not in ("epoch", "learning_rate")
    for epoch, value in enumerate(values):
        if not (_is_number(value) or (value is None and may_be_null)):
            raise FileError(f"training_history.{key}[{epoch}]: expected a number, found {_shown(value)}")


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond float's range
        return False


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
