"""Batches for Lightning from the prepared cases.

What is random follows from (seed, epoch, case) alone, so that batches are the same with any number of workers and after
a resume.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from monai.data import DataLoader, list_data_collate
from torch import Generator
from torch.utils.data import Dataset as TorchDataset

from pipeline.cache.cached_dataset import CachedDataset
from pipeline.training.ahead_loader import AheadLoader
from pipeline.training.data_workers import DataWorkers
from pipeline.training.prepared_data import PreparedData
from pipeline.training.samplers import EpochSampler, PatchSampler, ShareSampler

ALONE = DataWorkers(0)
"""Batches are prepared in the training process."""


class _TrainingCases(TorchDataset):
    """The training cases under the indices of `EpochSampler`: an augmented case, with "counted" in its dictionary."""

    def __init__(self, cases: CachedDataset) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: tuple[int, int, bool]) -> dict[str, Any]:
        epoch, case_index, counted = index
        return self.cases[epoch, case_index] | {"counted": counted}


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    if not items:
        return {"case": []}
    # Left as lists: whether a case counts, and which classes it annotates, must be known without asking the GPU.
    kept = {key: [item.pop(key) for item in items if key in item] for key in ("draw", "counted", "annotated")}
    return list_data_collate(items) | {key: values for key, values in kept.items() if values}


class BodyData(pl.LightningDataModule):
    """Batches of {"image" (B, C, I, J, K) float32, "label" (B, 1, I, J, K) integer, "case" list of ids}.

    Training batches also have "counted", a list of bools: False for a repeated case that only fills up a process's
    last batch. A validation batch is one case, or {"case": []} where a process has none left. Where cases annotate a
    part of the classes, "annotated" lists, for each, the indices of these classes.

    Args:
        prepared: training and validation cases.
        batch_size: cases in a training batch of this process.
        workers: processes that prepare batches.
        seed: decides the order of the cases.
        epoch: the first epoch, counted from 0.
    """

    def __init__(
        self,
        prepared: PreparedData,
        *,
        batch_size: int,
        seed: int,
        workers: DataWorkers = ALONE,
        epoch: int = 0,
    ) -> None:
        super().__init__()
        self.prepared = prepared
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.epoch = epoch

    def train_dataloader(self) -> DataLoader | AheadLoader:
        """Load every training case once an epoch, or the epoch's patches of them."""
        loader = self._training_loader()
        return AheadLoader(loader, self._prepare) if self.is_on_gpu else loader

    def _training_loader(self) -> DataLoader:
        rank, world_size = self._rank()
        cases = self.prepared.train
        patches = self.prepared.patches
        if patches is not None:
            drawn = PatchSampler(
                len(cases),
                patches.n_batches(len(cases), world_size),
                patches.batch_of,
                seed=self.seed,
                epoch=self.epoch,
                rank=rank,
                world_size=world_size,
            )
            return self._loader(cases, batch_sampler=drawn)
        sampler = EpochSampler(len(cases), seed=self.seed, epoch=self.epoch, rank=rank, world_size=world_size)
        return self._loader(_TrainingCases(cases), batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        """Load every validation case once over all processes, one at a time: batches would only cost memory."""
        rank, world_size = self._rank()
        cases = self.prepared.val
        return self._loader(cases, batch_sampler=ShareSampler(len(cases), rank=rank, world_size=world_size))

    def _prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the GPU and augment it there."""
        assert self.trainer is not None
        return self.on_after_batch_transfer(
            self.transfer_batch_to_device(batch, self.trainer.strategy.root_device, 0), 0
        )

    @property
    def is_on_gpu(self) -> bool:
        """Whether a GPU trains."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Augment on the device what the workers only drew the parameters for (data.augment_on_device)."""
        if "draw" not in batch:
            return batch
        (augment,) = self.prepared.train.transform.transforms
        return augment.apply_to_batch(batch)

    def _loader(self, dataset: TorchDataset, **sampling: Any) -> DataLoader:
        number = min(self.workers.number, len(dataset))  # type: ignore[arg-type]
        return DataLoader(
            dataset,
            **sampling,
            collate_fn=_collate,
            num_workers=number,
            persistent_workers=number > 0,
            prefetch_factor=self.workers.prefetched if number else None,
            pin_memory=self.is_on_gpu,
            generator=Generator(),  # else each epoch draws from the network's, but not with workers
        )

    def _rank(self) -> tuple[int, int]:
        """Return this process's rank and the number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
