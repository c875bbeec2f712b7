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


def test_every_step_that_was_asked_for_is_measured():
    small, large = measure_steps(request())
    assert (small.patch, small.batch, large.patch, large.batch) == ((8, 8, 8), 1, (16, 16, 16), 2)
    assert min(large.all_threads) > 0
    assert 0 < small.peak_bytes <= large.peak_bytes
    assert min(large.one_thread) > 0


def test_steps_after_one_that_could_not_be_taken_are_missing():
    steps = (((8, 8, 8), 1), ((100_000, 100_000, 100_000), 1))
    assert [step.patch for step in measure_steps(request(steps=steps))] == [(8, 8, 8)]
