"""Measure the time and memory of a piece of work inside the process that does it."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measurement import Measurement
from pipeline.compute.memory import forget_peak, peak_memory_bytes

POLL_EVERY_S = 0.01


def measure(work: Callable[[], Any], *, n: int = 1, value: Callable[[Any], list[float]] = list) -> Measurement:
    """Do the work `n` times; `value` makes the value of what it returned last, when time and memory are taken."""
    gc.collect()
    forget_peak()
    before, seconds, found = resident_bytes(), [], None
    for _ in range(n):
        found = None  # what was found before does not lie beside what is found next
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    peak = peak_memory_bytes()
    return Measurement(seconds, max(0, peak - before), peak, value(found))


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


@contextmanager
def following(log: Path, note: Callable[[int], object]) -> Iterator[None]:
    """While a training inside runs, call `note` with the number of epochs in training_log.json as they appear there."""
    done = threading.Event()

    def follow() -> None:
        changed, is_last = 0, False
        while not is_last:
            is_last = done.wait(POLL_EVERY_S)
            if log.exists() and log.stat().st_mtime_ns != changed:
                changed = log.stat().st_mtime_ns
                if n_epochs := len(json.loads(log.read_text())["training_history"]["epoch"]):
                    note(n_epochs)

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
