"""Training steps measured in a process of its own."""

import subprocess

import pytest

from pipeline.training import step_times
from pipeline.training.step_times import StepRequest, measure_steps


def request(**changes):
    settings = {
        "network": {"strides": [[2, 2, 2]]},
        "in_channels": 1,
        "n_classes": 3,
        "base_channels": 2,
        "precision": "32",
        "n_gpus": 0,
        "steps": (((8, 8, 8), 1), ((16, 16, 16), 2)),
    }
    return StepRequest(**settings | changes)


def test_every_step_that_was_asked_for_is_measured_in_one_process_and_in_several_together():
    small, large = measure_steps(request(n_processes=2, process_bytes=10**12))
    assert (small.patch, small.batch, large.patch, large.batch) == ((8, 8, 8), 1, (16, 16, 16), 2)
    assert min(*large.all_threads, *small.in_processes, *large.in_processes) > 0
    assert 0 < small.peak_bytes <= large.peak_bytes


def test_a_step_too_large_for_several_processes_is_taken_in_one(monkeypatch):
    monkeypatch.setattr(step_times, "LEAST_PROCESS_BYTES", 0)
    (taken,) = measure_steps(request(steps=(((8, 8, 8), 1),), n_processes=2, process_bytes=1))
    assert taken.patch == (8, 8, 8)
    assert min(taken.all_threads) > 0
    assert taken.in_processes is None


def test_no_more_processes_are_started_than_memory_holds(monkeypatch):
    """On 64 cores with 16 GB, where 64 processes would take 21 GB before their first step."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, command, **settings):
            started.append(command)
            super().__init__([command[0], "-c", ""], **settings)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    measure_steps(request(n_processes=64, process_bytes=int(0.8 * 16e9 / 64)))
    assert len(started) == 1


@pytest.mark.fault(
    "one of the processes in which `bodyseg plan` measures steps killed, as where memory ends",
    "the others end at once, and the steps are measured in one process",
)
def test_where_one_of_several_processes_is_killed_the_steps_are_taken_in_one(monkeypatch):
    """At once, not at the limit, until which the first process would wait for the other; a third is impossible."""
    started = []

    class SecondKilled(subprocess.Popen):
        def __init__(self, command, **settings):
            super().__init__(command, **settings)
            started.append(self)
            if len(started) == 2:
                self.kill()

    monkeypatch.setattr(subprocess, "Popen", SecondKilled)
    monkeypatch.setattr(step_times, "TIME_LIMIT_S", 60.0)
    steps = (((8, 8, 8), 1), ((16, 16, 16), 2), ((100_000, 100_000, 100_000), 1))
    measured = measure_steps(request(steps=steps, n_processes=2, process_bytes=10**12))
    assert [one.patch for one in measured] == [(8, 8, 8), (16, 16, 16)]
    assert {one.in_processes for one in measured} == {None}
    assert len(started) == 3
    assert started[0].returncode < 0  # did not wait for the limit
