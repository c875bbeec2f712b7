"""From settings to batches: cases, chains and cache joined into a LightningDataModule.

Unpacks the config once: below this room everything takes plain arguments. What is random follows from
(seed, epoch, case) alone, so that batches are the same with any number of workers and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from monai.data import DataLoader, list_data_collate
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from pipeline.cache import CachedDataset
from pipeline.config import Config
from pipeline.dataset import Case, Dataset, Split
from pipeline.screening import screen
from transforms.chains import augmentation_chain, preprocessing_chain


@dataclass(frozen=True)
class PreparedData:
    """What a training knows about its data before the first batch."""

    dataset: Dataset
    split: Split
    preprocessing: dict[str, Any]
    """Arguments of transforms.chains.preprocessing_chain; they travel with the checkpoint."""
    intensity_found: dict[str, str]
    skipped: Mapping[str, str]
    """Cases left out for their errors (data.skip_bad_cases), and what is wrong with each."""
    n_warnings: int
    """Warnings that a check of the data gives."""
    train: CachedDataset
    val: CachedDataset

    @property
    def n_classes(self) -> int:
        """Number of classes with the background."""
        return len(self.dataset.class_names)

    @property
    def in_channels(self) -> int:
        """Number of image channels."""
        return len(self.dataset.channel_names)

    def class_voxels(self) -> np.ndarray:
        """Voxels per training case and class at the target size: (n_cases, n_classes) int64."""
        return np.stack([self.train.class_voxels(index) for index in range(len(self.train))])


def prepare_data(
    config: Config,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    skipped_before: Mapping[str, str] | None = None,
) -> PreparedData:
    """Look at every case, decide what the data leave open, divide by subject, and preprocess what trains or validates.

    Args:
        config: the settings.
        progress: called with (what, done, total) while cases are looked at and preprocessed.
        skipped_before: what a resumed run left out when it began, see `screening.screen`.

    Raises:
        DatasetError: the folder is no data set, contradicts the settings, has bad cases, or leaves no validation case.
        CacheError, VolumeError: a case cannot be prepared.
    """
    screened = screen(config, progress, skipped_before=skipped_before)
    dataset, split, data = screened.dataset, screened.split, config.data
    assert split is not None  # a data set that cannot be divided was refused
    preprocessing = {
        "target_size": list(data.target_size),
        "intensity": screened.intensity["intensity"],
        "window": list(data.window),
        "percentiles": list(data.percentiles),
        "keep_aspect": data.keep_aspect,
        "label_values": list(dataset.label_values),
        "ignore_value": dataset.ignore_value,
        **({"label_remap": dict(dataset.label_remap)} if dataset.label_remap else {}),
    }
    cached = _Cached(config, dataset, preprocessing, progress)
    by_id = {case.id: case for case in dataset.cases}
    return PreparedData(
        dataset=replace(dataset, split=split),
        split=split,
        preprocessing=preprocessing,
        intensity_found=screened.intensity,
        skipped=screened.skipped,
        n_warnings=len(screened.findings),
        train=cached.dataset([by_id[i] for i in split.train], augment=data.data_aug),
        val=cached.dataset([by_id[i] for i in split.val], augment=False),
    )


@dataclass(frozen=True)
class _Cached:
    """The part of the way that training and validation cases share."""

    config: Config
    dataset_: Dataset
    preprocessing: dict[str, Any]
    progress: Callable[[str, int, int], None] | None

    def dataset(self, cases: Sequence[Case], *, augment: bool) -> CachedDataset:
        """Preprocess `cases` into the cache and give them as a MONAI dataset."""
        data = self.config.data
        class_names = self.dataset_.class_names
        random_part = None
        if augment:
            random_part = augmentation_chain(
                data.target_size,
                class_names=class_names,
                flips=data.flips,
                later=data.augment_on_device,
                **(data.augmentation or {}),
            )
        built = CachedDataset(
            [_item(case) for case in cases],
            preprocessing_chain(**self.preprocessing),
            folder=Path(data.cache_dir),
            key=self.preprocessing,
            n_classes=len(class_names),
            transform=random_part,
            seed=self.config.training.seed,
            max_bytes=int(data.cache_limit_gb * 2**30) or None,
        )
        built.build(progress=self.progress)
        return built


def _item(case: Case) -> dict[str, Any]:
    label: Any = case.label
    if label is not None and not isinstance(label, Path):
        label = [(index, str(path)) for index, path in label]
    return {
        "image": [str(path) for path in case.image],
        "label": str(label) if isinstance(label, Path) else label,
        "case": case.id,
    }


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
