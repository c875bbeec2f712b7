"""From settings to cached training and validation cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.cached_dataset import CachedDataset
from pipeline.checks.screening import screen
from pipeline.config.settings import Config
from pipeline.datasets.dataset import Case, Dataset, Split
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
        return len(self.dataset.classes.names)

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
        "label_values": list(dataset.classes.values),
        "ignore_value": dataset.classes.ignore_value,
        **({"label_remap": dict(dataset.classes.remap)} if dataset.classes.remap else {}),
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
        class_names = self.dataset_.classes.names
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
