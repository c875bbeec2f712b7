"""Measure the time and memory of a piece of work inside the process that does it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import psutil

from benchmarks.measurement import Measurement
from pipeline.compute.memory import forget_peak, peak_memory_bytes


def measure(work: Callable[[], list[float]], *, n: int = 1) -> Measurement:
    """Do the work `n` times; what it returns the last time becomes the value."""
    gc.collect()
    forget_peak()
    before, seconds, value = resident_bytes(), [], list[float]()
    for _ in range(n):
        start = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - start)
    peak = peak_memory_bytes()
    return Measurement(seconds, max(0, peak - before), peak, value)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)
