"""What is chosen is as large as memory and time allow, and what does not fit is refused with what would."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from pipeline.config.settings import ConfigError
from pipeline.planning.choice import choose, grid_of
from tests.support.plans import HIPPOCAMPUS, MACHINE, WHOLE_BODY, Measured
from transforms.resize import ResizeImaged


def patch(data, machine, budget_s, measure):
    return choose(data, machine, budget_s, measure).schedule.stages[-1].patch


def test_a_memory_that_holds_no_patch_is_refused_with_one_that_does():
    small = replace(MACHINE, memory_bytes=10**9)
    with pytest.raises(ConfigError, match=r"--memory: expected .* at least") as error:
        choose(WHOLE_BODY, small, 10**6, Measured())
    gigabytes = float(re.search(r"expected (.*?) GB", str(error.value))[1])
    assert patch(WHOLE_BODY, replace(small, memory_bytes=gigabytes * 1e9), 10**6, Measured())


def test_a_wider_network_is_taken_where_there_is_time_for_it_and_measured_again():
    measure = Measured()
    assert choose(HIPPOCAMPUS, MACHINE, 120, measure).base_channels == 16
    assert choose(HIPPOCAMPUS, MACHINE, 8 * 3600, measure).base_channels == 32
    assert [asked[3] for asked in measure.asked] == [16, 16, 32]


def test_what_is_chosen_is_what_was_measured_also_where_the_time_is_short():
    """Thick slices: at coarser voxels the network halves other axes, with other kernels."""
    sizes, spacings = ((512, 512, 40),) * 20, ((0.5, 0.5, 6.0),) * 20
    data = replace(WHOLE_BODY, sizes=sizes, spacings_mm=spacings, n_train=18, n_val=2)
    measure = Measured(voxel_s=5e-6)
    grid = choose(data, MACHINE, 120, measure).grid
    assert measure.asked[-1][1:3] == (grid.strides, grid.kernels)
    assert measure.asked[0][1:3] != measure.asked[-1][1:3]


@pytest.mark.parametrize("edge", [6, 8, 12, 20, 40, 64, 100, 150, 333])
def test_two_different_numbers_of_voxels_are_measured(edge):
    measure = Measured()
    choose(replace(WHOLE_BODY, sizes=((edge, edge, 2 * edge),) * 500), MACHINE, 3600, measure)
    voxels = [math.prod(patch) * batch for patch, batch in measure.asked[0][0]]
    assert voxels[0] < voxels[1] <= 2 * 64**3


def test_a_patch_that_the_time_does_not_train_is_shortened():
    large = replace(MACHINE, memory_bytes=10**12)
    short, long = (patch(WHOLE_BODY, large, seconds, Measured()) for seconds in (6000, 60000))
    assert math.prod(short) < math.prod(long)


def test_cases_have_the_sizes_that_preprocessing_gives_them():
    data = replace(HIPPOCAMPUS, sizes=((35, 51, 36), (70, 20, 11)), spacings_mm=((1.0, 1.0, 1.0), (0.5, 1.5, 4.0)))
    found = grid_of(data, (1.0, 1.2, 1.0)).cases.sizes
    resize = ResizeImaged("image", (9, 9, 9), spacing_mm=(1.0, 1.2, 1.0))
    for size, mm, expected in zip(data.sizes, data.spacings_mm, found, strict=True):
        image = MetaTensor(torch.zeros(1, *size), affine=np.diag([*mm, 1.0]))
        assert resize({"image": image})["image"].shape[1:] == expected


def test_where_the_time_is_short_voxels_are_coarser_until_it_holds_enough_steps():
    body = [choose(WHOLE_BODY, MACHINE, 60 * minutes, Measured()) for minutes in (2, 5, 15, 60, 240, 1200)]
    voxels_mm = [choice.grid.spacing_mm[0] for choice in body]
    assert voxels_mm == sorted(voxels_mm, reverse=True)
    assert voxels_mm[0] > 3 * voxels_mm[3] > voxels_mm[3] > voxels_mm[-1] == 1.5
    assert 2 < voxels_mm[3] < 3.5  # an hour of two cores; the documented 160×160×256 voxels are about 3 mm
    for choice in body:
        assert choice.schedule.n_steps >= 20 * 71
        assert choice.schedule.validations_s <= 0.1 * 0.95 * 60 * 1200
    for choice in body[:4]:
        most = min(math.prod(choice.grid.median), 96 * 128 * 192)  # as much as memory holds
        assert choice.schedule.n_voxels >= most / 4


@pytest.mark.parametrize("voxel_s", [8e-7, 1.6e-6])
def test_a_mouse_brain_in_five_minutes_grows_or_gets_coarser(voxel_s):
    """At the native size whole volumes took 135 steps and reached 0.08 IoU, at half the size 780 and 0.79."""
    mouse = replace(WHOLE_BODY, sizes=((112, 128, 80),) * 8, spacings_mm=((0.1,) * 3,) * 8, n_train=7, n_val=1)
    mouse = replace(mouse, class_names=tuple(map(str, range(37))))
    choice = choose(mouse, MACHINE, 330, Measured(voxel_s))
    assert choice.schedule.n_steps >= 740
    assert choice.schedule.n_voxels >= math.prod(choice.grid.median) / 4
    assert len(choice.schedule.stages) == 4 or choice.grid.times_coarser > 1


def test_a_small_case_keeps_its_resolution_in_two_minutes():
    choice = choose(HIPPOCAMPUS, MACHINE, 120, Measured(voxel_s=1.6e-6))
    assert choice.grid.spacing_mm == (1, 1, 1)
    assert choice.schedule.stages[-1].patch == (40, 56, 40)


def test_thick_slices_are_left_alone_while_the_others_are_twice_as_fine():
    knees = replace(WHOLE_BODY, sizes=((512, 512, 40),) * 100, spacings_mm=((0.3, 0.3, 4.0),) * 100)
    for minutes in (3, 5, 15):
        x, y, z = choose(knees, MACHINE, 60 * minutes, Measured()).grid.spacing_mm
        assert x == y > 0.3
        assert z == 4


def test_a_network_of_other_strides_is_measured_itself():
    measure = Measured()
    choose(WHOLE_BODY, MACHINE, 120, measure)
    asked = [strides for _, strides, _, _ in measure.asked]
    assert len(asked) == len(set(asked)) == 2


def test_a_wider_network_does_not_cost_a_patch_of_many_voxels():
    small, large = (
        choose(WHOLE_BODY, replace(MACHINE, memory_bytes=gigabytes * 10**9), 10**8, Measured(by_channels=True))
        for gigabytes in (8, 100)
    )
    assert small.base_channels == 16
    assert large.base_channels == 32
    assert large.schedule.n_voxels > small.schedule.n_voxels
