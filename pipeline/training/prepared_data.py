"""Check, split and preprocess the data set of the settings into cached training and validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.build import build_entries
from pipeline.cache.cached_dataset import CachedDataset
from pipeline.cache.key import SourceIndex
from pipeline.checks.findings import Finding
from pipeline.checks.modality import IntensityChoice
from pipeline.checks.screening import Listed, Screened, screen
from pipeline.config.settings import Config, DataConfig
from pipeline.console.progress import Progress
from pipeline.console.text import BYTES_PER_GB
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import Case, Dataset, Folds, Split
from pipeline.files.json_files import plain
from pipeline.planning.fingerprint import Fingerprint, take_fingerprint
from pipeline.planning.scan_range import ScanRange, scan_range
from pipeline.runs.setting_differences import who_augmented
from pipeline.training.patch_schedule import PatchSchedule
from transforms.chains import Chain, augmentation_chain, preprocessing_chain
from transforms.io.label_values import ignore_index
from transforms.io.load import Frames, ValuedLabel
from transforms.patches import RandomPatchd


@dataclass(frozen=True)
class Preprocessing:
    """Arguments of `transforms.chains.preprocessing_chain`: they key the cache, and checkpoints store them."""

    target_size: tuple[int, int, int]
    """Voxels (I, J, K) of a prepared volume."""
    intensity: str | tuple[str, ...]
    """How intensities are scaled, see `transforms.intensity.INTENSITIES`."""
    window: tuple[float, float]
    """CT window in HU."""
    percentiles: tuple[float, float]
    """Percentiles that "mr" maps to the ends of the range."""
    keep_aspect: bool
    """Pad instead of stretching."""
    label_values: tuple[int, ...]
    """Value of each class in the label files."""
    ignore_value: int | None = None
    """Value of voxels that are ignored."""
    label_remap: Mapping[int, int] | None = None
    """Class index of further values of the label files."""
    scaling: str = "centred"
    """The range of intensities, see `transforms.intensity.SCALINGS`."""
    fill_nan: float | list[float] | None = None
    """What NaN voxels of the image become, or of each channel; None: they are refused."""
    mean_std: tuple[float, float] | None = None
    """Mean and deviation in HU that become 0 and 1 in CT; None: the window becomes the range."""
    spacing_mm: tuple[float, ...] = ()
    """Spacing that volumes are resampled to instead of target_size, which is then the patch; empty: none."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as plain lists and numbers, without those that change nothing."""
        return {
            key: value for key, value in plain(self).items() if key == "ignore_value" or value not in (None, [], {})
        }

    def cache_key(self) -> dict[str, Any]:
        """Return what decides how a prepared volume looks; with a spacing, the size of the patch does not."""
        return {name: value for name, value in self.arguments().items() if not self.spacing_mm or name != "target_size"}


@dataclass(frozen=True)
class PreparedData:
    """What a training knows about its data before the first batch."""

    dataset: Dataset
    """The data set with the split that is used, without skipped cases."""
    split: Split
    """Case ids of train, val and test."""
    folds: Folds | None
    """The folds that `split` is one of; None where there is one split."""
    preprocessing: Preprocessing
    """How cases are prepared."""
    intensity: IntensityChoice
    """How the intensities of each channel are scaled, and why."""
    skipped: Mapping[str, str]
    """Cases left out for their errors (data.skip_bad_cases), and what is wrong with each."""
    findings: tuple[Finding, ...]
    """The warnings that `bodyseg check` has for the data."""
    fingerprint: Fingerprint
    """The data in numbers."""
    scans: ScanRange | None
    """Sizes, spacings and intensities of the training cases; None where none could be measured."""
    native_holders: tuple[int, ...]
    """How many of the training and validation cases hold each class in their label files."""
    patches: PatchSchedule | None
    """Sizes of patches and batches by epoch; None where whole volumes are trained on."""
    augmented_on_device: bool | None
    """Whether training cases are augmented on the device that trains; None where they are not augmented."""
    train: CachedDataset
    """Training cases, augmented if the settings say so; in patch mode, patches of them."""
    val: CachedDataset
    """Validation cases; there may be none."""

    @property
    def n_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.dataset.classes.names)

    @property
    def in_channels(self) -> int:
        """Number of image channels."""
        return len(self.dataset.channel_names)

    @cached_property
    def class_voxels(self) -> np.ndarray:
        """Voxels per training case and class at the target size: (n_cases, n_classes) int64."""
        return _class_voxels(self.train)

    def contents(self) -> dict[str, str]:
        """Identify what the image and label files of every training and validation case hold, by case id; and, where
        that is not all, which classes the label annotates."""
        stores = (self.train.store, self.val.store)
        files = {s.case(i): s.path(i).stem.partition("-")[2] for s in stores for i in range(len(s))}
        partly = {case.id: case.annotated for case in self.dataset.cases if case.annotated is not None}
        return {
            case: f"{content} annotates {','.join(map(str, partly[case]))}" if case in partly else content
            for case, content in files.items()
        }

    def lost_classes(self) -> dict[str, int]:
        """Classes that are left in no training or validation case at the target size, and how many cases had them."""
        left = np.concatenate([self.class_voxels, self.val_class_voxels]).sum(axis=0)
        holders = zip(self.dataset.classes.names, self.native_holders, left, strict=True)
        return {name: n_cases for name, n_cases, n_voxels in holders if n_cases and not n_voxels}

    @cached_property
    def val_class_voxels(self) -> np.ndarray:
        """Voxels per validation case and class at the target size: (n_cases, n_classes) int64."""
        return _class_voxels(self.val)


