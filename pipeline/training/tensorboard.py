"""TensorBoard curves of a training, which never end it: what matters in them stands in training_log.json, too."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pipeline.console.text import one_line, printable
from pipeline.runs.history import HISTORY_KEYS, TrainingLog
from pipeline.training.tracked_run import epoch_numbers

log = logging.getLogger(__name__)

BEST_TAG = "best_val_mIoU"
"""What TensorBoard's table of runs compares."""

LONGEST_TEXT = 300
"""Characters of a setting in that table."""


class EventsLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger without hparams.yaml: training_config.json holds the settings.

    Where its folder is gone, full or may not be written, one warning says so; the next epoch tries a new file.
    """

    _has_opened = False
    _has_warned = False

    @property
    def experiment(self) -> SummaryWriter | None:
        """The writer, as Lightning asks for it; None where it is refused."""
        with self._lasting():
            return self._writer()
        return None

    def _writer(self) -> SummaryWriter:
        """The writer; the first time opens its file. Raises OSError where that is refused or the run folder is gone."""
        if self._has_opened and not Path(self.log_dir).parent.is_dir():  # is not made again for curves alone
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        writer = super().experiment
        self._has_opened = True
        return writer

    def save(self) -> None:
        """Write nothing: the curves of an epoch are flushed when it ends."""

    def finalize(self, status: str) -> None:
        """Close the events."""
        with self._lasting():
            super().finalize(status)

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        """Let no error end the training: a disk's, in the thread in which TensorBoard writes, comes at a later call."""
        try:
            yield
        except Exception as error:  # where TensorFlow is installed, its own errors, too
            if not self._has_warned:
                reason = one_line(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}", 200)
                log.warning("%s: cannot be written (%s); the training goes on without its curves", self.log_dir, reason)
            self._has_warned = True
            if self._experiment is not None:
                with contextlib.suppress(Exception):
                    # Its thread must not be left behind. The annotation is of the state after closing.
                    self._experiment.file_writer.event_writer.close()  # type: ignore[attr-defined]
            self._experiment = None

    def write_epoch(
        self,
        epoch: int,
        *,
        values: Mapping[str, float],
        iou_per_class: Mapping[str, float],
        seconds: Mapping[str, float],
    ) -> None:
        """Write the curves of one epoch; values that are NaN or infinite leave a gap.

        Args:
            epoch: counted from 0.
            values: scalars by name.
            iou_per_class: validation IoU by class name.
            seconds: time spent on each part of the epoch; written as shares and as their sum.
        """
        with self._lasting():
            events = self._writer()
            scalars = {**values, **{f"val_IoU/{name}": iou for name, iou in iou_per_class.items()}}
            for name, value in scalars.items():
                if math.isfinite(value):
                    events.add_scalar(printable(name), value, epoch)
            total = sum(seconds.values()) or 1.0
            for part, spent in seconds.items():
                events.add_scalar(f"time_share/{part}", spent / total, epoch)
            events.add_scalar("seconds_per_epoch", total, epoch)
            events.flush()

    def write_missing(self, history: TrainingLog) -> None:
        """Write what the event files of earlier parts of a training lack of its epochs, as after a kill.

        history: the finished epochs; classes are known of the best one alone, and times of none.
        """
        try:
            written = _written(Path(self.root_dir), history)
        except Exception as error:  # with another's rights, or a damaged file
            log.warning("%s: cannot be read (%s); epochs that its curves lack stay out", self.root_dir, one_line(error))
            return
        with self._lasting():
            events = self._writer()
            for epoch in range(len(history)):
                for name, value in epoch_numbers(history, epoch).items():
                    if name != BEST_TAG and (printable(name), epoch) not in written:
                        events.add_scalar(printable(name), value, epoch)
            events.flush()

    def write_picture(self, tag: str, epoch: int, picture: NDArray[np.uint8]) -> None:
        """Write a (height, width, 3) RGB picture, 0…255."""
        with self._lasting():
            events = self._writer()
            events.add_image(tag, picture, epoch, dataformats="HWC")
            events.flush()

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of a run for TensorBoard's table of runs (HParams), whose scores `write_best` writes.

        settings: groups of settings by name; lists are written as text.
        """
        flat = {
            f"{group}.{name}": value if isinstance(value, bool | int | float) else printable(str(value))[:LONGEST_TEXT]
            for group, values in settings.items()
            for name, value in values.items()
        }
        with self._lasting():
            events = self._writer()
            for summary in hparams(flat, {BEST_TAG: 0.0}):
                events._get_file_writer().add_summary(summary)

    def write_best(self, history: TrainingLog) -> None:
        """Write the best val_mIoU so far; nothing while there is none."""
        if history.best_val_miou is not None:
            with self._lasting():
                self._writer().add_scalar(BEST_TAG, history.best_val_miou, history.best_epoch)


def _written(run: Path, history: TrainingLog) -> set[tuple[str, int]]:
    """The tag and epoch of every number in a run's event files but those of a training that it has overwritten."""
    known = {(key, n): value for key in HISTORY_KEYS[1:] for n, value in enumerate(history.history[key])}
    written: set[tuple[str, int]] = set()
    for folder in run.glob("version_*"):
        found = {
            (value.tag, event.step): value.simple_value
            for file in folder.glob("events.out.tfevents.*")
            for event in LegacyEventFileLoader(str(file)).Load()
            for value in event.summary.value
        }
        ours = ((known.get(at, value), value) for at, value in found.items())
        if all(one is None or math.isclose(one, value, rel_tol=1e-6) for one, value in ours):  # they are float32
            written.update(found)
    return written
