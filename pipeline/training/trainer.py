"""Build Lightning's Trainer: devices, logger, callbacks; silence its advice."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import ClusterEnvironment
from rich.console import Console

from pipeline.compute.devices import Devices
from pipeline.compute.ranks import gather_texts, read_rank
from pipeline.config.settings import Config
from pipeline.files.atomic import FileError
from pipeline.planning.epochs import is_validated
from pipeline.training.live_progress import LiveProgress
from pipeline.training.patch_schedule import PatchSchedule
from pipeline.training.recorder import RunRecorder
from pipeline.training.tensorboard import EventsLogger

log = logging.getLogger(__name__)


def build_trainer(
    recorder: RunRecorder,
    devices: Devices,
    console: Console,
    *,
    validates: bool = True,
    record: Callable[[str], object] = log.debug,
) -> pl.Trainer:
    """Build the Trainer of one run.

    Args:
        recorder: writes all files of the run but TensorBoard's, which go into its folder, too; has its settings.
        devices: what the training runs on.
        console: where the progress bar goes.
        validates: whether there are cases to validate.
        record: takes the lines of the epochs, which the console gets, too.
    """
    training = recorder.settings.training
    callbacks: list[pl.Callback] = [
        _SameEverywhere(recorder),
        recorder,
        LiveProgress(console, recorder, record),
    ]
    if validates:
        callbacks.insert(1, _ValidateEvery(recorder.settings))
    trainer = pl.Trainer(
        **devices.trainer_arguments(),
        plugins=[_GivenRanks()],
        max_epochs=training.max_epochs,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=training.gradient_clip or None,
        logger=EventsLogger(save_dir=recorder.folder.path.parent, name=recorder.folder.name),
        callbacks=callbacks,
        limit_val_batches=1.0 if validates else 0,
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    # Signals end a training between two batches, in all processes after the same one. Lightning 2.6 would answer a
    # SIGTERM with a broadcast from inside the handler, which hangs where the processes are in another conversation.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


class _SameEverywhere(pl.Callback):
    """Refuse to train where the processes do not see the same files, as without a shared disk."""

    def __init__(self, recorder: RunRecorder) -> None:
        self.recorder = recorder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare how many epochs are finished and how the data are split."""
        split = trainer.datamodule.prepared.split.hash  # type: ignore[attr-defined]
        found = gather_texts(f"{self.recorder.epochs_finished} finished epochs and the split {split}")
        for number, other in enumerate(found):
            if other != found[0]:
                raise FileError(
                    f"{self.recorder.folder.path}: process 0 found {found[0]}, process {number} {other}; "
                    "all processes must see the same run folder and the same data: put them on a shared disk"
                )


class _ValidateEvery(pl.Callback):
    """Validate after the epochs that `is_validated` names: Lightning's own setting knows every n-th alone."""

    def __init__(self, settings: Config) -> None:
        self.every = settings.training.validate_every
        self.growth = PatchSchedule.from_settings(settings.data).growth_epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell Lightning whether to validate after this epoch: where its number divides the epochs finished then."""
        finished = trainer.current_epoch + 1
        is_due = is_validated(finished, trainer.max_epochs or 0, self.every, self.growth)
        trainer.check_val_every_n_epoch = 1 if is_due else finished + 1


class _GivenRanks(ClusterEnvironment):
    """Tell Lightning the rank of this process among those that run already, whoever started them.

    Lightning's own classes each read their own variables, and SLURM's requeues and saves by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rank_here = read_rank()

    creates_processes_externally = True

    @property
    def main_address(self) -> str:
        """Where the first process listens."""
        return self.rank_here.address

    @property
    def main_port(self) -> int:
        """The port it listens on."""
        return self.rank_here.port

    @staticmethod
    def detect() -> bool:
        """Asked by Lightning before it chooses by itself; it must not choose."""
        return False

    def world_size(self) -> int:
        """Processes on all machines."""
        return self.rank_here.world_size

    def set_world_size(self, size: int) -> None:
        """Lightning would set what it computed; it is known."""

    def global_rank(self) -> int:
        """This process among all."""
        return self.rank_here.rank

    def set_global_rank(self, rank: int) -> None:
        """Lightning would set what it computed; it is known."""

    def local_rank(self) -> int:
        """This process among those of its machine."""
        return self.rank_here.local_rank

    def node_rank(self) -> int:
        """This machine among all."""
        return self.rank_here.node


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice where this pipeline has decided otherwise for a reason."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    hook = threading.excepthook
    # TensorBoard writes in a thread; what broke there is raised here at its next flush, and said once.
    threading.excepthook = lambda broken: log.debug("thread %s: %s", broken.thread, broken.exc_value)
    try:
        with warnings.catch_warnings():
            # How many workers prepare batches is the user's setting, and the cache makes few enough.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # An epoch of a small data set may have fewer steps than Lightning's logging interval.
            warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
            # Lightning 2.6 asks torch 2.13's pytree in a way that torch has since renamed.
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            # Gradients of channels-last weights are copied into DDP's buckets: a few megabytes a step.
            warnings.filterwarnings("ignore", message=".*Grad strides do not match bucket view strides.*")
            # The validation gathers its results itself.
            warnings.filterwarnings("ignore", message=".*recommended to use .*sync_dist=True.*")
            yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
