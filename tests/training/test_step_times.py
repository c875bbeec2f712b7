"""Training steps measured in a process of its own."""

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


def test_steps_that_could_not_be_taken_are_missing_and_those_too_large_for_several_processes_are_taken_in_one():
    steps = (((8, 8, 8), 1), ((100_000, 100_000, 100_000), 1))
    (taken,) = measure_steps(request(steps=steps, n_processes=2, process_bytes=1))
    assert taken.patch == (8, 8, 8)
    assert min(taken.all_threads) > 0
    assert taken.in_processes is None
