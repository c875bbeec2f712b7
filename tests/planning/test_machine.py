"""Time and memory as straight lines."""

import pytest

from pipeline.planning.machine import Cost, Machine


def test_a_step_takes_what_is_fixed_and_what_each_voxel_takes():
    cost = Cost(fixed_s=0.5, voxel_s=1e-3, fixed_bytes=100, voxel_bytes=2, validation_voxel_s=1e-4, n_processes=3)
    assert cost.step_s((10, 5, 2), 4) == pytest.approx(0.5 + 0.4)
    assert cost.peak_bytes((10, 5, 2), 4) == 3 * (100 + 800)


def test_a_training_on_a_gpu_starts_later_than_on_a_cpu():
    assert Machine("gpu", 16, 10**11).start_s > Machine("cpu", 2, 10**10).start_s
