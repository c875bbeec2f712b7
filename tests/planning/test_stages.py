"""Stages share the time, and a schedule that does not fit is not made."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from networks.sliding_window import SlidingWindow
from pipeline.planning.epochs import n_batches
from pipeline.planning.machine import Cost
from pipeline.planning.stages import LEAST_EPOCHS, Cases, growing, least_seconds, make_schedule


def random_trainings(n):
    rng = np.random.default_rng(0)
    for _ in range(n):
        cost = Cost(*rng.uniform(0, (0.1, 1e-5, 1e9, 3000, 1e-6)), n_processes=int(rng.integers(1, 5)))
        sizes = tuple(tuple(int(n) for n in rng.integers(20, 150, 3)) for _ in range(4))
        cases = Cases(sizes, n_train=int(rng.integers(1, 500)), n_val=int(rng.integers(0, 50)))
        multiple = (8, 8, 4)
        patch = tuple(int(k) * m for k, m in zip(rng.integers(2, 20, 3), multiple, strict=True))
        yield cost, cases, growing(patch, int(rng.integers(1, 3)), multiple)


def test_the_shortest_training_is_made_and_no_shorter_one():
    for cost, cases, stages in random_trainings(60):
        least_s = least_seconds(cost, stages, cases)
        assert make_schedule(cost, stages, cases, 1.001 * least_s) is not None
        assert make_schedule(cost, stages, cases, 0.999 * least_s) is None


def test_a_schedule_takes_no_more_than_the_time_and_every_stage_its_share():
    for cost, cases, stages in random_trainings(60):
        for times in (1.01, 2, 30):
            training_s = times * least_seconds(cost, stages, cases)
            schedule = make_schedule(cost, stages, cases, training_s)
            assert schedule.steps_s + schedule.validations_s <= training_s * (1 + 1e-9)
            step_s = [cost.step_s(stage.patch, stage.batch) for stage in stages]
            shares = [n * schedule.n_batches * s for n, s in zip(schedule.epochs_of, step_s, strict=True)]
            assert sum(shares) == pytest.approx(schedule.steps_s)
            assert schedule.steps_s >= 0.7 * (training_s - schedule.validations_s)
            assert times < 30 or schedule.steps_s + schedule.validations_s >= 0.96 * training_s
            assert min(n * schedule.n_batches for n in schedule.epochs_of) >= 30
            assert max(shares) <= 2 * min(shares)


def test_a_last_stage_that_gains_an_epoch_is_validated_within_the_time():
    cost = Cost(
        0.44320859510774785, 3.3261898318005124e-08, 1e6, 1e2, 1.0401275034524444e-08, 2, epoch_s=0.1, case_s=0.05
    )
    cases, training_s = Cases(((94, 94, 94),), n_train=104, n_val=26), 3327.4495611938637
    schedule = make_schedule(cost, growing((144, 48, 32), 2, (16, 16, 16)), cases, training_s)
    assert 0.96 * training_s <= schedule.steps_s + schedule.validations_s <= training_s


def test_what_passes_between_epochs_is_counted_and_kept_small():
    for bare, cases, stages in random_trainings(60):
        cost = replace(bare, epoch_s=0.2, case_s=0.05)
        for times in (1.01, 2, 30):
            training_s = times * least_seconds(cost, stages, cases)
            schedule = make_schedule(cost, stages, cases, training_s)
            assert schedule.steps_s + schedule.validations_s <= training_s * (1 + 1e-9)
            step_s = [cost.step_s(stage.patch, stage.batch) for stage in stages]
            steps_s = sum(n * schedule.n_batches * s for n, s in zip(schedule.epochs_of, step_s, strict=True))
            assert steps_s + 0.2 * schedule.n_epochs == pytest.approx(schedule.steps_s)
            assert min(schedule.epochs_of) >= LEAST_EPOCHS
            assert min(n * schedule.n_batches for n in schedule.epochs_of) >= 30
            fewest = LEAST_EPOCHS * len(stages)
            assert 0.2 * schedule.n_epochs <= max(0.1 * training_s, 0.2 * 2 * fewest)  # whole steps an epoch


def test_a_case_that_is_validated_takes_its_own_time_beside_that_of_its_voxels():
    cost = Cost(fixed_s=0.5, voxel_s=1e-3, fixed_bytes=100, voxel_bytes=2, validation_voxel_s=1e-4, n_processes=3)
    cases = Cases(((10, 10, 10), (20, 10, 10)), n_train=5, n_val=2)
    assert cases.validation_s(cost, (10, 10, 10)) == pytest.approx(0.2)  # one window, and three that overlap by half
    assert cases.validation_s(replace(cost, case_s=0.05), (10, 10, 10)) == pytest.approx(0.25)


def test_the_setting_makes_as_many_batches_as_were_planned():
    for cost, cases, stages in random_trainings(60):
        schedule = make_schedule(cost, stages, cases, 20 * least_seconds(cost, stages, cases))
        arguments = cases.n_train, schedule.patches_per_case, stages[-1].batch, cost.n_processes
        assert n_batches(*arguments) == schedule.n_batches
        assert len(str(schedule.patches_per_case)) <= 8


def test_patches_grow_while_batches_shrink_and_voxels_of_a_step_grow():
    for _, _, stages in random_trainings(60):
        voxels = [math.prod(stage.patch) for stage in stages]
        assert voxels == sorted(set(voxels))
        batches = [stage.batch for stage in stages]
        assert batches == sorted(batches, reverse=True)


def test_validation_takes_the_memory_that_its_window_holds():
    """The features that a sliding window keeps, at most, for the largest case."""
    cases, window, n_features = Cases(((12, 16, 20), (40, 24, 60)), 1, 1, n_channels=2), (16, 16, 16), 5
    image = torch.zeros(2, 40, 24, 60)
    sliding = SlidingWindow(lambda x: x[:, :1].expand(-1, n_features, -1, -1, -1), image, window, axis=2)
    most = 0
    for start in range(0, 60, 4):
        sliding.slices(start, start + 4)
        kept = [sliding._open] if sliding._open is not None else []
        most = max(most, sum(part.numel() for part in (*kept, *(part for _, part in sliding._ready))))
    found = cases.validation_bytes(window, n_features) - 12 * 40 * 24 * 60
    assert 4 * most <= found <= 2 * 4 * most
