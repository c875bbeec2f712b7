"""A measurement runs in a process of its own, which is the first that the kernel would end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.compute.measuring import run_measurement

PROGRAM = """
import json
from pathlib import Path
from pipeline.compute.measuring import begin_measurement, peak_bytes
request = begin_measurement()
score = Path("/proc/self/oom_score_adj").read_text().strip()
print(json.dumps({"request": request, "score": score, "peak": peak_bytes()}))
"""


def test_the_process_that_measures_is_the_first_that_the_kernel_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "measure_nothing.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    ended = run_measurement("measure_nothing", {"steps": [1, 2]}, time_limit_s=120)
    answer = json.loads(ended.stdout)
    assert answer["request"] == {"steps": [1, 2]}
    assert answer["score"] == "1000"
    assert answer["peak"] > 1e8  # torch alone takes more than 100 MB
