"""Order the cases of an epoch and share them out among processes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int, bool]]):
    """Yield (epoch, case index, counted) in a new order every epoch, which the seed decides.

    The dataset draws its random numbers from the epoch. The n-th batches of all processes together hold what the n-th
    batch of a single process would, if its batches were as large as theirs together. All processes get equally many
    cases, since they wait for each other; where cases are missing, the first ones of the epoch are repeated with
    counted False.

    Args:
        n_cases: number of training cases.
        seed: decides the order.
        epoch: the first epoch, counted from 0.
        rank, world_size: this process among those that train together.
    """

    def __init__(self, n_cases: int, *, seed: int, epoch: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.n_cases = n_cases
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before every one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.n_cases / self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int, bool]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_cases)
        positions = range(self.rank, len(self) * self.world_size, self.world_size)
        for position in positions:
            yield self.epoch, int(order[position % self.n_cases]), position < self.n_cases


class ShareSampler(Sampler[list[int]]):
    """Yield this process's share of the validation cases as batches of one; every case occurs once over all processes.

    All processes get equally many batches, since they wait for each other; where cases are missing the last is empty.
    """

    def __init__(self, n_cases: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.n_cases = n_cases
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return math.ceil(self.n_cases / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.rank, len(self) * self.world_size, self.world_size):
            yield [index] if index < self.n_cases else []
