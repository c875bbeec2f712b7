"""Trainings that are killed or asked to stop, at any moment; the processes and the signals are real."""

from __future__ import annotations

import os
import re
import signal
import sys
from functools import partial

import pytest

from tests import soak
from tests.support.tiny_training import (
    EPOCHS,
    WHOLE,
    complaint,
    ended,
    go_on,
    n_epochs,
    resumed,
    start,
    summary,
    tiny_training,
    train,
)

INTERRUPTED = 'stops after the batch at hand as "interrupted", exit {}; `--resume` ends bit for bit alike'


@pytest.mark.fault(
    "five SIGKILLs at random moments, each followed by `--resume`, a reader parsing the three files all the time",
    "no unparsable read, arrays of equal length, weights and history bit for bit those of an uninterrupted run",
)
def test_a_training_killed_five_times_ends_as_one_never_interrupted(tmp_path):
    figures = soak.soak(tmp_path, kills=5, max_epochs=12, seed=3)
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
    process, run, output = train(work, name, before=be_a_slurm_job if in_slurm else None, pause=1)
    go_on(process, signal.Signals[name])
    said = ended(process, run, output, code=code)
    assert complaint(said) == f"bodyseg: training stopped by {name}; go on with --resume"
    found = summary(run)
    assert (found["status"], found["reason"]) == ("interrupted", f"stopped by {name}")
    assert found["total_epochs"] == n_epochs(run) < EPOCHS
    assert resumed(work, name) == []


@pytest.mark.fault(
    "SIGHUP (a closed terminal), SIGXCPU (a CPU time limit), SIGUSR2", "as SIGTERM: stops after the batch at hand"
)
@pytest.mark.parametrize("name", ["SIGHUP", "SIGXCPU", "SIGUSR2"])
def test_every_other_way_to_be_asked_to_stop_is_as_orderly(work, name):
    process, run, output = train(work, name, pause=1)
    go_on(process, signal.Signals[name])
    said = ended(process, run, output, code=128 + signal.Signals[name])
    assert complaint(said) == f"bodyseg: training stopped by {name}; go on with --resume"
    assert (summary(run)["status"], summary(run)["reason"]) == ("interrupted", f"stopped by {name}")


def ignore_hangups():
    """Be started by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.fault("SIGHUP under nohup", "the training goes on to its end, exit 0")
def test_a_training_under_nohup_outlives_its_terminal(work):
    process, run, output = train(work, "nohup", before=ignore_hangups, pause=1)
    go_on(process, signal.SIGHUP)
    ended(process, run, output, code=0)
    assert summary(run)["status"] == "completed"


def ask_at_the_first_scan(number, lock=None):
    """Get a signal at the moment in which the first scan is opened, by whatever process, once the run is locked."""
    this, asked = os.getpid(), []

    def watch(event, arguments):
        if event == "open" and str(arguments[0]).endswith(".nii.gz") and not asked and (lock is None or lock.exists()):
            asked.append(True)
            os.kill(this, number)

    sys.addaudithook(watch)


@pytest.mark.fault(
    "SIGTERM or SIGHUP while `check`, `predict`, `evaluate` or `cache` work",
    "one line with what is done, exit 143 or 129; files whole",
)
@pytest.mark.parametrize("command", ["check", "predict", "evaluate"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_every_command_that_is_asked_to_stop_says_so_and_ends(work, tmp_path, command, name):
    number = signal.Signals[name]
    labels = str(work / "data" / "labelsTr")
    arguments = {
        "check": ["check", str(work / "data"), "--data.cache_dir", str(tmp_path / "cache")],
        "predict": ["predict", str(work / "logs" / WHOLE), str(work / "data"), "--output", str(tmp_path / "out")],
        "evaluate": ["evaluate", "--predictions", labels, "--labels", labels, "--output", str(tmp_path / "out")],
    }[command]
    process = start(arguments, tmp_path / "said.txt", partial(ask_at_the_first_scan, number))
    said = ended(process, None, tmp_path / "said.txt", code=128 + number)
    done = {
        "check": r"(Checking: nothing|checking cases: \d/4) done",
        "predict": "0 of 4 scans are finished; the same command goes on with the others",
        "evaluate": r"(Evaluating: nothing|scoring: \d/4) done",
    }
    assert re.fullmatch(f"bodyseg: stopped by {name}; {done[command]}", complaint(said))
    assert not list(tmp_path.rglob("*.writing"))


@pytest.mark.fault("SIGTERM, and SIGKILL before it could end", "the log is whole; `--resume` ends bit for bit alike")
def test_a_preemption_without_grace_costs_one_epoch_at_most(work):
    process, run, output = train(work, "graceless", pause=2)
    go_on(process, signal.SIGTERM, signal.SIGKILL)
    ended(process, run, output, code=-signal.SIGKILL)
    assert n_epochs(run) == 2
    assert resumed(work, "graceless") == []


@pytest.mark.fault(
    "Ctrl-C while cases are still prepared", "exit 130; nothing was written, and the advice is to repeat"
)
def test_a_signal_before_the_first_batch_leaves_nothing_behind(work):
    cold = {"data.cache_dir": str(work / "cold")}
    lock = tiny_training(work, "early", max_epochs=EPOCHS)[1] / "resume" / "lock"
    asked = partial(ask_at_the_first_scan, signal.SIGINT, lock)
    process, run, output = train(work, "early", before=asked, **cold)
    said = ended(process, run, output, code=130)
    assert "Setting up data" in said
    assert complaint(said) == (
        "bodyseg: training stopped by SIGINT; nothing was trained yet: repeat the command; prepared cases are kept"
    )
    assert not run.exists()
