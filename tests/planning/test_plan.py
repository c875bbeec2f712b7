"""Plans against closed forms: the budget is kept, memory is kept, patches grow, and what is needed is measured."""

import math
from dataclasses import replace

import pytest

from pipeline.planning.plan import Cost, DataSummary, Machine, make_plan

HIPPOCAMPUS = DataSummary(
    sizes=((35, 51, 36),) * 120,
    spacings_mm=((1.0, 1.0, 1.0),) * 120,
    n_train=108,
    n_val=12,
    n_channels=1,
    class_names=("background", "anterior", "posterior"),
    mirrors=True,
)
WHOLE_BODY = DataSummary(
    sizes=((333, 333, 533),) * 500,
    spacings_mm=((1.5, 1.5, 1.5),) * 500,
    n_train=450,
    n_val=50,
    n_channels=1,
    class_names=tuple(map(str, range(71))),
    mirrors=False,
)
MACHINE = Machine("cpu", 2, 24 * 10**9)


class Measured:
    """A machine that takes a known time and memory."""

    def __init__(self, voxel_s=8e-7, n_processes=2, voxel_bytes=3000.0):
        self.cost = Cost(0.01, voxel_s, 5e8, voxel_bytes, voxel_s / 3, n_processes)
        self.asked = []

    def __call__(self, steps, strides, kernels, channels):
        self.asked.append((steps, strides, kernels, channels))
        return self.cost


def seconds_of(plan, data, cost):
    """What the steps of the planned training take."""
    settings = plan.settings["data"]
    growth = settings["patch_growth"]
    n_batches = math.ceil(data.n_train * settings["patches_per_case"] / (settings["batch_size"] * cost.n_processes))
    left = plan.settings["training"]["max_epochs"] - sum(stage[4] for stage in growth)
    stages = [*growth, [*settings["target_size"], settings["batch_size"], left]]
    return [epochs * n_batches * cost.step_s((i, j, k), batch) for i, j, k, batch, epochs in stages]


@pytest.mark.parametrize("minutes", [2, 5, 15, 60, 600])
@pytest.mark.parametrize("data", [HIPPOCAMPUS, WHOLE_BODY], ids=["hippocampus", "whole body"])
def test_the_training_fits_the_budget_and_uses_it(data, minutes):
    measure = Measured()
    plan = make_plan(data, MACHINE, 60 * minutes, measure)
    total = sum(seconds_of(plan, data, measure.cost))
    assert total <= 60 * minutes
    if minutes >= 15 or data is HIPPOCAMPUS:
        assert total >= 0.5 * 60 * minutes
    assert plan.expected_s <= 60 * minutes * 1.02


def test_a_small_case_is_trained_on_whole_with_the_depth_that_fits_it():
    plan = make_plan(HIPPOCAMPUS, MACHINE, 300, Measured())
    assert plan.settings["data"]["target_size"] == [40, 56, 40]
    assert plan.settings["data"]["spacing_mm"] == [1, 1, 1]
    assert plan.settings["model"]["network"]["strides"] == [[2, 2, 2]] * 3
    assert plan.settings["data"]["batch_size"] == 1  # of each of two processes
    assert plan.settings["training"]["n_processes"] == 2


def test_patches_grow_in_equal_shares_of_the_time():
    measure = Measured()
    plan = make_plan(HIPPOCAMPUS, MACHINE, 3600, measure)
    growth = plan.settings["data"]["patch_growth"]
    sizes = [math.prod(stage[:3]) for stage in growth] + [40 * 56 * 40]
    assert sizes == sorted(sizes)
    assert [stage[3] for stage in growth] == sorted((stage[3] for stage in growth), reverse=True)
    shares = seconds_of(plan, HIPPOCAMPUS, measure.cost)
    assert max(shares) < 1.3 * min(shares)


def test_a_patch_that_memory_cannot_hold_is_shortened_until_it_can():
    measure = Measured(n_processes=1)
    plan = make_plan(WHOLE_BODY, replace(MACHINE, memory_bytes=8 * 10**9), 10**7, measure)
    patch = plan.settings["data"]["target_size"]
    assert measure.cost.peak_bytes(patch, 1) <= 0.8 * 8e9
    assert all(n % m == 0 for n, m in zip(patch, (32, 32, 32), strict=True))
    one_more = [n + 32 * (n == max(patch)) for n in patch]
    assert measure.cost.peak_bytes(one_more, 1) > 0.6 * 8e9


def test_a_patch_that_the_time_does_not_train_is_shortened():
    large = replace(MACHINE, memory_bytes=10**12)
    short = make_plan(WHOLE_BODY, large, 600, Measured()).settings["data"]["target_size"]
    long = make_plan(WHOLE_BODY, large, 60000, Measured()).settings["data"]["target_size"]
    assert math.prod(short) < math.prod(long)


def test_a_wider_network_is_taken_where_there_is_time_for_it_and_measured_again():
    measure = Measured()
    assert make_plan(HIPPOCAMPUS, MACHINE, 120, measure).settings["model"]["base_channels"] == 16
    assert make_plan(HIPPOCAMPUS, MACHINE, 8 * 3600, measure).settings["model"]["base_channels"] == 32
    assert [asked[3] for asked in measure.asked] == [16, 16, 32]


@pytest.mark.parametrize("edge", [6, 8, 12, 20, 40, 64, 100, 150, 333])
def test_two_different_numbers_of_voxels_are_measured(edge):
    measure = Measured()
    make_plan(replace(WHOLE_BODY, sizes=((edge, edge, 2 * edge),) * 500), MACHINE, 3600, measure)
    voxels = [math.prod(patch) * batch for patch, batch in measure.asked[0][0]]
    assert voxels[0] < voxels[1] <= 2 * 64**3


def test_every_setting_has_a_reason():
    plan = make_plan(HIPPOCAMPUS, MACHINE, 300, Measured())
    names = {f"{group}.{key}" for group, keys in plan.settings.items() for key in keys}
    assert names == plan.because.keys()
    assert all(plan.because.values())
