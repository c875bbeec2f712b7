"""Run comparisons: every measurement in a process of its own, the methods in turn, medians.

Imports no torch: the runner stays small, so that all of the machine's memory is the measured process's.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
SPARE_BYTES = 512 << 20  # what is left to the rest of the machine before a process is killed for its memory
POLL_EVERY_S = 0.1
OUT_OF_MEMORY = ("can't allocate memory", "MemoryError", "out of memory")  # torch on a CPU, Python, torch on a GPU


class BenchmarkError(RuntimeError):
    """A measurement that failed for another reason than memory; one line."""


@dataclass(frozen=True)
class Job:
    """A function of this package, "module.function", and its arguments (JSON types)."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    python: str = ""
    """The interpreter that runs it: another program's environment, or "" for this one."""


@dataclass(frozen=True)
class Goal:
    """What the last method has to reach against the first one; None: nothing."""

    faster: float | None = None
    """At least so many times faster."""
    memory: float | None = None
    """At most this share of the first method's memory (the kind of memory that the comparison compares)."""
    peak_gb: float | None = None
    """At most this peak of the whole process, in GB (1e9 bytes)."""


@dataclass(frozen=True)
class Comparison:
    """Two or more methods that do the same work; the others are compared with the first."""

    name: str
    methods: dict[str, Job]
    settings: Sequence[dict[str, Any]] = ({},)
    """Arguments for all methods. Of several, the first is taken under which no method is killed for its memory."""
    prepare: Job | None = None
    """Writes files first, in a process of its own, or says why nothing can be measured."""
    folder: bool = False
    """Whether all jobs have an argument `folder`: an empty one that is removed afterwards."""
    repeats: int = 3
    """How many processes measure each method."""
    memory: str | None = "extra"
    """Which memory is compared: "extra" beyond what was there before, "peak" of the process, or None."""
    same_value: Sequence[str] = ()
    """Sides whose values must agree."""
    tolerance: float = 0.0
    """By how much these values may differ, relative to the larger."""
    goal: Goal = Goal()


@dataclass(frozen=True)
class Row:
    """Comparisons that belong together."""

    title: str
    comparisons: Sequence[Comparison]
    skipped: str = ""
    """Why nothing is measured."""
    flat_method: str = ""
    """The method whose memory must not depend on the comparison; its largest memory over its smallest is written."""


def run_row(row: Row, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a row's comparisons; {"title", "comparisons", …} as written into the result file."""
    if row.skipped:
        return {"title": row.title, "skipped": row.skipped, "comparisons": []}
    found = []
    for comparison in row.comparisons:
        found.append(run_comparison(comparison, say))
        if "skipped" in found[-1]:
            return {"title": row.title, "skipped": found[-1]["skipped"], "comparisons": []}
    result: dict[str, Any] = {"title": row.title, "comparisons": found}
    memory = [c["methods"][row.flat_method].get("extra_bytes") for c in found] if row.flat_method else []
    if memory and all(memory):
        result["memory_spread"] = max(memory) / min(memory)
    return result


def run_comparison(comparison: Comparison, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the methods in turn, as often as asked.

    Raises:
        BenchmarkError: a process failed, or the methods do not agree in value.
    """
    with tempfile.TemporaryDirectory(prefix="bodyseg_bench_") as folder:
        shared = {"folder": folder} if comparison.folder else {}
        if comparison.prepare is not None:
            say(f"{comparison.name}: files")
            made = run_job(Job(comparison.prepare.function, comparison.prepare.arguments | shared))
            if "skipped" in made:
                return {"name": comparison.name, "skipped": made["skipped"]}
        too_large = []
        for position, settings in enumerate(comparison.settings, start=1):
            runs = _in_turn(comparison, settings | shared, say, stop_when_killed=position < len(comparison.settings))
            if runs is not None:
                break
            too_large.append(settings)
        assert runs is not None  # the last settings stop for nothing
    skipped = next((run["skipped"] for taken in runs.values() for run in taken if "skipped" in run), None)
    if skipped:
        return {"name": comparison.name, "skipped": skipped}
    methods = {method: _median(taken) for method, taken in runs.items()}
    found = {"name": comparison.name, "settings": settings, "too_large": too_large, "memory": comparison.memory}
    return found | {"methods": methods} | _ratios(comparison, methods)


def _in_turn(
    comparison: Comparison, settings: dict[str, Any], say: Callable[[str], None], *, stop_when_killed: bool
) -> dict[str, list[dict[str, Any]]] | None:
    """What each method's processes found, A B A B; None if one was killed and that is to stop it."""
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in comparison.methods}
    for repeat in range(comparison.repeats):
        for method, job in comparison.methods.items():
            if any("seconds" not in run for run in runs[method]):
                continue  # it was killed or skipped: it would be again
            say(f"{comparison.name}: {method}, {repeat + 1} of {comparison.repeats}")
            found = run_job(replace(job, arguments=settings | job.arguments))
            say(f"  {_in_words(found)}")
            runs[method].append(found)
            if "killed" in found and stop_when_killed:
                return None
    return runs


def _in_words(found: dict[str, Any]) -> str:
    """What a process found, at once: a row that is interrupted writes no file."""
    if "seconds" not in found:
        return str(found.get("killed") or found.get("skipped"))
    peak = "" if found.get("peak_bytes") is None else f", peak {found['peak_bytes'] / 1e9:.2f} GB"
    return f"{statistics.median(found['seconds']):.3g} s{peak}"


def run_job(job: Job) -> dict[str, Any]:
    """Run a function in its own process: what it found, or {"killed": why} if memory ended.

    Raises:
        BenchmarkError: it failed for another reason.
    """
    limit = psutil.virtual_memory().available - SPARE_BYTES
    asked = json.dumps({"function": job.function, "arguments": job.arguments})
    command, pipe = [job.python or sys.executable, "-m", "benchmarks.worker", asked], subprocess.PIPE
    process, started = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True), time.monotonic()
    watched, above = psutil.Process(process.pid), 0
    while True:
        try:
            out, error = process.communicate(timeout=POLL_EVERY_S)
            break
        except subprocess.TimeoutExpired:
            above = above or _above(watched, limit)
            if above:
                process.kill()
        except BaseException:
            process.kill()
            raise
    if above or process.returncode == -9 or (process.returncode and any(word in error for word in OUT_OF_MEMORY)):
        size = f" at {above / 1e9:.1f} GB" if above else ""
        return {"killed": f"killed for memory{size} after {time.monotonic() - started:.0f} s"}
    if process.returncode:
        last = (error.strip().splitlines() or ["no message"])[-1]
        raise BenchmarkError(f"{job.function} ended with code {process.returncode}: {last}")
    return json.loads(out.splitlines()[-1])


