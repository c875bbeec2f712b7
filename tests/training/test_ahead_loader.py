"""Batches that are prepared ahead are the loader's own, in its order."""

from __future__ import annotations

import multiprocessing
from contextlib import nullcontext

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from pipeline.training.ahead_loader import AheadLoader
from pipeline.training.samplers import PatchSampler
from tests.support.tiny_module import QUIET, batches, module, trainer


def loader_of(n):
    return DataLoader(list(range(n)), batch_size=2, sampler=SequentialSampler(range(n)))


@pytest.mark.parametrize("fetched_after", [(), (0, 1, 2, 3), (1,), (0, 0, 3)])
def test_batches_and_order_are_the_loaders_whenever_they_are_fetched(fetched_after):
    prepared = []
    ahead = AheadLoader(loader_of(7), lambda batch: prepared.append(batch.tolist()) or batch)
    assert len(ahead) == 4
    for _ in range(2):
        prepared.clear()
        found = []
        for n, batch in enumerate(ahead):
            found.append(batch.tolist())
            for _ in range(fetched_after.count(n)):
                ahead.fetch()
        assert found == prepared == [[0, 1], [2, 3], [4, 5], [6]]


def test_fetching_prepares_one_batch_ahead():
    prepared = []
    ahead = AheadLoader(loader_of(6), lambda batch: prepared.append(batch.tolist()) or batch)
    batches = iter(ahead)
    next(batches)
    assert prepared == [[0, 1]]
    ahead.fetch()
    assert prepared == [[0, 1], [2, 3]]


def test_an_epoch_that_was_broken_off_leaves_no_batch_to_the_next():
    ahead = AheadLoader(loader_of(6), lambda batch: batch)
    next(iter(ahead))
    ahead.fetch()
    assert [batch.tolist() for batch in ahead] == [[0, 1], [2, 3], [4, 5]]


class _Told(RandomSampler):
    epochs: list[int]

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


@pytest.mark.filterwarnings(*[mark.args[0] for mark in QUIET])
def test_a_training_fetches_each_next_batch_and_tells_the_sampler_its_epochs(tmp_path):
    cases = [{**batch, "case": batch["case"][0]} for batch in batches(4)]
    sampler = _Told(cases, generator=torch.Generator())
    sampler.epochs = []
    seen = []
    loader = DataLoader(cases, batch_size=None, sampler=sampler)
    ahead = AheadLoader(loader, lambda batch: seen.append(batch["case"]) or batch | {"case": [batch["case"]]})
    fit = trainer(tmp_path)
    fit.fit_loop.max_epochs = 2
    learned = module()
    calls = []
    fetch = ahead.fetch

    def counted():
        calls.append(len(seen))
        fetch()

    ahead.fetch = counted
    fit.fit(learned, ahead)
    assert sampler.epochs == [0, 1]
    assert sorted(seen) == sorted(2 * [case["case"] for case in cases])
    assert len(calls) == 2 * (4 + 4)  # after each backward pass, and when Lightning asks for a batch


@pytest.mark.filterwarnings(*[mark.args[0] for mark in QUIET])
@pytest.mark.parametrize("ahead", [False, True])
def test_lightning_tells_the_sampler_of_patches_each_epoch(ahead, tmp_path):
    """Else every epoch of a training, on a GPU or a CPU, would have the patches of the first one."""
    (case,), seen = batches(1), []
    patches = PatchSampler(1, 2, lambda epoch: epoch + 1, seed=0)
    cases = {(epoch, 0, n): (epoch, n) for epoch in range(3) for n in range(6)}
    loader = DataLoader(cases, batch_sampler=patches, collate_fn=lambda drawn: seen.append(drawn) or case)
    fit = trainer(tmp_path, use_distributed_sampler=False)
    fit.fit_loop.max_epochs = 3
    fit.fit(module(), AheadLoader(loader, lambda batch: batch) if ahead else loader)
    assert seen == [
        [(0, 0)],
        [(0, 1)],
        [(1, 0), (1, 1)],
        [(1, 2), (1, 3)],
        *([(2, n + i) for i in range(3)] for n in (0, 3)),
    ]


@pytest.mark.filterwarnings(*[mark.args[0] for mark in QUIET])
@pytest.mark.parametrize("fails", [False, True])
def test_workers_stay_for_all_epochs_and_end_with_the_training(fails, tmp_path):
    cases = [{**batch, "case": batch["case"][0]} for batch in batches(4)]
    loader = DataLoader(cases, batch_size=None, num_workers=2, persistent_workers=True)
    workers = []

    def prepare(batch):
        workers.append([worker.pid for worker in multiprocessing.active_children()])
        if fails and len(workers) == 6:
            raise RuntimeError("a batch that cannot be prepared")
        return batch | {"case": [batch["case"]]}

    fit = trainer(tmp_path)
    fit.fit_loop.max_epochs = 2
    with pytest.raises(RuntimeError, match="cannot be prepared") if fails else nullcontext():
        fit.fit(module(), AheadLoader(loader, prepare))
    assert len(workers) >= 6
    assert all(each == workers[0] for each in workers)
    assert len(workers[0]) == 2
    assert not multiprocessing.active_children()
