"""Follow a training in trackers beside TensorBoard; none of them ends it, and the run folder has every number, too.

A tracker that fails is named once and tried again now and then, with the epochs that it has missed. What it calls the
run, and how many epochs it has, stands in trackers.json of the run folder, so that a resumed training goes on there.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.config.settings import ConfigError
from pipeline.config.trackers import MlflowOptions, read_trackers
from pipeline.console.text import one_line, printable
from pipeline.files.atomic import FileError
from pipeline.files.json_files import read_json, write_json
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
from pipeline.training.csv_tracker import CsvTracker
from pipeline.training.mlflow_tracker import MlflowTracker
from pipeline.training.tracked_run import Ending, Remembered, TrackedRun, Tracker, epoch_numbers, tracked_settings
from pipeline.training.wandb_tracker import WandbTracker

log = logging.getLogger(__name__)

TRACKERS: dict[str, Callable[[Any, TrackedRun], Tracker]] = {
    "csv": CsvTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}
"""By name, made from the options that `read_trackers` gives."""

RETRY_S = 600.0
"""Seconds after which a tracker that failed is tried again: each try may take seconds that the training waits."""

LAST_TRY_S = 60.0
"""The same at the end of the training, which waits no more."""


def refuse_missing(entries: Sequence[str | Mapping[str, Any]]) -> None:
    """Raise ConfigError where a tracker of experiment.logger is not installed."""
    for name, options in read_trackers(entries).items():
        needed = {"csv": (), "mlflow": ("mlflow",), "wandb": ("wandb",)}[name]
        if isinstance(options, MlflowOptions) and not options.tracking_uri:
            needed = ("mlflow", "sqlalchemy")  # mlflow-skinny has no databases
        if not all(map(_is_installed, needed)):
            raise ConfigError(
                f"experiment.logger: {name} is not installed here; install it (pip install {name}), or leave it out"
            )


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # a folder wandb/ in the working directory has no origin


class _Followed:
    """One tracker, how far it is, and whether it works."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self.n_epochs = 0
        """Epochs that it has."""
        self.before: Remembered | None = None
        """Its run as it was when the training began, or when it failed."""
        self.is_open = self.is_closed = self.has_failed = False
        self.failed_at = -math.inf
        """When it failed last, on the monotonic clock."""

    def may_be_tried(self, after_s: float) -> bool:
        """Whether it has not failed within so many seconds."""
        return time.monotonic() - self.failed_at >= after_s


