"""What any training step takes, from the few that a plan measures."""

from __future__ import annotations

import math

import pytest

from pipeline.config.settings import ConfigError
from pipeline.plan import cost_of
from pipeline.planning.machine import BETWEEN_STEPS_S
from tests.support.plans import step


def test_the_cost_is_the_line_through_two_measured_steps():
    measured = [step((10, 10, 10), 1, 0.3, 0.5, 3000), step((20, 10, 10), 1, 0.5, 0.9, 4000)]
    cost = cost_of(measured, n_cores=2)  # two processes of one thread: 0.9 / 2 < 0.5
    assert cost.n_processes == 2
    assert cost.step_s((20, 10, 10), 1) == pytest.approx(0.9 + BETWEEN_STEPS_S["cpu"])
    assert cost.step_s((30, 10, 10), 1) == pytest.approx(1.3 + BETWEEN_STEPS_S["cpu"])
    on_gpu = cost_of(measured, n_cores=2, accelerator="gpu")
    assert on_gpu.step_s((20, 10, 10), 1) == pytest.approx(0.9 + BETWEEN_STEPS_S["gpu"])
    assert (cost.epoch_s, cost.case_s) == (0, 0) < (on_gpu.epoch_s, on_gpu.case_s)
    assert cost.validation_voxel_s == pytest.approx(0.15 / 2000)
    assert cost.peak_bytes((10, 10, 10), 1) == pytest.approx(2 * 3000)


def test_one_process_has_all_threads_where_that_is_faster():
    measured = [step((10, 10, 10), 1, 0.3, 0.7, 1000), step((20, 10, 10), 1, 0.4, 0.9, 3000)]
    cost = cost_of(measured, n_cores=2)
    assert cost.n_processes == 1
    assert cost.step_s((20, 10, 10), 1) == pytest.approx(0.4 + BETWEEN_STEPS_S["cpu"])


def test_patches_that_cost_time_for_each_however_small_are_counted():
    """On an H200 a step on 11 patches of 24×16×32 took 65 ms, where a line through steps on 2 patches says a third."""
    steps = [((24, 16, 32), 2), ((24, 16, 32), 8), ((64, 40, 104), 2), ((32, 24, 64), 5)]
    taken = {(patch, batch): 0.004 + 0.003 * batch + 1e-7 * math.prod(patch) * batch for patch, batch in steps}
    *measured, asked = taken
    cost = cost_of([step(patch, batch, taken[patch, batch], 9.0, 1) for patch, batch in measured], 1)
    assert cost.step_s(*asked) == pytest.approx(taken[asked] + BETWEEN_STEPS_S["cpu"])


def test_one_process_has_all_threads_where_memory_holds_no_other():
    measured = [step((10, 10, 10), 1, 0.3, 0.5, 3000), step((20, 10, 10), 1, 0.5, None, 4000)]
    cost = cost_of(measured, 2)
    assert cost.n_processes == 1
    lacks = "2 could not be measured, as where memory ends"
    assert cost.why_processes == f"a step of 20×10×10 voxels takes 0.5 s in one process; {lacks}"
    assert cost.step_s((20, 10, 10), 1) == pytest.approx(0.5 + BETWEEN_STEPS_S["cpu"])


def test_a_machine_that_takes_no_step_is_told_so():
    with pytest.raises(ConfigError, match="no training step could be measured"):
        cost_of([], n_cores=2)
