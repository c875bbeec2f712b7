"""Processes that write into one folder at a time divide the cases between them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.tiny_prediction import predicted, scans, voxels

TOGETHER = """
import sys
from pathlib import Path
from tests.support.tiny_prediction import predicted
print("ready", flush=True)
sys.stdin.read()
report = predicted([sys.argv[1]], [sys.argv[2]], Path(sys.argv[3]), min_volume_ml=float(sys.argv[4]), threads=1)
print([record.status for record in report.cases], [record.error for record in report.cases])
"""


@pytest.mark.fault(
    "two `predict` with different settings write into one folder at a time",
    "each case is one process's: its record describes its files; the other process says whose it is",
)
def test_processes_that_share_a_folder_divide_the_cases_and_never_mix_files_and_records(run, tmp_path):
    scans(tmp_path / "in", 6)
    out = tmp_path / "out"
    commands = [[sys.executable, "-c", TOGETHER, run, tmp_path / "in", out, ml] for ml in ("0", "100000")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT, "text": True}
    with subprocess.Popen(commands[0], **pipes) as first, subprocess.Popen(commands[1], **pipes) as second:
        processes = (first, second)
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        for process in processes:
            process.stdin.close()
        said = [process.stdout.read() for process in processes]
        assert [process.wait() for process in processes] == [0, 0]
    made = []
    for number in range(6):
        record = json.loads((out / f"case{number}.json").read_text())
        content = (out / f"case{number}.nii.gz").read_bytes()
        assert record["contents"][f"case{number}.nii.gz"]["sha256"] == hashlib.sha256(content).hexdigest()
        removes_all = record["made_by"]["settings"]["min_volume_ml"] > 0
        assert (voxels(out / f"case{number}.nii.gz") == 0).all() == removes_all
        made.append(removes_all)
    for text, own in zip(said, (False, True), strict=True):
        assert text.count("'done'") == made.count(own)
        assert text.count("'failed'") == made.count(not own)
    assert list(out.glob(".*")) == []


def test_two_processes_with_the_same_settings_share_the_work(run, tmp_path):
    scans(tmp_path / "in", 3)
    out = tmp_path / "out"
    lock = out / ".case1.lock"
    out.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == b"held\n"
        report = predicted([run], [tmp_path / "in"], out)
        assert [record.status for record in report.cases] == ["done", "failed", "done"]
        assert f"process {other.pid} on " in report.cases[1].error
        assert "segments this case into" in report.cases[1].error
        other.stdin.close()
        other.wait()
    assert [record.status for record in predicted([run], [tmp_path / "in"], out).cases] == [
        "skipped",
        "done",
        "skipped",
    ]


HOLDS = """
import sys
from pathlib import Path
from pipeline.files.lock import take_lock
lock = take_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
