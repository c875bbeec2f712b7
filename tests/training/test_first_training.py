"""What a suggested training costs follows from two small steps."""

from __future__ import annotations

import math

import pytest

from pipeline.training.cost import after_ten_steps
from pipeline.training.first_training import probes, trial_of
from pipeline.training.step_times import StepTime

WHOLE_BODY = (160, 160, 256)
MEASURED_GB = {32: 0.755, 48: 0.820, 64: 0.929, 80: 1.246, 96: 1.688}
"""Peak of steps of BodyNet with 71 classes in bfloat16 on a CPU, by the edge of the volume."""
WHOLE_BODY_GB = 9.390
"""The same of ten steps at 160×160×256, see benchmarks/results/step_loss.json."""


def step(patch, seconds, n_bytes):
    return StepTime(patch, 1, (seconds, seconds / 4), None, n_bytes)


def test_times_and_memory_lie_on_the_line_through_both_measurements():
    """20 ms and 300 MB, and 1 µs and 100 bytes a voxel, whatever was measured."""
    measured = [
        step(patch, 0.02 + 1e-6 * math.prod(patch), int(3e8 + 100 * math.prod(patch)))
        for patch, _ in probes(WHOLE_BODY)
    ]
    trial = trial_of(measured, WHOLE_BODY, 2, "the CPU", "32-true")
    voxels = math.prod(WHOLE_BODY)
    assert trial.step_s == pytest.approx(0.02 + 2e-6 * voxels)
    assert trial.validation_s == pytest.approx((0.02 + 1e-6 * voxels) / 4)
    assert trial.peak_bytes == pytest.approx(3e8 + 200 * voxels)


def test_steps_that_a_busy_machine_measured_upside_down_give_no_negative_time():
    measured = [step((32, 32, 32), 2.0, 10**9), step((96, 96, 96), 1.0, 10**9)]
    assert trial_of(measured, WHOLE_BODY, 1, "the CPU", "32-true").step_s == 2.0
    assert 0 < trial_of(measured, (16, 16, 16), 1, "the CPU", "32-true").step_s <= 2.0


def test_the_memory_of_whole_bodies_is_told_within_a_tenth():
    measured = [step(patch, 1.0, int(1e9 * MEASURED_GB[patch[0]])) for patch, _ in probes(WHOLE_BODY)]
    trial = trial_of(measured, WHOLE_BODY, 1, "the CPU", "bf16-mixed")
    assert after_ten_steps(trial, "cpu").peak_bytes == pytest.approx(1e9 * WHOLE_BODY_GB, rel=0.1)


def test_a_target_that_can_be_measured_in_seconds_is_measured_itself():
    measured = [step(patch, 1.0, math.prod(patch)) for patch, _ in probes((64, 80, 64))]
    assert measured[-1].patch == (64, 80, 64)
    assert trial_of(measured, (64, 80, 64), 1, "the CPU", "32-true").peak_bytes == measured[-1].peak_bytes
    assert probes((16, 16, 16))[-1][0] == (48, 48, 48)  # two sizes, whatever the target is
