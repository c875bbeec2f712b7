"""Lightning's TensorBoard logger, with errors that name the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from pipeline.files.atomic import FileError, write_error


class EventsLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger without the hparams.yaml: the settings stand in training_config.json."""

    @property
    def experiment(self) -> SummaryWriter:
        """The writer; the first to ask opens its file."""
        with self.disk_named():
            return super().experiment

    def save(self) -> None:
        """Flush the events; write nothing else."""
        with self.disk_named():
            self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Close the events; after a failure their disk's refusal must not take the place of what went wrong."""
        with contextlib.suppress(*(() if status == "success" else (FileError,))), self.disk_named():
            super().finalize(status)

    @contextmanager
    def disk_named(self) -> Iterator[None]:
        """Word what the disk refuses: TensorBoard writes in a thread, and raises in any call what broke there."""
        try:
            yield
        except OSError as error:
            name = error.filename
            raise write_error(Path(name if isinstance(name, str) else self.log_dir), error) from error
