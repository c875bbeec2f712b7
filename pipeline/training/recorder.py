"""The JSON event handler: the Lightning callback that fills the run folder while a network trains.

After every epoch, in this order: the state a resume needs, the best weights if they are the best, the log. A kill
between two of them costs nothing: the state holds the weights and the log, and a resume writes both from it.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from torch.utils.tensorboard import SummaryWriter

from pipeline.compute.ranks import highest
from pipeline.files.atomic import write_atomically
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
from pipeline.training.lightning_module import SegmentationModule
from pipeline.training.resume import holds_best, restore, resume_state
from pipeline.training.signals import RunStopped, StopRequest
from pipeline.training.tensorboard import EventsLogger
from pipeline.visualisation.overlay import overlay_picture


class RunRecorder(pl.Callback):
    """Write history, best weights and resume state of one training.

    Args:
        folder: where the run's files go.
        checkpoint: what best_model.ckpt carries beside weights and score: network settings, preprocessing, class names.
        class_names: background first; names the scalars per class.
        overlay_every: epochs between two pictures in TensorBoard; 0 = none.
        patience: epochs without a better val_mIoU after which training stops; 0 = never.
        resume: what `read_resume` gave, to go on from there.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        checkpoint: dict[str, Any],
        class_names: tuple[str, ...],
        overlay_every: int,
        patience: int,
        resume: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.checkpoint, self.class_names = folder, checkpoint, class_names
        self.overlay_every, self.patience, self.resume = overlay_every, patience, resume
        self.history = TrainingLog.from_dict(resume["log"]) if resume else TrainingLog()
        self.stopped_early = False
        self.stop_request = StopRequest()
        self._module: SegmentationModule | None = None
        self._learning_rate = float("nan")
        self._seconds = {"data": 0.0, "step": 0.0, "validation": 0.0}
        self._clock = time.monotonic()

    # What the training looks like from outside ------------------------------------------------------------------

    @property
    def epochs_finished(self) -> int:
        """Epochs in the history."""
        return len(self.history)

    @property
    def skipped_steps(self) -> int:
        """Steps that the module left out because their loss or gradient was no number."""
        return 0 if self._module is None else self._module.skipped_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put weights, optimiser and epoch back where the last finished epoch left them."""
        assert isinstance(pl_module, SegmentationModule)
        self._module = pl_module
        if self.resume:
            restore(self.resume, trainer, pl_module)
            if trainer.is_global_zero and holds_best(self.resume):
                self._write_best(pl_module, self.history)
            self.resume = None
        if trainer.is_global_zero:
            self.folder.write_log(self.history)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the rate that the epoch's batches will be trained with, and start the clocks."""
        assert isinstance(pl_module, SegmentationModule)
        # The module sets it in its own hook, which runs after this one.
        self._learning_rate = pl_module.learning_rate(trainer.current_epoch)
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self._clock = time.monotonic()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The time since the last batch was spent waiting for data."""
        self._lap("data")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The time since the batch arrived was spent computing."""
        self._lap("step")
        self._stop_if_asked(pl_module.device)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the validation."""
        self._lap("data")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any, **more: Any) -> None:
        """Stop between two cases where asked to."""
        self._stop_if_asked(pl_module.device)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of the validation."""
        self._lap("validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch; Lightning calls this after the epoch's validation."""
        assert isinstance(pl_module, SegmentationModule)
        values = {
            k: float(trainer.callback_metrics[k]) for k in ("train_loss", "train_accuracy", "val_loss", "val_mIoU")
        }
        epoch = trainer.current_epoch
        iou = dict(zip(self.class_names[1:], pl_module.val_iou_per_class.tolist(), strict=True))
        history = copy.deepcopy(self.history)
        is_best = history.append_epoch(epoch, learning_rate=self._learning_rate, per_class_iou=iou, **values)
        if trainer.is_global_zero:
            write_atomically(self.folder.resume_checkpoint, _torch_writer(resume_state(trainer, pl_module, history)))
            if is_best:
                self._write_best(pl_module, history)
            self.folder.write_log(history)
        # Only now has the epoch finished: where the disk refused, the summary must not count it.
        self.history, best = history, history.best_epoch
        if self.patience and best is not None and epoch - best >= self.patience:
            self.stopped_early = trainer.should_stop = True
        if trainer.is_global_zero and isinstance(trainer.logger, EventsLogger):
            with trainer.logger.disk_named():
                self._write_events(trainer.logger.experiment, trainer.current_epoch, pl_module, values)

    def _lap(self, what: str) -> None:
        now = time.monotonic()
        self._seconds[what] += now - self._clock
        self._clock = now

    def _stop_if_asked(self, device: torch.device) -> None:
        """Stop where this process was asked to, or another one: all of them come here after the same batch."""
        number = highest(signal.Signals[self.stop_request.reason] if self.stop_request.reason else 0, device)
        if number:
            self.stop_request.reason = signal.Signals(number).name
            raise RunStopped(self.stop_request.reason)

    # What is written ---------------------------------------------------------------------------------------------

    def _write_best(self, module: SegmentationModule, history: TrainingLog) -> None:
        weights = {name: value.detach().cpu() for name, value in module.network.state_dict().items()}
        score = {"epoch": history.best_epoch, "val_mIoU": history.best_val_miou}
        content = self.checkpoint | {"format": 1, "state_dict": weights} | score
        write_atomically(self.folder.best_checkpoint, _torch_writer(content))

    def _write_events(
        self, events: SummaryWriter, epoch: int, module: SegmentationModule, values: dict[str, float]
    ) -> None:
        for name, value in (values | {"learning_rate": self._learning_rate}).items():
            if math.isfinite(value):
                events.add_scalar(name, value, epoch)
        for name, iou in zip(self.class_names[1:], module.val_iou_per_class, strict=True):
            if math.isfinite(iou):
                events.add_scalar(f"val_IoU/{name}", float(iou), epoch)
        total = sum(self._seconds.values()) or 1.0
        for name, seconds in self._seconds.items():
            events.add_scalar(f"time_share/{name}", seconds / total, epoch)
        events.add_scalar("seconds_per_epoch", total, epoch)
        if self.overlay_every and epoch % self.overlay_every == 0 and module.sample is not None:
            events.add_image(
                "validation/label_and_segmentation", overlay_picture(*module.sample), epoch, dataformats="HWC"
            )
        events.flush()


def _torch_writer(content: dict[str, Any]) -> Any:
    def write(file: BinaryIO) -> None:
        torch.save(content, file)

    return write
