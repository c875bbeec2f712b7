"""From settings to batches: cases, chains and cache joined into a LightningDataModule.

Unpacks the config once: below this room everything takes plain arguments. What is random follows from
(seed, epoch, case) alone, so that batches are the same with any number of workers and after a resume.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from monai.data import DataLoader, list_data_collate
from torch.utils.data import Dataset as TorchDataset

from pipeline.cache.cached_dataset import CachedDataset
from pipeline.training.prepared_data import PreparedData
from pipeline.training.samplers import EpochSampler, ShareSampler


class _TrainingCases(TorchDataset):
    """What `EpochSampler` asks for: an augmented case, and under "counted" whether it counts."""

    def __init__(self, cases: CachedDataset) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, place: tuple[int, int, bool]) -> dict[str, Any]:
        epoch, index, counted = place
        return self.cases[epoch, index] | {"counted": counted}


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    if not items:
        return {"case": []}
    drawn = [item.pop("draw") for item in items if "draw" in item]
    return list_data_collate(items) | ({"draw": drawn} if drawn else {})


class BodyData(pl.LightningDataModule):
    """Batches of {"image" (B, C, I, J, K) float32, "label" (B, 1, I, J, K) integer, "case" list of ids}.

    Training batches have "counted" (B,) too, which is False for a case that only fills a process's last batch up. A
    validation batch is one case, or {"case": []} where a process has none left.
    """

    def __init__(self, prepared: PreparedData, *, batch_size: int, num_workers: int, seed: int, epoch: int = 0) -> None:
        super().__init__()
        self.prepared = prepared
        self.batch_size, self.num_workers, self.seed, self.epoch = batch_size, num_workers, seed, epoch

    def train_dataloader(self) -> DataLoader:
        """All training cases once an epoch."""
        rank, world_size = self._place()
        cases = self.prepared.train
        sampler = EpochSampler(len(cases), seed=self.seed, epoch=self.epoch, rank=rank, world_size=world_size)
        return self._loader(_TrainingCases(cases), batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        """All validation cases once, over all processes.

        A validation volume is one case of the mean whatever the batch, so one at a time costs the least memory.
        """
        rank, world_size = self._place()
        cases = self.prepared.val
        return self._loader(cases, batch_sampler=ShareSampler(len(cases), rank=rank, world_size=world_size))

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Augment here what was only drawn in the workers (data.augment_on_device)."""
        if "draw" not in batch:
            return batch
        (augment,) = self.prepared.train.transform.transforms
        return augment.apply_to_batch(batch)

    def _loader(self, dataset: TorchDataset, **which: Any) -> DataLoader:
        return DataLoader(
            dataset,
            **which,
            collate_fn=_collate,
            num_workers=min(self.num_workers, len(dataset)),  # type: ignore[arg-type]
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
