"""Which cases a process gets, and in which order."""

from __future__ import annotations

from pipeline.training.samplers import EpochSampler, PatchSampler, ShareSampler


def test_every_case_counts_once_an_epoch_over_all_processes():
    for world in (1, 2, 3):
        trained = [list(EpochSampler(7, seed=3, epoch=5, rank=r, world_size=world)) for r in range(world)]
        assert len({len(part) for part in trained}) == 1
        assert sorted(index for part in trained for _, index, counted in part if counted) == list(range(7))
        assert {epoch for part in trained for epoch, *_ in part} == {5}
        validated = [list(ShareSampler(7, rank=r, world_size=world)) for r in range(world)]
        assert len({len(part) for part in validated}) == 1
        assert sorted(index for part in validated for batch in part for index in batch) == list(range(7))
    assert list(EpochSampler(50, seed=3, epoch=0)) != list(EpochSampler(50, seed=3, epoch=1))


def test_the_batches_of_two_processes_are_together_those_of_one():
    def batches(size, rank=0, world_size=1):
        sampler = EpochSampler(7, seed=3, epoch=5, rank=rank, world_size=world_size)
        indices = [index for _, index, counted in sampler if counted]
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    alone, first, second = batches(4), batches(2, 0, 2), batches(2, 1, 2)
    assert [sorted(batch) for batch in alone] == [sorted(a + b) for a, b in zip(first, second, strict=True)]


def test_the_order_follows_from_seed_and_epoch_alone():
    sampler = EpochSampler(9, seed=3, epoch=0)
    first = list(sampler)
    sampler.set_epoch(4)
    later = list(sampler)
    assert later == list(EpochSampler(9, seed=3, epoch=4))
    assert [index for _, index, _ in later] != [index for _, index, _ in first]
    assert later != list(EpochSampler(9, seed=4, epoch=4))
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_validation_cases_come_one_at_a_time_and_a_process_without_one_gets_an_empty_batch():
    assert [list(ShareSampler(3, rank=rank, world_size=2)) for rank in range(2)] == [[[0], [2]], [[1], []]]
    assert [len(ShareSampler(3, rank=rank, world_size=2)) for rank in range(2)] == [2, 2]


def test_cases_take_turns_in_giving_patches_and_every_patch_has_a_number_of_its_own():
    patches = [patch for batch in PatchSampler(7, 10, lambda epoch: 3, seed=1) for patch in batch]
    assert len(patches) == 30
    assert len(set(patches)) == 30
    counts = [sum(case == index for _, case, _ in patches) for index in range(7)]
    assert set(counts) == {4, 5}
    assert {n for _, _, n in patches} == set(range(5))


def test_the_batch_may_differ_from_epoch_to_epoch_and_the_number_of_batches_does_not():
    sampler = PatchSampler(7, 10, lambda epoch: 8 if epoch < 2 else 2, seed=1)
    for epoch, size in ((1, 8), (2, 2)):
        sampler.set_epoch(epoch)
        assert [len(batch) for batch in sampler] == [size] * 10
        assert len(sampler) == 10


def test_the_patches_of_two_processes_are_together_those_of_one():
    alone = list(PatchSampler(7, 5, lambda epoch: 4, seed=3, epoch=6))
    parts = [list(PatchSampler(7, 5, lambda epoch: 2, seed=3, epoch=6, rank=rank, world_size=2)) for rank in range(2)]
    assert [sorted(batch) for batch in alone] == [sorted(a + b) for a, b in zip(*parts, strict=True)]


def test_the_patches_of_an_epoch_follow_from_seed_and_epoch_alone():
    first = list(PatchSampler(7, 5, lambda epoch: 4, seed=3, epoch=6))
    assert first == list(PatchSampler(7, 5, lambda epoch: 4, seed=3, epoch=6))
    assert first != list(PatchSampler(7, 5, lambda epoch: 4, seed=4, epoch=6))
    assert [[c for _, c, _ in b] for b in first] != [
        [c for _, c, _ in b] for b in PatchSampler(7, 5, lambda epoch: 4, seed=3, epoch=7)
    ]
