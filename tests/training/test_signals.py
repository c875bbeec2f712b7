"""Trainings that are killed or asked to stop, at any moment; the processes and the signals are real."""

from __future__ import annotations

import os
import signal

import pytest

from tests import soak
from tests.support.tiny_training import (
    EPOCHS,
    after_epochs,
    complaint,
    ended,
    n_epochs,
    resumed,
    summary,
    train,
    wait_until,
)

INTERRUPTED = 'stops after the batch at hand as "interrupted", exit {}; `--resume` ends bit for bit alike'


@pytest.mark.fault(
    "five SIGKILLs at random moments, each followed by `--resume`, a reader parsing the three files all the time",
    "no unparsable read, arrays of equal length, weights and history bit for bit those of an uninterrupted run",
)
def test_a_training_killed_five_times_ends_as_one_never_interrupted(tmp_path):
    figures = soak.soak(tmp_path, kills=5, max_epochs=10, seed=3)
    assert (figures.kills, figures.faults, figures.differences) == (5, [], [])
    assert figures.reads > 100


def be_a_slurm_job():
    """Set what SLURM sets, by which Lightning would requeue and save by itself."""
    os.environ |= {f"SLURM_{name}": "0" for name in ("PROCID", "LOCALID", "NODEID")}
    os.environ |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1"}


@pytest.mark.parametrize(
    ("name", "in_slurm", "code"),
    [
        pytest.param("SIGINT", False, 130, marks=pytest.mark.fault("SIGINT (Ctrl-C)", INTERRUPTED.format(130))),
        pytest.param(
            "SIGTERM", True, 143, marks=pytest.mark.fault("SIGTERM, as SLURM preempts", INTERRUPTED.format(143))
        ),
        pytest.param(
            "SIGUSR1",
            True,
            138,
            marks=pytest.mark.fault("SIGUSR1, as `sbatch --signal` warns", INTERRUPTED.format(138)),
        ),
    ],
)
def test_a_signal_interrupts_between_two_batches_and_resuming_ends_as_if_there_had_been_none(
    work, name, in_slurm, code
):
    process, run, output = train(work, name, before=be_a_slurm_job if in_slurm else None)
    after_epochs(1, process, run, output)
    os.kill(process.pid, signal.Signals[name])
    said = ended(process, run, output, code=code)
    assert complaint(said) == f"bodyseg: training stopped by {name}; go on with --resume"
    found = summary(run)
    assert (found["status"], found["reason"]) == ("interrupted", f"stopped by {name}")
    assert found["total_epochs"] == n_epochs(run) < EPOCHS
    assert resumed(work, name) == []


@pytest.mark.fault("SIGTERM, and SIGKILL before it could end", "the log is whole; `--resume` ends bit for bit alike")
def test_a_preemption_without_grace_costs_one_epoch_at_most(work):
    process, run, output = train(work, "graceless")
    after_epochs(2, process, run, output)
    os.kill(process.pid, signal.SIGTERM)
    process.kill()
    ended(process, run, output, code=-signal.SIGKILL)
    assert n_epochs(run) >= 2
    assert resumed(work, "graceless") == []


@pytest.mark.fault("SIGTERM while cases are still prepared", "exit 143; nothing was written")
def test_a_signal_before_the_first_batch_leaves_nothing_behind(work):
    process, run, output = train(work, "early", **{"data.cache_dir": str(work / "cold")})
    lock = run / "resume" / "lock"
    assert wait_until(lock.exists, process)
    assert wait_until(lambda: "Setting up data" in output.read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    ended(process, run, output, code=143)
    assert not run.exists()
