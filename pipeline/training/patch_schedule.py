"""Patch and batch size of every epoch, as the learning rate a function of the epoch alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from pipeline.config.settings import DataConfig
from pipeline.planning.epochs import n_batches
from pipeline.planning.network_shape import Triple


@dataclass(frozen=True)
class PatchSchedule:
    """Patches that grow: small ones with larger batches first, then the patch that the network is used with.

    Progressive growing of patch size (Fischer et al. 2024, arXiv:2407.07853).
    """

    patch: Triple
    """Voxels (I, J, K) of the final patch."""
    batch_size: int
    """Patches in a batch of each process, of the final patch."""
    patches_per_case: float
    """Patches of the final batch size that an epoch draws, for each case."""
    growth: tuple[tuple[Triple, int, int], ...] = ()
    """Patch, batch size and epochs of each stage before."""

    @classmethod
    def from_settings(cls, data: DataConfig) -> PatchSchedule:
        """Take the settings; data.patch_growth has lists of voxels i, j, k, batch size and epochs."""
        stages = tuple(((i, j, k), batch, epochs) for i, j, k, batch, epochs in data.patch_growth)
        return cls(data.target_size, data.batch_size, data.patches_per_case, stages)

    def patch_of(self, epoch: int) -> Triple:
        """Voxels of the patches of an epoch, counted from 0."""
        return self._stage(epoch)[0]

    def batch_of(self, epoch: int) -> int:
        """Patches in a batch of each process in an epoch."""
        return self._stage(epoch)[1]

    def n_batches(self, n_cases: int, n_processes: int) -> int:
        """Batches of each process in every epoch."""
        return n_batches(n_cases, self.patches_per_case, self.batch_size, n_processes)

    @property
    def growth_epochs(self) -> tuple[int, ...]:
        """Epochs of each stage up to the last whose patch is smaller than the final one."""
        n_voxels = math.prod(self.patch)
        smaller = [n for n, (patch, _, _) in enumerate(self.growth, start=1) if math.prod(patch) < n_voxels]
        return tuple(epochs for _, _, epochs in self.growth[: max(smaller, default=0)])

    @property
    def n_growth_epochs(self) -> int:
        """Epochs before the first one whose patches have their final size."""
        return sum(self.growth_epochs)

    @property
    def largest_batch(self) -> tuple[Triple, int]:
        """Patch and batch size of the stage whose batches have the most voxels."""
        stages = [(patch, batch) for patch, batch, _ in self.growth]
        return max([*stages, (self.patch, self.batch_size)], key=lambda stage: math.prod(stage[0]) * stage[1])

    def mean_voxels(self, n_epochs: int) -> float:
        """Voxels in a batch of each process, mean over a training of so many epochs."""
        return fmean(math.prod(self.patch_of(epoch)) * self.batch_of(epoch) for epoch in range(n_epochs))

    def _stage(self, epoch: int) -> tuple[Triple, int]:
        for patch, batch, epochs in self.growth:
            if epoch < epochs:
                return patch, batch
            epoch -= epochs
        return self.patch, self.batch_size
