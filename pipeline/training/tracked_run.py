"""What trackers are told of a training: its settings, the numbers of an epoch, and names that they can take."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pipeline.config.settings import FOUND_OUT, GROUPS
from pipeline.console.text import printable
from pipeline.runs.history import HISTORY_KEYS, TrainingLog
from pipeline.runs.run_folder import RunFolder

Ending = Literal["completed", "interrupted", "failed"]

LONGEST_TEXT = 250
"""Characters of a setting that trackers take: MLflow's limit in Lightning's logger."""

_FACTS = {"model": ("total_parameters",), "training": ("effective_precision",)}
"""What a run found out and trackers are told beside its settings; names of cases are not among it."""


@dataclass(frozen=True)
class TrackedRun:
    """The training that is followed."""

    folder: RunFolder
    log_dir: Path
    """Folder that holds the runs; the trackers' own files lie there, too."""
    experiment: str
    """What runs that belong together are called."""
    class_names: tuple[str, ...]
    """Background first; from files that anybody may have written."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of all numbers of an epoch, see `epoch_numbers`."""
        return (*HISTORY_KEYS[1:], "best_val_mIoU", *(f"val_IoU/{name}" for name in self.class_names[1:]))


class Remembered(NamedTuple):
    """What the run folder keeps of a run in a tracker, for a training that is resumed."""

    run: str
    """The tracker's name for it."""
    place: str
    """Where it is, see `Tracker.place`."""
    epochs: int
    """How many epochs it was given."""
    is_closed: bool
    """Whether it was closed since; what a killed process had given it, it may not have written."""


class Tracker(Protocol):
    """One tracker of one training. Its methods raise whatever the tracker raises."""

    place: str
    """Where it writes."""
    remedy: str
    """What to do where it fails."""
    run_id: str | None
    """The tracker's name for the run, once it is open; None where a resumed training needs none."""

    def open(self, run: TrackedRun, settings: Mapping[str, Any], before: Remembered | None, n_epochs: int) -> int:
        """Open the run, the one of `before` if there is one; return how many of its n_epochs the tracker has."""
        ...

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of an epoch, counted from 0, for good."""
        ...

    def close(self, ending: Ending) -> None:
        """Say how the training ended, and let go."""
        ...


def epoch_numbers(
    history: TrainingLog, epoch: int, iou_per_class: Mapping[str, float | None] | None = None
) -> dict[str, float]:
    """The numbers of an epoch as training_log.json holds them, by name; undefined ones are left out.

    Args:
        history: epochs up to that one at least.
        epoch: counted from 0.
        iou_per_class: validation IoU by class name; None: as the history has it, of the best epoch alone.
    """
    if iou_per_class is None:
        iou_per_class = history.per_class_iou if epoch == history.best_epoch else {}
    scores = [score for score in history.history["val_mIoU"][: epoch + 1] if score is not None]
    found = {key: history.history[key][epoch] for key in HISTORY_KEYS[1:]}
    found["best_val_mIoU"] = max(scores, default=None)
    found |= {f"val_IoU/{name}": iou for name, iou in iou_per_class.items()}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def tracked_settings(document: Mapping[str, Mapping[str, Any]]) -> dict[str, bool | int | float | str]:
    """The settings of a run as one flat table, such as training.lr; lists and mappings are written as JSON.

    document: training_config.json. Cases are left out: trackers may send their tables to other machines.
    """
    table: dict[str, bool | int | float | str] = {}
    for group in GROUPS:
        found_out = FOUND_OUT[group].difference(_FACTS.get(group, ()))
        for name, value in document[group].items():
            if name in found_out:
                continue
            is_plain = isinstance(value, bool | int | float | str)
            text = value if is_plain else json.dumps(value, ensure_ascii=False)
            table[f"{group}.{name}"] = printable(text)[:LONGEST_TEXT] if isinstance(text, str) else text
    return table


def distinct(names: Sequence[str], clean: Callable[[str], str]) -> dict[str, str]:
    """Names that a tracker can take: of two that become the same, the later one gets its number.

    >>> distinct(["leber", "milz", "mïlz", "mälz"], lambda name: name.encode("ascii", "replace").decode())
    {'leber': 'leber', 'milz': 'milz', 'mïlz': 'm?lz', 'mälz': 'm?lz_3'}
    """
    taken: dict[str, str] = {}
    for number, name in enumerate(names):
        cleaned = clean(name)
        while cleaned in taken.values():
            cleaned = f"{cleaned}_{number}"
        taken[name] = cleaned
    return taken
