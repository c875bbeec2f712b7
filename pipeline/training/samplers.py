"""Order the cases of an epoch and share them out among processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(eq=False)
class EpochSampler(Sampler[tuple[int, int, bool]]):
    """Yield (epoch, case index, counted) in a new order every epoch, which the seed decides.

    The dataset draws its random numbers from the epoch. The n-th batches of all processes together hold what the n-th
    batch of a single process would, if its batches were as large as theirs together. All processes get equally many
    cases, since they wait for each other; where cases are missing, the first ones of the epoch are repeated with
    counted False.
    """

    n_cases: int
    """Number of training cases."""
    _: KW_ONLY
    seed: int
    """Decides the order."""
    epoch: int = 0
    """The first epoch, counted from 0, then the present one."""
    rank: int = 0
    """This process among those that train together."""
    world_size: int = 1
    """Number of processes."""

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


@dataclass(eq=False)
class ShareSampler(Sampler[list[int]]):
    """Yield this process's share of the validation cases as batches of one; every case occurs once over all processes.

    All processes get equally many batches, since they wait for each other; where cases are missing the last is empty.
    """

    n_cases: int
    """Number of validation cases."""
    _: KW_ONLY
    rank: int = 0
    """As in `EpochSampler`."""
    world_size: int = 1
    """As in `EpochSampler`."""

    def __len__(self) -> int:
        return math.ceil(self.n_cases / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.rank, len(self) * self.world_size, self.world_size):
            yield [index] if index < self.n_cases else []


@dataclass(eq=False)
class PatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Yield batches of (epoch, case index, n): the n-th patch of a case in that epoch.

    Every epoch has the same number of batches; how many patches are in one may differ from epoch to epoch. The cases
    take turns in an order that the seed decides, so that their numbers of patches differ by one at most. The n-th
    batches of all processes together hold what the n-th batch of a single process would, as in `EpochSampler`.
    """

    n_cases: int
    """Number of training cases."""
    n_batches: int
    """Batches of each process in an epoch."""
    batch_of: Callable[[int], int]
    """Patches in a batch of one process, by epoch."""
    _: KW_ONLY
    seed: int
    """Decides the order."""
    epoch: int = 0
    """As in `EpochSampler`; so are the others."""
    rank: int = 0
    world_size: int = 1

    @property
    def sampler(self) -> PatchSampler:
        """Itself: Lightning tells the epoch to the sampler of a loader's batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before every one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        size = self.batch_of(self.epoch)
        random = np.random.default_rng([self.seed, self.epoch])
        rounds = math.ceil(self.n_batches * size * self.world_size / self.n_cases)
        order = np.concatenate([random.permutation(self.n_cases) for _ in range(rounds)])
        mine = range(self.rank, self.n_batches * size * self.world_size, self.world_size)
        patches = [(self.epoch, int(order[position]), position // self.n_cases) for position in mine]
        for start in range(0, len(patches), size):
            yield patches[start : start + size]