def _class_voxels(cases: CachedDataset) -> np.ndarray:
    counts = [cases.class_voxels(index) for index in range(len(cases))]
    return np.array(counts, np.int64).reshape(len(cases), cases.store.n_classes)


def say_who_augments(data: DataConfig, *, on_gpu: bool, before: Mapping[str, Any] | None = None) -> DataConfig:
    """Fill in data.augment_on_device where it is left open: the GPU, where one trains on whole volumes.

    before: the data group of the training_config.json of the run that is resumed, which keeps who augments.
    """
    if data.augment_on_device is not None or not data.data_aug:
        return data
    kept = who_augmented(before) if before is not None else None
    return replace(data, augment_on_device=on_gpu and data.mode != "patch" if kept is None else kept)


def prepare_data(
    config: Config,
    progress: Progress | None = None,
    *,
    listed: Listed | None = None,
    skipped_before: Mapping[str, str] | None = None,
    kept: IntensityChoice | None = None,
    scaling: str = "centred",
) -> PreparedData:
    """Check every case, split by subject, and preprocess training and validation cases into the cache.

    Args:
        config: the settings.
        progress: called while cases are checked and preprocessed.
        listed: the data set where it has been listed, see `screening.screen`.
        skipped_before: the cases that a resumed run left out when it began, see `screening.screen`.
        kept: how a resumed run scales intensities, see `screening.assess`.
        scaling: the range of intensities; a resumed run keeps the one that it began with.

    Raises:
        DatasetError: the folder is not a data set, contradicts the settings, has bad cases, or cannot be divided.
        CacheError, VolumeError: a case cannot be prepared.
    """
    sources = SourceIndex(Path(config.data.cache_dir))
    screened = screen(config, progress, listed=listed, skipped_before=skipped_before, kept=kept, sources=sources)
    assert screened.split is not None  # a data set that cannot be split was refused
    dataset = replace(screened.dataset, split=screened.split)
    data = config.data
    preprocessing = preprocessing_of(screened, data, scaling)
    cases = {case.id: case for case in dataset.cases}
    cached = {}
    for name, ids in (("train", screened.split.train), ("val", screened.split.val)):
        cached[name] = cached_dataset(
            [cases[case] for case in ids],
            preprocessing,
            data,
            class_names=dataset.classes.names,
            trains=name == "train",
            seed=config.training.seed,
        )
        cached[name].store.sources = sources
    # both at once: that the validation cases fit the disk is checked before hours of preparing the others
    stores = [each.store for each in cached.values()]
    build_entries(stores, progress, max_bytes=cached["train"].max_bytes)
    patches = None
    if data.mode == "patch":
        patches = PatchSchedule.from_settings(data)
        cached["train"].transform = _patch_chain(cached["train"], patches, data.foreground)
    in_training = set(screened.split.train)
    used = in_training | set(screened.split.val)
    labels = [case.label.class_voxels > 0 for case in screened.cases if case.label is not None and case.case in used]
    return PreparedData(
        dataset=dataset,
        split=screened.split,
        folds=screened.folds,
        preprocessing=preprocessing,
        intensity=screened.intensity,
        skipped=screened.skipped,
        findings=screened.findings,
        fingerprint=take_fingerprint(screened),
        scans=scan_range([case.images[0] for case in screened.cases if case.images and case.case in in_training]),
        native_holders=tuple(np.sum(labels, axis=0).tolist()),
        patches=patches,
        augmented_on_device=bool(data.augment_on_device) if data.data_aug else None,
        train=cached["train"],
        val=cached["val"],
    )


