"""Stop a training on Ctrl-C, SIGTERM or SIGUSR1: at once before the first batch, between two batches after it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the end of a job (also a preempted one), and the warning before it (`sbatch --signal=B:USR1@120`)."""


class RunStopped(BaseException):
    """A signal asked the training to stop; its name is the message. No `except Exception` may swallow it."""


@dataclass
class StopRequest:
    """Whether a training was asked to stop."""

    reason: str | None = None
    """Name of the signal; None while no signal has asked. The training stops after the batch in progress."""


@contextmanager
def stop_at_once_on_signals() -> Iterator[None]:
    """Raise RunStopped on a stopping signal: before the first batch there is nothing to save."""

    def stop(number: int, frame: Any) -> None:
        raise RunStopped(signal.Signals(number).name)

    with handling(stop):
        yield


@contextmanager
def stop_between_batches(request: StopRequest) -> Iterator[None]:
    """Note a stopping signal in `request`; a second one raises KeyboardInterrupt."""

    def ask(number: int, frame: Any) -> None:
        if request.reason:
            raise KeyboardInterrupt
        request.reason = signal.Signals(number).name

    with handling(ask):
        yield


@contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler` take the stopping signals inside, and the earlier handlers after it.

    Only the main thread may handle signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
