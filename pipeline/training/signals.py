"""Stop a training on a signal between two batches."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.compute.signals import handling


@dataclass
class StopRequest:
    """Whether a training was asked to stop."""

    reason: str | None = None
    """Name of the signal; None while no signal has asked. The training stops after the batch in progress."""


@contextmanager
def stop_between_batches(request: StopRequest) -> Iterator[None]:
    """Note a stopping signal in `request`; a second one raises KeyboardInterrupt."""

    def ask(number: int, frame: Any) -> None:
        if request.reason:
            raise KeyboardInterrupt
        request.reason = signal.Signals(number).name

    with handling(ask):
        yield