def _above(process: psutil.Process, limit: int) -> int:
    """The process's resident memory if it is above the limit, else 0."""
    try:
        resident = int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0
    return resident if resident > limit else 0


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One method's result from what its processes found."""
    if "killed" in runs[-1]:
        return {"killed": runs[-1]["killed"]}
    seconds = [second for run in runs for second in run["seconds"]]
    median = {"seconds": statistics.median(seconds), "all_seconds": seconds}
    for kind in ("extra_bytes", "peak_bytes"):
        found = [run[kind] for run in runs if run[kind] is not None]
        median[kind] = int(statistics.median(found)) if found else None
    return median | {"value": runs[0]["value"], "facts": runs[-1]["facts"]}


def _ratios(comparison: Comparison, methods: dict[str, Any]) -> dict[str, Any]:
    """Each method's time and memory against the first one's; whether values agree and goals are met."""
    first, *others = methods
    ratios: dict[str, Any] = {}
    for method in others:
        a, b = methods[first], methods[method]
        if "killed" not in a and "killed" not in b:
            ratios[method] = {"faster": a["seconds"] / b["seconds"]}
            if comparison.memory:
                kind = f"{comparison.memory}_bytes"
                ratios[method]["memory"] = b[kind] / a[kind] if a[kind] else None
    result: dict[str, Any] = {"ratios": ratios}
    values = [methods[method]["value"] for method in comparison.same_value if "killed" not in methods[method]]
    if len(values) > 1:
        result["difference"] = max(largest_difference(values[0], value) for value in values[1:])
        if not result["difference"] <= comparison.tolerance:
            found = f"differ by {result['difference']:.2g}, at most {comparison.tolerance:g} is allowed"
            raise BenchmarkError(f"{comparison.name}: the values of {', '.join(comparison.same_value)} {found}")
    met = _goals_met(comparison.goal, methods, ratios)
    return result | ({"goals": met} if met else {})


def largest_difference(values: Sequence[float], others: Sequence[float]) -> float:
    """The largest difference of two equally long lists, relative to the larger number; NaN equals NaN."""
    if len(values) != len(others):
        return math.inf
    pairs = [(a, b) for a, b in zip(values, others, strict=True) if a != b and not (math.isnan(a) and math.isnan(b))]
    if any(not math.isfinite(a) or not math.isfinite(b) for a, b in pairs):
        return math.inf
    return max((abs(a - b) / max(abs(a), abs(b)) for a, b in pairs), default=0.0)


def _goals_met(goal: Goal, methods: dict[str, Any], ratios: dict[str, Any]) -> dict[str, bool]:
    """Each demand in words, and whether the last method meets it; a first method that was killed is beaten in all."""
    first, last = next(iter(methods)), list(methods)[-1]
    alive, beaten, ratio = "killed" not in methods[last], "killed" in methods[first], ratios.get(last, {})
    met = {}
    if goal.faster is not None:
        met[f"at least {goal.faster:g}× faster"] = alive and (beaten or ratio["faster"] >= goal.faster)
    if goal.memory is not None:
        met[f"at most {goal.memory:g} of the memory"] = alive and (beaten or ratio["memory"] <= goal.memory)
    if goal.peak_gb is not None:
        met[f"peak at most {goal.peak_gb:g} GB"] = alive and methods[last]["peak_bytes"] <= goal.peak_gb * 1e9
    return met
