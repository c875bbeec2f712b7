"""Stop a training on Ctrl-C, SIGTERM or SIGUSR1."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the end of a job (also a preempted one), and the warning before it (`sbatch --signal=B:USR1@120`)."""


@dataclass
class StopRequest:
    """Whether a training was asked to stop."""

    reason: str | None = None
    """Name of the signal that asked; None: nothing asked. The training stops after the batch at hand."""


@contextmanager
def stop_at_once_on_signals() -> Iterator[None]:
    """Let the stopping signals raise RunStopped: before the first batch there is nothing to save."""

    def stop(number: int, frame: Any) -> None:
        raise RunStopped(signal.Signals(number).name)

    with handling(stop):
        yield


@contextmanager
def stop_between_batches(request: StopRequest) -> Iterator[None]:
    """Let a stopping signal end the training after the batch at hand; a second one ends it at once."""

    def ask(number: int, frame: Any) -> None:
        if request.reason:
            raise KeyboardInterrupt
        request.reason = signal.Signals(number).name

    with handling(ask):
        yield


@contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class RunStopped(BaseException):
    """Training stops because somebody asked for it; like KeyboardInterrupt, no `except Exception` may swallow it."""
