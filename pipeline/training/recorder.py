"""The Lightning callback that fills the run folder while a network trains.

After every epoch it writes, in this order: the state that a resume needs, the weights if they are the best, the log. A
kill between two of them costs nothing: the state holds the weights and the log, and a resume writes both from it.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from pipeline.compute.measuring import NOTHING_MEASURED, PeakMemory, peak_memory
from pipeline.compute.ranks import highest, is_first_process
from pipeline.compute.signals import Stopped
from pipeline.config.settings import FOUND_OUT, Config
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
from pipeline.training.checkpoint import CheckpointDescription, write_best, write_tensors
from pipeline.training.early_stopping import early_stop_reason
from pipeline.training.lightning_module import SegmentationModule, metrics_of_epoch
from pipeline.training.pictures import ValidationPictures
from pipeline.training.resume import ResumeState, restore, resume_state
from pipeline.training.signals import StopRequest
from pipeline.training.tensorboard import EventsLogger
from pipeline.training.tracked_run import TrackedRun
from pipeline.training.trackers import Trackers

SETTINGS = ("data", "model", "training", "loss")
"""Groups of training_config.json that TensorBoard shows beside the scores of runs."""

_RECORDED = ("train_loss", "train_accuracy", "val_loss", "val_mIoU")
"""Metrics of an epoch that go into the history."""


class RunRecorder(pl.Callback):
    """Write history, best weights and resume state of one training.

    Args:
        folder: where the run's files go.
        description: what best_model.ckpt carries beside weights and score.
        settings: the training's; here they say when it stops early, how often pictures are written, and which trackers
            follow it.
        resume: the state to go on from, or None for a new training.
        contents: what the files of every case hold, see `PreparedData.contents`; a resume compares them.
    """

    def __init__(
        self,
        folder: RunFolder,
        description: CheckpointDescription,
        settings: Config,
        *,
        resume: ResumeState | None = None,
        contents: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.description = description
        self.settings = settings
        self.pictures = ValidationPictures(settings.training.overlay_every, description.class_names)
        self.resume = resume
        self.contents = contents or {}
        experiment = settings.experiment
        run = TrackedRun(folder, Path(experiment.log_dir), experiment.name, description.class_names)
        self.trackers = Trackers(experiment.logger if is_first_process() else (), run)
        """Where the training is followed beside TensorBoard."""
        self.history = resume.log if resume else TrainingLog(training_seconds=0.0)
        """The finished epochs."""
        self.early_stop: str | None = None
        """Why training stopped before max_epochs, see `early_stop_reason`."""
        self.stop_request = StopRequest()
        """Set by a signal handler; the training stops after the batch in progress."""
        self._module: SegmentationModule | None = None
        self._on_gpu = False
        self._peak = resume.peak_memory if resume else NOTHING_MEASURED
        self._seconds = {"data": 0.0, "step": 0.0, "validation": 0.0, "writing": 0.0}
        self._clock = self._began = time.monotonic()
        self._seconds_before = self.history.training_seconds

    @property
    def epochs_finished(self) -> int:
        """Epochs in the history."""
        return len(self.history)

    @property
    def skipped_steps(self) -> int:
        """Steps that were left out because their loss or gradient was NaN or infinite."""
        return 0 if self._module is None else self._module.skipped_steps

    @property
    def peak_memory(self) -> PeakMemory:
        """The most memory so far: of this process, and of the others and earlier parts up to the last epoch."""
        if self._module is None:
            return self._peak
        return max(self._peak, peak_memory(on_gpu=self._on_gpu))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore weights, optimiser and epoch as the last finished epoch left them."""
        assert isinstance(pl_module, SegmentationModule)
        self._module = pl_module
        self._on_gpu = pl_module.device.type == "cuda"  # Lightning moves the module to the CPU when it ends
        if self.resume:
            restore(self.resume, trainer, pl_module)
            self.pictures.restore(self.resume.pictures)
            if trainer.is_global_zero and self.resume.holds_best:
                self._write_best(pl_module, self.history)
            self.resume = None
            self._stop_early(trainer)  # killed after its last epoch, it may lack curves of it
        if trainer.is_global_zero:
            self.folder.write_log(self.history)
            config = self.folder.read_config()
            if isinstance(trainer.logger, EventsLogger):
                settings = {name: config[name] for name in SETTINGS}
                settings["data"] = {k: value for k, value in config["data"].items() if k not in FOUND_OUT["data"]}
                trainer.logger.write_settings(settings)
                trainer.logger.write_best(self.history)
                if len(self.history):
                    trainer.logger.write_missing(self.history)
            self.trackers.begin(config, self.history)
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self._clock = self._began = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count what was written since the curves of the last epoch, as its pictures, with this epoch's files."""
        self._lap("writing")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch as waiting for data."""
        self._lap("data")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the time since the batch arrived as computing; stop where asked to."""
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
        epoch = trainer.current_epoch
        learning_rate = pl_module.schedule.learning_rate(epoch)
        metrics = metrics_of_epoch(trainer, pl_module)
        self._lap("step")
        values = {name: metrics.get(name, math.nan) for name in _RECORDED}
        iou_per_class = {}
        if "val_mIoU" in metrics:
            names = self.description.class_names[1:]
            iou_per_class = dict(zip(names, pl_module.val_iou_per_class.tolist(), strict=True))
        history = copy.deepcopy(self.history)
        is_best = history.append_epoch(epoch, learning_rate=learning_rate, per_class_iou=iou_per_class, **values)
        peak = self.peak_memory
        self._peak = PeakMemory(highest(peak.n_bytes, pl_module.device), peak.device)
        history.training_seconds = self._training_seconds()
        if trainer.is_global_zero:
            if "val_mIoU" in metrics:
                self.pictures.keep(epoch, pl_module.sample, is_best=is_best)
            state = resume_state(
                trainer,
                pl_module,
                history,
                self.contents,
                pictures=self.pictures.state(),
                peak_memory=self._peak,
            )
            write_tensors(self.folder.resume_checkpoint, state.to_dict())
            if is_best:
                self._write_best(pl_module, history)
            self.folder.write_log(history)
        # Only now has the epoch finished: where the disk refused, the summary must not count it.
        self.history = history
        self._stop_early(trainer)
        self._lap("writing")
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        if trainer.is_global_zero and isinstance(trainer.logger, EventsLogger):
            trainer.logger.write_epoch(
                epoch,
                values=values | {"learning_rate": learning_rate},
                iou_per_class=iou_per_class,
                seconds=seconds,
            )
            if is_best:
                trainer.logger.write_best(history)
            self.pictures.write_due(trainer.logger, history.validated_epochs)
        if trainer.is_global_zero:
            self.trackers.after_epoch(history, iou_per_class)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the pictures of the last and of the best epoch."""
        if trainer.is_global_zero and isinstance(trainer.logger, EventsLogger):
            self.pictures.finish(trainer.logger, self.epochs_finished)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the pictures of the last and of the best epoch."""
        self.on_train_end(trainer, pl_module)

    def _stop_early(self, trainer: pl.Trainer) -> None:
        """Let the training end where its history says so."""
        self.early_stop = early_stop_reason(self.history, self.settings)
        if self.early_stop:
            trainer.should_stop = True

    def _lap(self, part: str) -> None:
        now = time.monotonic()
        self._seconds[part] += now - self._clock
        self._clock = now

    def _training_seconds(self) -> float | None:
        """Seconds in training until now, those of earlier parts included; None where they did not say."""
        before = self._seconds_before
        return None if before is None else round(before + time.monotonic() - self._began, 3)

    def _stop_if_asked(self, device: torch.device) -> None:
        """Raise Stopped where any process was asked to stop: all of them come here after the same batch."""
        own = signal.Signals[self.stop_request.reason] if self.stop_request.reason else 0
        number = highest(own, device)
        if number:
            self.stop_request.reason = signal.Signals(number).name
            raise Stopped(self.stop_request.reason)

    def _write_best(self, module: SegmentationModule, history: TrainingLog) -> None:
        assert history.best_epoch is not None
        with module.kept_weights():
            write_best(
                self.folder.best_checkpoint,
                module.network,
                self.description,
                epoch=history.best_epoch,
                val_miou=history.best_val_miou,
            )
