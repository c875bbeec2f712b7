"""TensorBoard curves of a training, with errors that name the file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from pipeline.files.atomic import FileError, write_error


class EventsLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger without hparams.yaml: training_config.json holds the settings."""

    @property
    def experiment(self) -> SummaryWriter:
        """The writer; the first access opens its file."""
        with self.disk_errors_named():
            return super().experiment

    def save(self) -> None:
        """Flush the events; write nothing else."""
        with self.disk_errors_named():
            self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Close the events; after a failure, a disk error here must not replace the failure's own message."""
        with contextlib.suppress(*(() if status == "success" else (FileError,))), self.disk_errors_named():
            super().finalize(status)

    @contextmanager
    def disk_errors_named(self) -> Iterator[None]:
        """Turn OSError into FileError: TensorBoard writes in a thread, and any later call raises its errors."""
        try:
            yield
        except OSError as error:
            name = error.filename
            raise write_error(Path(name if isinstance(name, str) else self.log_dir), error) from error

    def write_epoch(
        self,
        epoch: int,
        *,
        values: Mapping[str, float],
        iou_per_class: Mapping[str, float],
        seconds: Mapping[str, float],
        picture: np.ndarray | None = None,
    ) -> None:
        """Write the curves of one epoch; values that are NaN or infinite leave a gap.

        Args:
            epoch: counted from 0.
            values: scalars by name.
            iou_per_class: validation IoU by class name.
            seconds: time spent on each part of the epoch; written as shares and as their sum.
            picture: (height, width, 3) RGB, 0…255, of a validation slice.

        Raises:
            FileError: the disk refuses.
        """
        events = self.experiment
        with self.disk_errors_named():
            scalars = {**values, **{f"val_IoU/{name}": iou for name, iou in iou_per_class.items()}}
            for name, value in scalars.items():
                if math.isfinite(value):
                    events.add_scalar(_encodable(name), value, epoch)
            total = sum(seconds.values()) or 1.0
            for part, spent in seconds.items():
                events.add_scalar(f"time_share/{part}", spent / total, epoch)
            events.add_scalar("seconds_per_epoch", total, epoch)
            if picture is not None:
                events.add_image("validation/label_and_segmentation", picture, epoch, dataformats="HWC")
            events.flush()


def _encodable(name: str) -> str:
    """Replace what UTF-8 cannot write, such as a lone surrogate in a class name of a JSON file."""
    return name.encode("utf-8", errors="replace").decode("utf-8")
