"""Stop a command on a signal, in the order in which its `with` and `finally` blocks end."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C; the end of a job (also a preempted one); a terminal that was closed; a CPU time limit (`ulimit -t`); the
warnings that batch systems send before the end, as `sbatch --signal=USR1@300`."""


class Stopped(KeyboardInterrupt):
    """A signal asked to stop; its name is the message. No `except Exception` swallows it.

    Args:
        name: of the signal.
        advice: how to go on.
    """

    def __init__(self, name: str, advice: str = "") -> None:
        super().__init__(name)
        self.advice = advice

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells count."""
        return 128 + signal.Signals[str(self)]


@contextmanager
def stop_at_once_on_signals() -> Iterator[None]:
    """Raise Stopped on a stopping signal."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(signal.Signals(number).name)

    with handling(stop):
        yield


@contextmanager
def quiet_end() -> Iterator[None]:
    """Let Ctrl-C after the block end the process at once: a second one would be a traceback of what still ends."""
    try:
        yield
    finally:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # called first, since registered last


@contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler` take the stopping signals inside, and the earlier handlers after it.

    SIGHUP stays ignored where it is, as under nohup. Only the main thread may handle signals; in another one nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    before = {number: signal.signal(number, handler) for number in STOPPING if number not in ignored}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
