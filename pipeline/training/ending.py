"""Record how a training ended: completed, interrupted or failed, in training_summary.json and on the terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.compute.ranks import ProcessError, end_after_the_first, is_first_process, report_failure
from pipeline.compute.signals import Stopped, handling
from pipeline.files.atomic import FileError
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder, Status
from pipeline.training.failures import in_one_sentence
from pipeline.training.lightning_module import TrainingError
from pipeline.training.recorder import RunRecorder
from pipeline.training.signals import stop_between_batches

log = logging.getLogger(__name__)

RULE = "=" * 60


@contextmanager
def record_ending(recorder: RunRecorder) -> Iterator[None]:
    """Write training_summary.json however the training inside ends; a stopping signal ends it between two batches.

    recorder: the run's; its history and its stop request go into the summary.

    Raises:
        Stopped: a signal asked to stop; the summary says "interrupted".
        TrainingError, FileError: what broke the training, in one line; the summary says "failed".
        Exception: whatever else the training raised; the summary says "failed" too.
    """
    with stop_between_batches(recorder.stop_request):
        try:
            yield
        except BaseException as error:
            _record_exception(recorder, error)
            raise
        _write_summary(recorder, "interrupted" if recorder.early_stop else "completed", recorder.early_stop)


def _record_exception(recorder: RunRecorder, error: BaseException) -> None:
    """Write the summary of a training that raised, and raise its error in words where its kind is known."""
    if recorder.stop_request.reason and not isinstance(error, FileError | TrainingError):
        # Whatever follows a signal is its effect: an exception of Lightning, workers or processes that it ended first.
        _write_last_summary(recorder, "interrupted", f"stopped by {recorder.stop_request.reason}")
        end_after_the_first()
        raise Stopped(recorder.stop_request.reason, "go on with --resume") from error
    if isinstance(error, KeyboardInterrupt | SystemExit):
        _write_last_summary(recorder, "interrupted", type(error).__name__)
        return
    worded = in_one_sentence(error, recorder.settings, epoch=recorder.epochs_finished)
    reason = str(worded)
    if not getattr(worded, "is_input_error", False):
        reason = f"{type(worded).__name__}: {worded}"
    if not isinstance(error, ProcessError):
        report_failure(reason)
    _write_last_summary(recorder, "failed", reason)
    if worded is not error:
        raise worded from error


def record_lost(recorder: RunRecorder, reason: str) -> None:
    """Write the summary of a training that hangs because another of its processes died, and is about to be killed."""
    log.error("%s", reason)
    if recorder.stop_request.reason:
        _write_last_summary(recorder, "interrupted", f"stopped by {recorder.stop_request.reason}")
    else:
        _write_last_summary(recorder, "failed", reason)


def _write_last_summary(recorder: RunRecorder, status: Status, reason: str) -> None:
    # The user must read what broke the training, not that the same full disk takes no summary either. A second signal
    # must not interrupt this: torchrun and SLURM send one as soon as another process has ended.
    with handling(lambda number, frame: None), contextlib.suppress(FileError):
        _write_summary(recorder, status, reason)


def _write_summary(recorder: RunRecorder, status: Status, reason: str | None) -> None:
    if is_first_process():
        recorder.folder.write_summary(
            status,
            recorder.history,
            reason=reason,
            skipped_steps=recorder.skipped_steps,
            stopped_early=reason is not None and reason == recorder.early_stop,
            peak=recorder.peak_memory,
        )


def say_end(folder: RunFolder, history: TrainingLog, early_stop: str | None, say: Callable[[str], None]) -> None:
    """Say the documented closing lines; no path is named that does not exist.

    Args:
        folder: the run's.
        history: its finished epochs.
        early_stop: why the training stopped early, or None.
        say: takes the lines.
    """
    checkpoint = folder.best_checkpoint if folder.best_checkpoint.exists() else "none was written"
    for line in (
        RULE,
        f"Training stopped early: {early_stop}." if early_stop else "Training complete!",
        RULE,
        f"Best checkpoint: {checkpoint}",
        f"Best val mIoU: {_best_in_words(history)}",
        f"Training log: {folder.log}",
        f"Config file: {folder.config}",
        RULE,
        f"Training summary saved to: {folder.summary}",
        f"Training log saved to: {folder.log}",
    ):
        say(line)


def _best_in_words(history: TrainingLog) -> str:
    if history.best_val_miou is not None:
        return f"{history.best_val_miou:.4f}"
    if history.best_epoch is None:
        return "undefined"
    if history.best_by == "epoch":
        return f"undefined, as is val_loss; the weights are those of the last epoch ({history.best_epoch})"
    weights = f"the weights are those of the lowest val_loss (epoch {history.best_epoch})"
    return f"undefined, as no validation case holds a structure; {weights}"
