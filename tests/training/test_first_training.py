"""What a suggested training costs follows from two small steps."""

from __future__ import annotations

import math

import pytest

from pipeline.training.first_training import PROBES, trial_of
from pipeline.training.step_times import StepTime


def step(patch, seconds, n_bytes):
    return StepTime(patch, 1, (seconds, seconds / 4), None, n_bytes)


def test_times_and_memory_lie_on_the_line_through_both_measurements():
    """20 ms and 300 MB, and 1 µs and 100 bytes a voxel, whatever was measured."""
    measured = [step(patch, 0.02 + 1e-6 * math.prod(patch), int(3e8 + 100 * math.prod(patch))) for patch, _ in PROBES]
    trial = trial_of(measured, (160, 160, 256), 2, "the CPU", "32-true")
    voxels = 160 * 160 * 256
    assert trial.step_s == pytest.approx(0.02 + 2e-6 * voxels)
    assert trial.validation_s == pytest.approx((0.02 + 1e-6 * voxels) / 4)
    assert trial.peak_bytes == pytest.approx(3e8 + 200 * voxels)


def test_steps_that_a_busy_machine_measured_upside_down_give_no_negative_time():
    measured = [step(PROBES[0][0], 2.0, 10**9), step(PROBES[1][0], 1.0, 10**9)]
    assert trial_of(measured, (160, 160, 256), 1, "the CPU", "32-true").step_s == 2.0
    assert 0 < trial_of(measured, (16, 16, 16), 1, "the CPU", "32-true").step_s <= 2.0
