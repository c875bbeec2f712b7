"""The steps of one case: what runs out of memory says so."""

from __future__ import annotations

import resource
from functools import partial

import psutil
import pytest

from tests.support.tiny_prediction import scan
from tests.support.tiny_training import ended, start


def leave_little_memory(megabytes):
    """Take no more memory than this, once everything is imported."""
    import pipeline.inference.batch  # noqa: F401

    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))


@pytest.mark.fault("memory runs out while a scan is read or prepared", "its line says memory, and what helps")
def test_memory_that_runs_out_while_a_scan_is_prepared_is_said_with_a_remedy(run, tmp_path):
    path, output = scan(tmp_path / "big.nii.gz", shape=(260, 260, 260)), tmp_path / "said.txt"
    command = ["predict", str(run), str(path), "--output", str(tmp_path / "out"), "--device", "cpu", "--threads", "1"]
    said = ended(start(command, output, partial(leave_little_memory, 100)), None, output, code=1)
    (line,) = (line for line in said.splitlines() if line.startswith("  big: "))
    assert "memory" in line
    assert "applying transform" not in line
    assert ";" in line
