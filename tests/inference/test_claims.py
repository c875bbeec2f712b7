"""Processes that write into one folder at a time divide the cases between them."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys

import pytest

from pipeline.files.atomic import FileError
from pipeline.inference.claims import CaseClaims, CaseTakenError
from pipeline.writers.outputs import OutputOptions
from tests.support.killed_writer import KILLED
from tests.support.paths import ROOT
from tests.support.tiny_prediction import predicted, scans, voxels
from tests.support.tiny_training import LIMIT_S, SERVER


def predict_together(ready, said, run, folder, out, min_volume_ml):
    """Be a process that predicts as soon as the other is ready, too, and says what became of each case."""
    ready.wait(LIMIT_S)
    report = predicted([run], [folder], out, min_volume_ml=min_volume_ml, threads=1)
    said.put((min_volume_ml, [record.status for record in report.cases]))


@pytest.mark.fault(
    "two `predict` with different settings write into one folder at a time",
    "each case is one process's: its record describes its files; the other process says whose it is",
)
def test_processes_that_share_a_folder_divide_the_cases_and_never_mix_files_and_records(run, tmp_path):
    scans(tmp_path / "in", 6)
    out = tmp_path / "out"
    ready, answers = SERVER.Barrier(2), SERVER.Queue()
    smallest = (0.0, 100_000.0)
    processes = [
        SERVER.Process(target=predict_together, args=(ready, answers, run, tmp_path / "in", out, ml)) for ml in smallest
    ]
    for process in processes:
        process.start()
    said = dict(answers.get(timeout=LIMIT_S) for _ in processes)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    made = []
    for number in range(6):
        record = json.loads((out / f"case{number}.json").read_text())
        content = (out / f"case{number}.nii.gz").read_bytes()
        assert record["contents"][f"case{number}.nii.gz"]["sha256"] == hashlib.sha256(content).hexdigest()
        removes_all = record["made_by"]["settings"]["min_volume_ml"] > 0
        assert (voxels(out / f"case{number}.nii.gz") == 0).all() == removes_all
        made.append(removes_all)
    for ml, own in zip(smallest, (False, True), strict=True):
        assert said[ml].count("done") == made.count(own)
        assert said[ml].count("failed") == made.count(not own)
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


def test_a_case_that_another_user_holds_is_left_to_him_and_the_others_go_on(tmp_path, monkeypatch):
    outputs = OutputOptions(tmp_path, ("background", "liver"))
    outputs.lock_file("a").touch()

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("pipeline.inference.claims.take_lock", refuse)
    with CaseClaims(outputs) as claims:
        with pytest.raises(CaseTakenError, match=r"another user segments this case .*have \.a\.lock removed there"):
            claims.claim("a")
        with pytest.raises(FileError, match="cannot be written"):
            claims.claim("b")


def test_the_lock_of_a_finished_case_goes_at_the_next_run_unless_it_is_held(run, tmp_path):
    """A process that is killed right after the record leaves it."""
    scans(tmp_path / "in", 2)
    out = tmp_path / "out"
    predicted([run], [tmp_path / "in"], out, per_structure=True)
    left, held = out / ".case0.lock", out / ".case1.lock"
    left.write_text("process 4711 on host (since 2024-01-15 10:30:00)")
    begun = out / "case0" / "segmentations" / "liver.nii.gz"
    subprocess.run([sys.executable, "-c", KILLED, begun], cwd=ROOT, check=False)
    assert list(begun.parent.glob(".*"))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == b"held\n"
        assert predicted([run], [tmp_path / "in"], out, per_structure=True).n_skipped == 2
        assert list(out.glob(".*")) == [held]
        assert list(begun.parent.glob(".*")) == []
        other.stdin.close()
