"""Order the cases of an epoch and divide them among processes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int, bool]]):
    """Give (epoch, case index, counted): a new order in every epoch, decided by the seed, shared out over processes.

    The epoch tells the dataset which random numbers are to be drawn. The n-th batches of all processes hold together
    what the n-th batch of one process would, whose batches are as large as theirs together. Every process gets equally
    many cases, since they wait for each other; the first few stand in for the missing ones, and are not counted.
    """

    def __init__(self, n_cases: int, *, seed: int, epoch: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.n_cases, self.seed, self.epoch = n_cases, seed, epoch
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.n_cases / self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int, bool]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_cases)
        places = range(self.rank, len(self) * self.world_size, self.world_size)
        return iter([(self.epoch, int(order[place % self.n_cases]), place < self.n_cases) for place in places])


class ShareSampler(Sampler[list[int]]):
    """Give each process its share of the validation cases, one a batch, every case once in all.

    Every process gets equally many batches, since they wait for each other; where cases are missing the last is empty.
    """

    def __init__(self, n_cases: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.n_cases, self.rank, self.world_size = n_cases, rank, world_size

    def __len__(self) -> int:
        return math.ceil(self.n_cases / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        places = range(self.rank, len(self) * self.world_size, self.world_size)
        return iter([[place] if place < self.n_cases else [] for place in places])
