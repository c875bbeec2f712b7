"""Describe a data set in numbers: sizes, spacings, orientations, intensities, classes. Opens no file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.checks.case_check import CheckedCase, whole_cases
from pipeline.checks.modality import IntensityChoice
from pipeline.checks.screening import Screened
from pipeline.checks.voxel_statistics import PERCENTILES
from pipeline.checks.window import window_use
from pipeline.datasets.dataset import Dataset, Split
from transforms.io.grid import PerAxis


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest value along each axis, over all cases."""

    min: PerAxis
    median: PerAxis
    max: PerAxis


@dataclass(frozen=True)
class ClassCount:
    """A class over all labels."""

    name: str
    value: int
    """Its value in the label files."""
    n_annotated: int
    """Cases whose label says where it is, or that it is not there."""
    n_cases: int
    """Cases that hold it."""
    n_train: int
    """Training cases that hold it."""
    n_val: int
    """Validation cases that hold it."""
    n_voxels: int
    median_ml: float | None
    """Median volume over the cases that hold it; None where none does."""


@dataclass(frozen=True)
class Channel:
    """An image channel over all cases."""

    name: str
    minimum: float
    percentiles: tuple[tuple[float, float], ...]
    """(percent, intensity) pairs: the medians over cases of each case's percentile."""
    maximum: float


@dataclass(frozen=True)
class Fingerprint:
    """A data set in numbers. Only files that could be read count."""

    n_cases: int
    n_subjects: int
    n_unlabelled: int
    """Images that the data set keeps for testing without a label."""
    layout: str
    data_sets: tuple[str, ...]
    """What each of several data sets brings, in words; empty where it is one."""
    splits: dict[str, int]
    """How many cases train, validate and test; empty where they could not be divided."""
    split_source: str
    """Where the division comes from, in words."""
    sizes: Spread | None
    """Voxels; None where no image could be read."""
    spacings_mm: Spread | None
    """Voxel sizes in mm."""
    orientations: dict[str, int]
    """Cases by orientation, such as "RAS"."""
    formats: dict[str, int]
    dtypes: dict[str, int]
    intensity: IntensityChoice
    """How the intensities of each channel will be scaled, and why."""
    window_use: str
    """How much of the CT window the labelled voxels use, in words; empty without a CT or labels."""
    channels: tuple[Channel, ...]
    classes: tuple[ClassCount, ...]
    ignored_values: tuple[int, ...]
    """Values of the label files that are left out of loss and scores."""
    n_ignored_voxels: int


def take_fingerprint(screened: Screened) -> Fingerprint:
    """Sum up what was measured in all cases of a data set."""
    cases, dataset, split = screened.cases, screened.dataset, screened.split
    first_channels = [case.images[0] for case in cases if case.images]
    return Fingerprint(
        n_cases=len(dataset.cases),
        n_subjects=len({case.subject for case in dataset.cases}),
        n_unlabelled=len(dataset.unlabelled),
        layout=dataset.layout,
        data_sets=tuple(part.in_words for part in dataset.parts),
        splits={name: len(cases) for name, cases in split.items()} if split else {},
        split_source=split.source if split else "none",
        sizes=_spread([image.shape for image in first_channels]),
        spacings_mm=_spread([image.spacing_mm for image in first_channels]),
        orientations=_counted(image.orientation for image in first_channels),
        formats=_counted(image.kind for image in first_channels),
        dtypes=_counted(image.dtype for image in first_channels),
        intensity=screened.intensity,
        window_use=window_use(cases, screened.intensity, screened.scaling.window),
        channels=_channels(cases, dataset.channel_names),
        classes=_classes(cases, dataset, split),
        ignored_values=dataset.classes.ignored_values,
        n_ignored_voxels=_ignored_voxels(cases),
    )


def _ignored_voxels(cases: Sequence[CheckedCase]) -> int:
    """Voxels of the labels that no class has."""
    both = [(case.images[0], case.label) for case in cases if case.images and case.label is not None]
    return sum(math.prod(image.shape) - int(label.class_voxels.sum()) for image, label in both)


def _spread(rows: Sequence[Sequence[float]]) -> Spread | None:
    if not rows:
        return None
    table = np.array(rows, float)
    return Spread(_per_axis(table.min(axis=0)), _per_axis(np.median(table, axis=0)), _per_axis(table.max(axis=0)))


def _per_axis(row: np.ndarray) -> PerAxis:
    return float(row[0]), float(row[1]), float(row[2])


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _channels(cases: Sequence[CheckedCase], names: Sequence[str]) -> tuple[Channel, ...]:
    whole = whole_cases(cases, len(names))
    channels = []
    for number, name in enumerate(names):
        images = [case.images[number] for case in whole if np.isfinite(case.images[number].minimum)]
        if images:
            medians = np.median([image.intensities for image in images], axis=0).tolist()
            channels.append(
                Channel(
                    name,
                    minimum=min(image.minimum for image in images),
                    percentiles=tuple(zip(PERCENTILES, medians, strict=True)),
                    maximum=max(image.maximum for image in images),
                )
            )
    return tuple(channels)


def _classes(cases: Sequence[CheckedCase], dataset: Dataset, split: Split | None) -> tuple[ClassCount, ...]:
    labelled = [(case.case, case.label) for case in cases if case.label is not None]
    counts = []
    for index, (name, value) in enumerate(zip(dataset.classes.names, dataset.classes.values, strict=True)):
        holders = [(case, label) for case, label in labelled if label.class_voxels[index]]
        splits = Counter(split.of(case) for case, _ in holders) if split else Counter()
        annotating = [case for case, _ in labelled if not index or index in dataset.annotated_in(case)]
        volumes_ml = [float(label.class_voxels[index]) * label.voxel_ml for _, label in holders]
        counts.append(
            ClassCount(
                name,
                value=int(value),
                n_annotated=len(annotating),
                n_cases=len(holders),
                n_train=splits["train"],
                n_val=splits["val"],
                n_voxels=int(sum(label.class_voxels[index] for _, label in holders)),
                median_ml=float(np.median(volumes_ml)) if volumes_ml else None,
            )
        )
    return tuple(counts)
