"""A measurement runs in a process of its own, which is the first that the kernel would end."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.compute.launcher import EXIT_LOST
from pipeline.compute.measuring import PeakMemory, begin_peak, peak_memory, run_measurement, run_together
from tests.support.paths import ROOT

PROGRAM = """
import json
from pathlib import Path
from pipeline.compute.measuring import begin_measurement, peak_bytes
request = begin_measurement()
score = Path("/proc/self/oom_score_adj").read_text().strip()
print(json.dumps({"request": request, "score": score, "peak": peak_bytes()}))
"""


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Run the program above, and return what it says."""
    (tmp_path / "measure_nothing.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda: json.loads(run_measurement("measure_nothing", {"steps": [1, 2]}, time_limit_s=120).stdout)


def test_the_process_that_measures_is_the_first_that_the_kernel_ends(answer: Callable[[], dict[str, Any]]) -> None:
    found = answer()
    assert found["request"] == {"steps": [1, 2]}
    assert found["score"] == "1000"
    assert found["peak"] > 1e8  # torch alone takes more than 100 MB


def test_the_peak_is_not_that_of_the_process_that_asks(answer: Callable[[], dict[str, Any]]) -> None:
    np.ones(10**9, np.uint8)
    assert answer()["peak"] < 10**9


def _take_memory(n_bytes: int) -> None:
    """Take fresh pages and give them back: memory of numpy's may come from what this process keeps."""
    with mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for _ in range(n_bytes // 10_000_000):
            pages.write(bytes(10_000_000))


def test_a_peak_counts_from_its_beginning_on_and_keeps_what_was_freed() -> None:
    """Against what psutil says is resident."""
    _take_memory(400_000_000)
    begin_peak()
    before = psutil.Process().memory_info().rss
    if peak_memory(on_gpu=False).n_bytes > before + 100_000_000:
        pytest.skip("this system does not let a process forget its peak")
    _take_memory(200_000_000)
    found = peak_memory(on_gpu=False)
    assert before + 190_000_000 < found.n_bytes < before + 300_000_000
    assert found.device == "CPU"
    assert max(found, PeakMemory(10**15, "another")).device == "another"


TOGETHER = """
import json, os, signal, sys, time
from pathlib import Path
request = json.load(sys.stdin)["request"]
written = Path(request["written"])
if request["rank"] == 0:
    print("measured", flush=True)
    written.touch()
elif request["ends"]:
    while not written.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


@pytest.mark.parametrize(("ends", "limit_s"), [(True, 300), (False, 2)])
def test_processes_that_measure_together_end_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool, limit_s: float
) -> None:
    """And what the first has written until then is kept."""
    (tmp_path / "measure_together.py").write_text(TOGETHER)
    monkeypatch.syspath_prepend(tmp_path)
    requests = [{"rank": rank, "ends": ends, "written": str(tmp_path / "written")} for rank in range(3)]
    before = psutil.Process().children()  # of earlier tests
    began = time.monotonic()
    assert run_together("measure_together", requests, time_limit_s=limit_s) == "measured\n"
    assert time.monotonic() - began < 60
    assert set(psutil.Process().children()) <= set(before)


@pytest.mark.fault(
    "`bodyseg check` or `plan` killed (SIGKILL) while the process that takes a trial step still imports",
    "that process ends, too",
)
def test_no_measurement_begins_for_a_process_that_is_gone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    code = "import time; from pipeline.compute.measuring import begin_measurement; begin_measurement(); time.sleep(600)"
    asked = json.dumps({"asked_by": ended.pid, "request": {}})
    left = subprocess.run([sys.executable, "-c", code], input=asked, text=True, cwd=ROOT, check=False, timeout=240)
    assert left.returncode == EXIT_LOST
