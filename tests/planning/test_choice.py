"""What is chosen is as large as memory and time allow, and what does not fit is refused with what would."""

import math
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
    with pytest.raises(ConfigError, match=r"--memory: expected 3\.2 GB at least") as error:
        choose(WHOLE_BODY, small, 10**6, Measured())
    assert "64 × 64 × 64 voxels" in str(error.value)
    assert patch(WHOLE_BODY, replace(small, memory_bytes=3.3 * 10**9), 10**6, Measured()) == (64, 64, 64)


def test_a_wider_network_is_taken_where_there_is_time_for_it_and_measured_again():
    measure = Measured()
    assert choose(HIPPOCAMPUS, MACHINE, 120, measure).base_channels == 16
    assert choose(HIPPOCAMPUS, MACHINE, 8 * 3600, measure).base_channels == 32
    assert [asked[3] for asked in measure.asked] == [16, 16, 32]


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
