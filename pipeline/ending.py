"""How a training ends: completed, stopped by a signal or by itself, failed; what summary and terminal then say."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.devices import is_first_process
from pipeline.recorder import RunRecorder, RunStopped
from pipeline.run_folder import RunFolder, Status

RULE = "=" * 60


@contextmanager
def record_ending(folder: RunFolder, recorder: RunRecorder, patience: int) -> Iterator[None]:
    """Write training_summary.json however the training inside ends; SIGINT and SIGTERM end it between two batches.

    Args:
        folder, recorder: the run's.
        patience: epochs after which it stops by itself, for the summary's words.

    Raises:
        RunStopped: a signal asked to stop; the summary says "interrupted".
        Exception: whatever the training raised; the summary says "failed".
    """
    try:
        with _stop_on_signals(recorder):
            yield
    except BaseException as error:
        if recorder.stop_reason:
            # Lightning also watches SIGTERM and may end the training first, with its own exception.
            _write_summary(folder, recorder, "interrupted", f"stopped by {recorder.stop_reason}")
            raise RunStopped(recorder.stop_reason) from error
        status: Status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
        _write_summary(folder, recorder, status, f"{type(error).__name__}: {error}")
        raise
    if recorder.stopped_early:
        _write_summary(folder, recorder, "interrupted", f"val_mIoU has not risen for {patience} epochs")
    else:
        _write_summary(folder, recorder, "completed", None)


def _write_summary(folder: RunFolder, recorder: RunRecorder, status: Status, reason: str | None) -> None:
    if is_first_process():
        folder.write_summary(status, recorder.history, reason=reason)


@contextmanager
def _stop_on_signals(recorder: RunRecorder) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the training after the batch at hand; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if recorder.stop_reason:
            raise KeyboardInterrupt
        recorder.stop_reason = signal.Signals(number).name

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
