"""Plans against closed forms: the budget is kept, memory is kept, patches grow, and what is needed is measured."""

import itertools
import math
import re
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from networks.body_net import BodyNet
from networks.sliding_window import count_windows
from pipeline.config.files import from_mapping
from pipeline.config.settings import ConfigError
from pipeline.config.without_effect import without_effect
from pipeline.planning.choice import grid_of
from pipeline.planning.plan import OFTEN, make_plan
from pipeline.training.patch_schedule import PatchSchedule
from pipeline.training.samplers import PatchSampler
from tests.support.plans import HIPPOCAMPUS, MACHINE, WHOLE_BODY, Measured
from transforms.chains import augmentation_chain, preprocessing_chain
from transforms.patches import draw_patch_start


def schedule_of(plan):
    return PatchSchedule.from_settings(from_mapping({"data": plan.settings["data"] | {"dataset_root": "scans"}}).data)


def seconds_of(plan, data, cost):
    """What the planned training takes: of each epoch its steps, of all validations together, epoch by epoch."""
    schedule, training, window = schedule_of(plan), plan.settings["training"], plan.settings["data"]["target_size"]
    n_batches = schedule.n_batches(data.n_train, cost.n_processes)
    sizes = grid_of(data, plan.settings["data"]["spacing_mm"]).cases.sizes
    case_s = cost.validation_voxel_s * math.prod(window) * fmean(count_windows(size, window) for size in sizes)
    growth = [stage[4] for stage in plan.settings["data"]["patch_growth"]]
    ends, due = list(itertools.accumulate(growth)), 0
    steps, validations = [], case_s  # Lightning tries one case first
    for epoch in range(training["max_epochs"]):
        steps.append(n_batches * cost.step_s(schedule.patch_of(epoch), schedule.batch_of(epoch)))
        due += (epoch + 1) % training["validate_every"] == 0
        if epoch + 1 == training["max_epochs"] or (due and (epoch + 1 >= sum(growth) or epoch + 1 in ends)):
            due = 0
            validations += case_s * math.ceil(data.n_val / cost.n_processes)
    return steps, validations


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("edge", [36, 120, 250])
@pytest.mark.parametrize("n_cases", [8, 60, 500])
def test_steps_and_validations_together_fit_the_budget(edge, n_cases, n_processes):
    n_val = max(1, n_cases // 10)
    sizes = ((edge, edge, edge), (edge, edge, 2 * edge), (edge, edge + 9, edge)) * (n_cases // 3)
    numbers = {"n_train": n_cases - n_val, "n_val": n_val}
    data = replace(WHOLE_BODY, sizes=sizes, spacings_mm=((1.5,) * 3,) * len(sizes), **numbers)
    measure = Measured(n_processes=n_processes)
    for minutes in (1, 2, 5, 15, 60, 600):
        plan = make_plan(data, MACHINE, 60 * minutes, measure)
        steps, validations = seconds_of(plan, data, measure.cost)
        assert sum(steps) + validations <= 60 * minutes
        assert plan.expected_s == pytest.approx(sum(steps) + validations)
        assert sum(steps) >= 0.65 * 60 * minutes or minutes < 5


@pytest.mark.parametrize("minutes", [1, 2])
def test_a_budget_that_not_even_one_validation_fits_is_refused_with_one_that_does(minutes):
    measure = Measured(voxel_s=1e-4)
    with pytest.raises(ConfigError, match="one validation of 12 cases; say --budget") as error:
        make_plan(HIPPOCAMPUS, MACHINE, 60 * minutes, measure)
    enough = int(re.search(r"--budget (\d+)min", str(error.value))[1])
    plan = make_plan(HIPPOCAMPUS, MACHINE, 60 * enough, measure)
    steps, validations = seconds_of(plan, HIPPOCAMPUS, measure.cost)
    assert validations < sum(steps) + validations <= 60 * enough
    assert f"it holds {len(steps)}" in plan.warnings[0]
    with pytest.raises(ConfigError):
        make_plan(HIPPOCAMPUS, MACHINE, 60 * (enough - 1), measure)


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
    steps, _ = seconds_of(plan, HIPPOCAMPUS, measure.cost)
    ends = [0, *itertools.accumulate(stage[4] for stage in growth), len(steps)]
    shares = [sum(steps[start:end]) for start, end in itertools.pairwise(ends)]
    assert max(shares) < 1.1 * min(shares)


def test_a_patch_that_memory_cannot_hold_is_shortened_until_it_can():
    measure = Measured(n_processes=1)
    plan = make_plan(WHOLE_BODY, replace(MACHINE, memory_bytes=8 * 10**9), 10**6, measure)
    patch = plan.settings["data"]["target_size"]
    assert all(n % m == 0 for n, m in zip(patch, (32, 32, 32), strict=True))
    one_more = [n + 32 * (n == max(patch)) for n in patch]
    assert measure.cost.peak_bytes(one_more, 2) > 0.6 * 8e9


@pytest.mark.parametrize("n_processes", [1, 2, 4])
@pytest.mark.parametrize("gigabytes", [8, 40])
@pytest.mark.parametrize("budget_s", [10**5, 10**7])
def test_every_batch_that_is_written_fits_the_memory(n_processes, gigabytes, budget_s):
    measure = Measured(n_processes=n_processes, by_channels=True)
    plan = make_plan(WHOLE_BODY, replace(MACHINE, memory_bytes=gigabytes * 10**9), budget_s, measure)
    schedule = schedule_of(plan)
    cost = measure.at(plan.settings["model"]["base_channels"])
    epochs = range(plan.settings["training"]["max_epochs"])
    steps = {(schedule.patch_of(epoch), schedule.batch_of(epoch)) for epoch in epochs}
    assert plan.expected_bytes >= max(cost.peak_bytes(patch, batch) for patch, batch in steps)
    assert plan.expected_bytes <= 0.8 * gigabytes * 1e9


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("minutes", [100, 200, 600])
def test_the_largest_patch_is_trained_for_forty_steps_at_least(minutes, n_processes):
    measure = Measured(n_processes=n_processes)
    plan = make_plan(WHOLE_BODY, replace(MACHINE, memory_bytes=10**13), 60 * minutes, measure)
    grown = sum(stage[4] for stage in plan.settings["data"]["patch_growth"])
    n_batches = schedule_of(plan).n_batches(WHOLE_BODY.n_train, n_processes)
    assert (plan.settings["training"]["max_epochs"] - grown) * n_batches >= 40


def test_preparing_the_cases_is_taken_from_the_time():
    minutes = [make_plan(replace(HIPPOCAMPUS, preparing_s=s), MACHINE, 600 + s, Measured()) for s in (0, 300)]
    assert minutes[0].settings["data"] == minutes[1].settings["data"]
    with pytest.raises(ConfigError, match="--budget: expected 6 minutes at least"):
        make_plan(replace(HIPPOCAMPUS, preparing_s=300), MACHINE, 300, Measured())


def test_a_data_set_that_is_divided_keeps_its_split():
    plan = make_plan(replace(HIPPOCAMPUS, is_split=True), MACHINE, 300, Measured())
    assert "split_shares" not in plan.settings["data"]
    assert make_plan(HIPPOCAMPUS, MACHINE, 300, Measured()).settings["data"]["split_shares"] == [90, 10, 0]


def test_what_is_shown_often_is_varied_more():
    varied = {}
    for minutes in (2, 5, 15, 30, 240):
        plan = make_plan(HIPPOCAMPUS, MACHINE, 60 * minutes, Measured(voxel_s=3e-6))
        schedule = schedule_of(plan)
        n_batches = schedule.n_batches(HIPPOCAMPUS.n_train, 2)
        epochs = range(plan.settings["training"]["max_epochs"])
        size = HIPPOCAMPUS.sizes[0]
        shown = sum(
            2 * n_batches * schedule.batch_of(e) * math.prod(map(min, schedule.patch_of(e), size)) for e in epochs
        )
        shown /= HIPPOCAMPUS.n_train * math.prod(size)
        varied[minutes] = "augmentation" in plan.settings["data"]
        assert varied[minutes] == (shown >= OFTEN)
        if varied[minutes]:
            assert f"shown {shown:.0f} times" in plan.because["data.augmentation"]
    assert not varied[2]
    assert varied[240]


def test_how_often_voxels_are_shown_is_what_a_training_draws():
    plan = make_plan(HIPPOCAMPUS, MACHINE, 1800, Measured(voxel_s=3e-6))
    schedule, size, random = schedule_of(plan), HIPPOCAMPUS.sizes[0], np.random.RandomState(0)
    n_batches, seen = schedule.n_batches(HIPPOCAMPUS.n_train, 2), np.zeros(size)
    for rank in range(2):
        sampler = PatchSampler(
            HIPPOCAMPUS.n_train, n_batches, schedule.batch_of, seed=0, epoch=0, rank=rank, world_size=2
        )
        for epoch in range(plan.settings["training"]["max_epochs"]):
            sampler.set_epoch(epoch)
            patch = schedule.patch_of(epoch)
            for _ in range(sum(case == 0 for batch in sampler for _, case, _ in batch)):
                first = draw_patch_start(random, size, patch, places={}, weights=[0, 1], foreground=0.5)
                seen[tuple(slice(max(0, i), i + n) for i, n in zip(first, patch, strict=True))] += 1
    said = re.search(r"shown (\d+) times", plan.because["data.augmentation"])
    assert int(said[1]) == pytest.approx(seen.mean(), rel=0.03)


@pytest.mark.parametrize("minutes", [5, 600])
def test_every_setting_has_a_reason(minutes):
    plan = make_plan(HIPPOCAMPUS, MACHINE, 60 * minutes, Measured())
    names = {f"{group}.{key}" for group, keys in plan.settings.items() for key in keys}
    assert names == plan.because.keys()
    assert all(plan.because.values())


@pytest.mark.parametrize("size", [(6, 6, 6), (8, 9, 17), (256, 256, 6), (320, 11, 320), (400, 400, 20), (40, 300, 90)])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.6, 0.6, 4.0), (8.0, 1.0, 1.0)])
@pytest.mark.parametrize("minutes", [5, 600])
def test_what_is_planned_is_a_config_that_train_takes(size, spacing_mm, minutes):
    data = replace(WHOLE_BODY, sizes=(size,) * 20, spacings_mm=(spacing_mm,) * 20, n_train=18, n_val=2)
    plan = make_plan(data, MACHINE, 60 * minutes, Measured())
    settings = {group: dict(values) for group, values in plan.settings.items()}
    settings["data"]["dataset_root"] = "set"
    config = from_mapping(settings)
    assert without_effect(config) == ()
    preprocessing_chain(config.data.target_size, spacing_mm=config.data.spacing_mm)
    varied = config.data.augmentation or {}
    augmentation_chain(config.data.target_size, class_names=data.class_names, flips=config.data.flips, **varied)
    network = config.model.network
    BodyNet(base_channels=2, strides=network["strides"], kernels=network["kernels"])
    edges = np.array([stage[:3] for stage in config.data.patch_growth] + [config.data.target_size])
    assert not (edges % np.prod(np.reshape(network["strides"], (-1, 3)), axis=0)).any()
