"""How a training ends: completed, stopped by a signal or by itself, failed; what summary and terminal then say."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.compute.ranks import ProcessError, end_after_the_first, is_first_process, tell_failure
from pipeline.config.settings import Config
from pipeline.files.atomic import FileError
from pipeline.runs.run_folder import RunFolder, Status
from pipeline.training.failures import in_one_sentence
from pipeline.training.lightning_module import TrainingError
from pipeline.training.recorder import RunRecorder
from pipeline.training.signals import RunStopped, handling, stop_between_batches

log = logging.getLogger(__name__)

RULE = "=" * 60


@contextmanager
def record_ending(folder: RunFolder, recorder: RunRecorder, config: Config) -> Iterator[None]:
    """Write training_summary.json however the training inside ends; a stopping signal ends it between two batches.

    Args:
        folder, recorder: the run's.
        config: the settings, for the words about them.

    Raises:
        RunStopped: a signal asked to stop; the summary says "interrupted".
        TrainingError, FileError: what broke the training, in one line; the summary says "failed".
        Exception: whatever else the training raised; the summary says "failed" too.
    """
    with stop_between_batches(recorder.stop_request):
        try:
            yield
        except BaseException as error:
            _record_broken_off(folder, recorder, config, error)
            raise
        patience = config.training.early_stopping_patience
        if recorder.stopped_early:
            _write_summary(folder, recorder, "interrupted", f"val_mIoU has not risen for {patience} epochs")
        else:
            _write_summary(folder, recorder, "completed", None)


def _record_broken_off(folder: RunFolder, recorder: RunRecorder, config: Config, error: BaseException) -> None:
    """Write the summary of a training that raised, and raise its error in words where they are known."""
    if recorder.stop_request.reason and not isinstance(error, FileError | TrainingError):
        # What follows a signal is its doing: Lightning's own exception, data workers or processes that it ended first.
        _write_last_summary(folder, recorder, "interrupted", f"stopped by {recorder.stop_request.reason}")
        end_after_the_first()
        raise RunStopped(recorder.stop_request.reason) from error
    if isinstance(error, KeyboardInterrupt | SystemExit):
        _write_last_summary(folder, recorder, "interrupted", type(error).__name__)
        return
    told = in_one_sentence(error, config, epoch=recorder.epochs_finished)
    in_words = isinstance(told, TrainingError | FileError | ProcessError)
    reason = str(told) if in_words else f"{type(told).__name__}: {told}"
    if not isinstance(error, ProcessError):
        tell_failure(reason)
    _write_last_summary(folder, recorder, "failed", reason)
    if told is not error:
        raise told from error


def record_lost(folder: RunFolder, recorder: RunRecorder, reason: str) -> None:
    """Write the summary of a training that can only be ended from outside, since it waits for a process that died."""
    log.error("%s", reason)
    if recorder.stop_request.reason:
        _write_last_summary(folder, recorder, "interrupted", f"stopped by {recorder.stop_request.reason}")
    else:
        _write_last_summary(folder, recorder, "failed", reason)


def _write_last_summary(folder: RunFolder, recorder: RunRecorder, status: Status, reason: str) -> None:
    # What broke the training is what must be told, not that the same full disk takes no summary either. A second
    # signal must not break this off: torchrun and SLURM send one as soon as another process has ended.
    with handling(lambda number, frame: None), contextlib.suppress(FileError):
        _write_summary(folder, recorder, status, reason)


def _write_summary(folder: RunFolder, recorder: RunRecorder, status: Status, reason: str | None) -> None:
    if is_first_process():
        folder.write_summary(status, recorder.history, reason=reason, skipped_steps=recorder.skipped_steps)


def say_end(folder: RunFolder, recorder: RunRecorder, say: Callable[[str], None]) -> None:
    """Say the documented closing lines."""
    best = recorder.history.best_val_miou
    for line in (
        RULE,
        "Training complete!" if not recorder.stopped_early else "Training stopped early: val mIoU no longer rises.",
        RULE,
        f"Best checkpoint: {folder.best_checkpoint}",
        f"Best val mIoU: {best:.4f}" if best is not None else "Best val mIoU: undefined",
        f"Training log: {folder.log}",
        f"Config file: {folder.config}",
        RULE,
        f"Training summary saved to: {folder.summary}",
        f"Training log saved to: {folder.log}",
    ):
        say(line)
