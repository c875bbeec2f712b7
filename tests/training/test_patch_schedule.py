"""Patch and batch size as functions of the epoch."""

import pytest

from pipeline.config.settings import DataConfig
from pipeline.training.patch_schedule import PatchSchedule


def growing(*growth, batch_size=2):
    sizes = {"spacing_mm": (1.0, 1.0, 1.0), "target_size": (40, 56, 40), "batch_size": batch_size}
    return PatchSchedule.from_settings(DataConfig("scans", mode="patch", patch_growth=growth, **sizes))


GROWING = growing([16, 24, 16, 8, 3], [24, 32, 24, 4, 2])


def test_stages_follow_each_other_and_the_final_patch_has_the_rest():
    patches = [GROWING.patch_of(epoch) for epoch in range(7)]
    assert patches == [(16, 24, 16)] * 3 + [(24, 32, 24)] * 2 + [(40, 56, 40)] * 2
    assert [GROWING.batch_of(epoch) for epoch in range(7)] == [8, 8, 8, 4, 4, 2, 2]


def test_the_largest_batch_may_be_that_of_an_early_stage():
    assert GROWING.largest_batch == ((40, 56, 40), 2)  # 179,200 voxels, before 49,152 and 73,728
    early = growing([32, 32, 32, 8, 3], [24, 32, 24, 4, 2], batch_size=1)
    assert early.largest_batch == ((32, 32, 32), 8)  # 262,144 voxels


def test_stages_with_the_final_patch_are_no_growth_but_before_smaller_ones():
    assert GROWING.growth_epochs == (3, 2)
    stages = [[40, 56, 40, 4, 5], [16, 24, 16, 8, 3], [40, 56, 40, 4, 2]]
    assert growing(*stages).growth_epochs == (5, 3)
    assert growing([40, 56, 40, 4, 15]).growth_epochs == ()


def test_without_growth_every_epoch_is_alike():
    schedule = PatchSchedule((16, 16, 16), 3, 2.0)
    assert {(schedule.patch_of(epoch), schedule.batch_of(epoch)) for epoch in range(5)} == {((16, 16, 16), 3)}


@pytest.mark.parametrize(
    ("patches_per_case", "n_cases", "n_processes", "expected"),
    [(1, 10, 1, 5), (1, 11, 2, 3), (3, 10, 1, 15), (0.01, 10, 1, 1)],
)
def test_an_epoch_has_as_many_batches_as_the_final_batch_size_asks_for(
    patches_per_case, n_cases, n_processes, expected
):
    assert PatchSchedule((8, 8, 8), 2, patches_per_case).n_batches(n_cases, n_processes) == expected
