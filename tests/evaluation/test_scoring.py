"""Many cases in several processes: one that is killed, and what is reported meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from pipeline.compute import memory
from pipeline.evaluate import evaluate
from pipeline.evaluation import scoring
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from tests.support.evaluation import blobs, save, three_cases
from tests.support.paths import ROOT


@pytest.fixture
def folders(tmp_path):
    return three_cases(tmp_path)


def killed(pair, **settings):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_reported_and_ends_the_evaluation(folders, monkeypatch):
    monkeypatch.setattr(scoring, "score_case", killed)
    with pytest.raises(EvaluationError, match=r"one of 2 processes that score was killed.*fewer --workers"):
        evaluate(folders / "predictions", folders / "labels", ScoringOptions(workers=2))


@pytest.mark.fault(
    "a shared memory (/dev/shm) too full to start another process, in `evaluate --workers N`",
    "one line that says to use `--workers 1`, or how to enlarge it, exit 2",
)
def test_a_full_shared_memory_is_said_as_such(folders, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scoring, "ProcessPoolExecutor", full)
    monkeypatch.setattr(memory, "shared_memory", lambda: (0, 64 << 20))
    with pytest.raises(
        EvaluationError, match=r"too small for 2 processes that score; use bodyseg evaluate --workers 1"
    ):
        evaluate(folders / "predictions", folders / "labels", ScoringOptions(workers=2))


def test_the_share_of_a_case_that_is_done_grows_to_one(folders):
    seen = []
    evaluate(folders / "predictions", folders / "labels", case_progress=lambda *step: seen.append(step))
    for case in "abc":
        shares = [share for name, share in seen if name == case]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1], len(shares)) == (0.0, 1.0, 4)


@pytest.fixture
def many_large_cases(tmp_path):
    """Sixty cases of one large label map: the scoring of all of them takes minutes."""
    label = np.kron(blobs(1, n_classes=30), np.ones((6, 6, 6), np.uint8))
    first = save(label, tmp_path / "labels" / "case_0.nii")
    for n in range(1, 60):
        os.link(first, first.with_name(f"case_{n}.nii"))
    return tmp_path


@pytest.mark.fault(
    "the process of `bodyseg evaluate --workers N` killed (SIGKILL)", "no worker and no server of workers outlives it"
)
@pytest.mark.parametrize("moment", ["while the workers start", "while they score"])
def test_no_process_outlives_the_evaluation_that_started_it(many_large_cases, moment):
    labels = str(many_large_cases / "labels")
    command = [sys.executable, "-m", "pipeline", "evaluate", "--predictions", labels, "--labels", labels, "--workers"]
    output = str(many_large_cases / "scores")
    with subprocess.Popen([*command, "2", "--output", output], cwd=ROOT, stderr=subprocess.DEVNULL) as started:
        evaluation = psutil.Process(started.pid)
        n_wanted = 2 if moment == "while the workers start" else 4  # a tracker of resources, the server, two workers
        deadline = time.monotonic() + 240
        while len(evaluation.children(recursive=True)) < n_wanted:
            assert started.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = evaluation.children(recursive=True)
        started.kill()
    _, alive = psutil.wait_procs(children, timeout=240)
    for process in alive:
        process.kill()
    assert not alive
