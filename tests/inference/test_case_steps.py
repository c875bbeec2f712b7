"""The steps of one case: what runs out of memory says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.tiny_prediction import scan

LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from pipeline.inference.batch import segment_cases  # imported before memory is short
from tests.support.tiny_prediction import predicted
import psutil
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + int(float(sys.argv[4]) * 2**20), resource.RLIM_INFINITY))
print(predicted([sys.argv[1]], [sys.argv[2]], Path(sys.argv[3]), threads=1).to_text())
"""


@pytest.mark.fault("memory runs out while a scan is read or prepared", "its line says memory, and what helps")
def test_memory_that_runs_out_while_a_scan_is_prepared_is_said_with_a_remedy(run, tmp_path):
    scan(tmp_path / "in" / "big.nii.gz", shape=(260, 260, 260))
    command = [sys.executable, "-c", LITTLE_MEMORY, run, tmp_path / "in", tmp_path / "out", "200"]
    ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    line = ended.stdout.splitlines()[1]
    assert "memory" in line
    assert "applying transform" not in line
    assert ";" in line
