"""Measure the time and memory of a piece of work inside the process that does it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import psutil

from benchmarks.measurement import Measurement
from pipeline.compute.memory import forget_peak, peak_memory_bytes


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
