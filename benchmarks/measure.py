"""Measure the time and memory of a piece of work inside the process that does it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from pipeline.compute.memory import forget_peak, peak_memory_bytes


@dataclass
class Measurement:
    """What one process measured of one method of a comparison."""

    seconds: list[float]
    """Time of each repetition, or of each unit of work."""
    extra_bytes: int | None = None
    """Peak resident memory beyond what was there before the first repetition."""
    peak_bytes: int | None = None
    """Peak resident memory of the whole process; on a GPU the peak of its allocated memory."""
    value: list[float] = field(default_factory=list)
    """Numbers that both methods must agree in; empty where there is nothing to agree in."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else was measured, by name; written into the result."""


@dataclass(frozen=True)
class Skipped:
    """Why this machine cannot measure this."""

    reason: str


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
