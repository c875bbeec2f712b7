"""Measure in a process of its own, so that the one that asks survives when the kernel ends the other for its memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.compute.launcher import end_children, end_with_parent
from pipeline.compute.memory import forget_peak, peak_memory_bytes

_POLL_S = 0.1


def run_measurement(
    module: str, request: Mapping[str, Any], *, time_limit_s: float
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` with the request as JSON on its input, and return how it ended and what it wrote.

    Raises subprocess.TimeoutExpired, with what it had written until then.
    """
    return subprocess.run(
        _command(module),
        input=_asked(request),
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=time_limit_s,
        check=False,
    )


def run_together(module: str, requests: Sequence[Mapping[str, Any]], *, time_limit_s: float) -> str:
    """Run a process for each request, which wait for each other as they measure, and return what the first one wrote.

    Where one fails, and at the limit, all are ended.
    """
    until = time.monotonic() + time_limit_s
    processes: list[subprocess.Popen] = []
    with contextlib.ExitStack() as files:
        output = files.enter_context(tempfile.TemporaryFile("w+"))
        try:
            for request in requests:
                asked = files.enter_context(tempfile.TemporaryFile("w+"))
                asked.write(_asked(request))
                asked.seek(0)
                written = subprocess.DEVNULL if processes else output
                processes.append(
                    subprocess.Popen(
                        _command(module), stdin=asked, stdout=written, stderr=subprocess.DEVNULL, env=_environment()
                    )
                )
            codes: list[int | None] = [None]
            while None in codes and not any(codes) and time.monotonic() < until:
                time.sleep(_POLL_S)
                codes = [process.poll() for process in processes]
        finally:
            end_children(processes)
        output.seek(0)
        return output.read()


def _command(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _environment() -> dict[str, str]:
    """So that the other process imports the same modules, wherever this one was started."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _asked(request: Mapping[str, Any]) -> str:
    return json.dumps({"asked_by": os.getpid(), "request": request})


def begin_measurement() -> dict[str, Any]:
    """Return the request of `run_measurement`; called first by the process that measures.

    From then on it ends with the one that asked: nobody would read the answer, and it holds much memory. That one may
    have ended already, in the seconds that imports took.
    """
    with contextlib.suppress(OSError):  # when memory ends, the kernel is to end this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    asked = json.load(sys.stdin)
    end_with_parent(asked["asked_by"])
    return asked["request"]


def peak_bytes() -> int:
    """Most memory in use so far: of the GPU where this process computes on one, else of the process."""
    return peak_memory(on_gpu=torch.cuda.is_initialized()).n_bytes


class PeakMemory(NamedTuple):
    """Most memory that a process has held at once; of two, the larger one compares as larger."""

    n_bytes: int = 0
    """0: nothing was measured."""
    device: str = ""
    """What the memory belongs to: "CPU" for the main memory of a process, else the GPU's name."""


NOTHING_MEASURED = PeakMemory()


def peak_memory(*, on_gpu: bool) -> PeakMemory:
    """Most memory of the GPU, or main memory of this process, since `begin_peak`, else since the process began.

    Processes that it starts, as those that load data, have memory of their own.
    """
    if on_gpu:
        return PeakMemory(torch.cuda.max_memory_reserved(), torch.cuda.get_device_name())
    return PeakMemory(peak_memory_bytes(), "CPU")


def begin_peak() -> None:
    """Let the peaks of what follows count from what is held now on: this process may have done other work before."""
    forget_peak()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def clock_s() -> float:
    """Seconds on a clock that only goes forward, read once the GPU has done what it was asked to."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