class Trackers:
    """The trackers of one training.

    Args:
        entries: experiment.logger; empty for processes that write no files.
        run: the training.
    """

    def __init__(self, entries: Sequence[str | Mapping[str, Any]], run: TrackedRun) -> None:
        self.run = run
        self._followed = [_Followed(name, TRACKERS[name](given, run)) for name, given in read_trackers(entries).items()]
        self._settings: Mapping[str, Any] = {}
        self._history = TrainingLog()
        self._remembered: dict[str, Remembered] = {}
        self._numbers: dict[int, Mapping[str, float]] = {}
        """Of the epochs of this process; those before it are taken from the history."""

    @property
    def in_words(self) -> list[str]:
        """A line for each tracker: where it writes."""
        return [f"Tracker {followed.name}: {followed.tracker.place}" for followed in self._followed]

    def begin(self, document: Mapping[str, Mapping[str, Any]], history: TrainingLog) -> None:
        """Open the trackers, those of a resumed training where they stood.

        Args:
            document: training_config.json.
            history: the finished epochs.
        """
        if not self._followed:
            return
        self._settings, self._history = tracked_settings(document), history
        remembered = _remembered(self.run.folder)
        self._remembered = dict(remembered)
        for followed in self._followed:
            followed.before = remembered.get(followed.name)
            self._catch_up(followed)

    def after_epoch(self, history: TrainingLog, iou_per_class: Mapping[str, float | None]) -> None:
        """Write the epoch that has just ended, and what a tracker has missed.

        Args:
            history: the finished epochs.
            iou_per_class: its validation IoU by class name.
        """
        if not self._followed:
            return
        self._history, epoch = history, len(history) - 1
        self._numbers[epoch] = epoch_numbers(history, epoch, iou_per_class)
        for followed in self._followed:
            if followed.may_be_tried(RETRY_S):
                self._catch_up(followed)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close the trackers after the training inside, however it ends."""
        try:
            yield
        except BaseException as error:
            self._close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        self._close("completed")

    def _close(self, ending: Ending) -> None:
        if not self._settings:
            return  # it has not begun
        for followed in self._followed:
            if not followed.may_be_tried(LAST_TRY_S):
                continue
            try:
                self._catch_up(followed)
                with self._lasting(followed):
                    if followed.is_open:
                        followed.tracker.close(ending)
                        followed.is_closed = True
                        self._remember()
            except KeyboardInterrupt:  # the training has ended, and its files are written
                log.warning("tracker %s: stopped, perhaps before it had everything", followed.name)

    def _catch_up(self, followed: _Followed) -> None:
        """Open a tracker that is not open, and write the epochs that it lacks."""
        with self._lasting(followed):
            tracker, history = followed.tracker, self._history
            if not followed.is_open:
                followed.n_epochs = tracker.open(self.run, self._settings, followed.before, len(history))
                followed.is_open = True
                self._remember()
            n_before = followed.n_epochs
            for epoch in range(n_before, len(history)):
                tracker.write(epoch, self._numbers.get(epoch) or epoch_numbers(history, epoch))
                followed.n_epochs = epoch + 1
            if followed.n_epochs > n_before:
                self._remember()
            if followed.has_failed:
                log.warning("tracker %s works again and has all epochs", followed.name)
                followed.has_failed, followed.failed_at = False, -math.inf

    @contextmanager
    def _lasting(self, followed: _Followed) -> Iterator[None]:
        """Let no error end the training; a tracker that fails is named, and left alone for a while."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (Exception, SystemExit) as error:
            log.debug("tracker %s", followed.name, exc_info=error)
            if not followed.has_failed:
                reason = printable(one_line(f"{type(error).__name__}: {error}", 300))
                remedy = followed.tracker.remedy
                if isinstance(error, ImportError):
                    remedy = f"see whether python -c 'import {followed.name}' works"
                log.warning(
                    "tracker %s fails (%s); the training goes on without it, training_log.json has every number; %s, "
                    "it is tried again every %d minutes and at the end, and gets what it has missed",
                    followed.name,
                    reason,
                    remedy,
                    RETRY_S / 60,
                )
            followed.before, followed.is_open, followed.has_failed = self._as_remembered(followed), False, True
            followed.failed_at = time.monotonic()

    def _as_remembered(self, followed: _Followed) -> Remembered | None:
        tracker = followed.tracker
        if tracker.run_id is None:
            return followed.before
        return Remembered(tracker.run_id, tracker.place, followed.n_epochs, followed.is_closed)

    def _remember(self) -> None:
        """Write trackers.json, where a tracker has something to remember."""
        found = {f.name: self._as_remembered(f) for f in self._followed}
        self._remembered |= {name: one for name, one in found.items() if one is not None}
        if self._remembered:
            write_json(self.run.folder.trackers, {name: one._asdict() for name, one in self._remembered.items()})


def _remembered(folder: RunFolder) -> dict[str, Remembered]:
    """What trackers.json says; nothing where there is none, or it is damaged: trackers then begin a new run."""
    if not folder.trackers.exists():
        return {}
    try:
        document = read_json(folder.trackers)
        return {
            name: Remembered(
                str(found["run"]), str(found["place"]), max(0, int(found["epochs"])), found["is_closed"] is True
            )
            for name, found in document.items()
        }
    except (FileError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("%s: is damaged (%s); trackers begin a new run", folder.trackers, one_line(error, 200))
        return {}