def preprocessing_of(screened: Screened, data: DataConfig, scaling: str = "centred") -> Preprocessing:
    """How the cases of a checked data set are prepared with these settings."""
    classes = screened.dataset.classes
    return Preprocessing(
        target_size=data.target_size,
        intensity=screened.intensity.intensity,
        window=screened.scaling.window,
        percentiles=data.percentiles,
        scaling=scaling,
        keep_aspect=data.keep_aspect,
        label_values=classes.values,
        ignore_value=classes.ignore_value,
        label_remap=classes.remap,
        mean_std=screened.scaling.mean_std,
        fill_nan=data.fill_nan,
        spacing_mm=data.spacing_mm,
    )


def _patch_chain(cases: CachedDataset, patches: PatchSchedule, foreground: float) -> Chain:
    """Cut patches out of prepared cases, and vary them as the cases' own transform would vary whole ones."""
    holders = (_class_voxels(cases) > 0).sum(0)
    weights = np.where(holders > 0, 1 / np.sqrt(np.maximum(holders, 1)), 0.0)
    weights[0] = 0
    augment = next(iter(cases.transform.transforms), None)
    return Chain([RandomPatchd(patches.patch_of, weights=weights.tolist(), foreground=foreground, augment=augment)])


def cached_dataset(
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    data: DataConfig,
    *,
    class_names: Sequence[str],
    trains: bool,
    seed: int,
) -> CachedDataset:
    """Return the cases as a MONAI dataset whose prepared volumes lie in the cache folder; builds none of them.

    Args:
        cases: in the order of the dataset's indices.
        preprocessing: the deterministic half of the chain.
        data: cache folder and limit, and the augmentation's settings.
        class_names: background first.
        trains: whether the settings' augmentation and patches are for these cases.
        seed: decides the random numbers of the augmentation.
    """
    arguments = preprocessing.arguments()
    random_part = None
    if trains and data.data_aug:
        random_part = augmentation_chain(
            data.target_size,
            class_names=tuple(class_names),
            flips=data.flips,
            sided_pairs=data.sided_pairs,
            on_device=bool(data.augment_on_device),
            **(data.augmentation or {}),
        )
    return CachedDataset(
        _items(cases, len(class_names)),
        preprocessing_chain(**arguments),
        folder=Path(data.cache_dir),
        key=preprocessing.cache_key(),
        n_classes=len(class_names),
        transform=random_part,
        seed=seed,
        max_bytes=int(data.cache_limit_gb * BYTES_PER_GB) or None,
        with_places=data.mode == "patch",
        in_parts=data.mode == "patch" and trains,
    )


def _items(cases: Sequence[Case], n_classes: int) -> list[dict[str, Any]]:
    """What is read of each case; where some annotate a part of the classes, each says which it annotates."""
    items = [_item(case) for case in cases]
    if any(case.annotated is not None for case in cases):
        for case, item in zip(cases, items, strict=True):
            item["annotated"] = tuple(range(1, n_classes)) if case.annotated is None else case.annotated
    return items


def _item(case: Case) -> dict[str, Any]:
    label: Any = case.label
    if isinstance(label, Path) and case.table is not None:
        label = ValuedLabel(str(label), _pairs(case.table))
    elif isinstance(label, Path):
        label = str(label)
    elif label is not None:
        label = [(index, str(path)) for index, path in label]
    paths = [str(path) for path in case.image]
    return {"image": Frames(paths[0], case.frames) if case.frames else paths, "label": label, "case": case.id}


def _pairs(table: ClassTable) -> tuple[tuple[int, int], ...]:
    """The class index of every value of a table, ignored values included."""
    ignored = dict.fromkeys(table.ignored_values, ignore_index(len(table.names)))
    return tuple(sorted((table.class_of_value | ignored).items()))
