"""What a data set looks like as a whole: sizes, spacings, orientations, intensities, classes. Opens no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.checks.case_check import CaseFacts
from pipeline.checks.voxel_statistics import PERCENTILES
from pipeline.datasets.dataset import Dataset, Split

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ClassCount:
    """A class over all labels: cases that hold it, by side too, its voxels, and its median volume where it occurs."""

    name: str
    value: int
    n_cases: int
    n_train: int
    n_val: int
    n_voxels: int
    median_ml: float | None


@dataclass(frozen=True)
class Channel:
    """An image channel over all cases: lowest minimum, highest maximum, and the percentiles' medians over cases."""

    name: str
    minimum: float
    percentiles: tuple[tuple[float, float], ...]
    maximum: float


@dataclass(frozen=True)
class Fingerprint:
    """A data set in numbers; the triples of `sizes` and `spacings_mm` run along the voxel axes I, J, K.

    Only files that could be read count. `sides` says how many cases train, validate and test, and `intensity` how
    intensities will be scaled and why.
    """

    n_cases: int
    n_subjects: int
    n_unlabelled: int
    layout: str
    sides: dict[str, int]
    split_source: str
    sizes: dict[str, Triple]
    spacings_mm: dict[str, Triple]
    orientations: dict[str, int]
    formats: dict[str, int]
    dtypes: dict[str, int]
    intensity: dict[str, str]
    channels: tuple[Channel, ...]
    classes: tuple[ClassCount, ...]


def take_fingerprint(
    facts: Sequence[CaseFacts], dataset: Dataset, *, split: Split | None, intensity: dict[str, str]
) -> Fingerprint:
    """Sum up the facts of all cases."""
    first = [case.images[0] for case in facts if case.images]
    return Fingerprint(
        n_cases=len(dataset.cases),
        n_subjects=len({case.subject for case in dataset.cases}),
        n_unlabelled=len(dataset.unlabelled),
        layout=dataset.layout,
        sides={name: len(cases) for name, cases in split.items()} if split else {},
        split_source=split.source if split else "none",
        sizes=_spread([image.shape for image in first]),
        spacings_mm=_spread([image.spacing_mm for image in first]),
        orientations=_counted([image.orientation for image in first]),
        formats=_counted([image.kind for image in first]),
        dtypes=_counted([image.dtype for image in first]),
        intensity=intensity,
        channels=tuple(_channels(facts, dataset)),
        classes=tuple(_classes(facts, dataset, split)),
    )


def _spread(rows: Sequence[Sequence[float]]) -> dict[str, Triple]:
    if not rows:
        return {}
    table = np.array(rows, float)
    return {
        name: (float(row[0]), float(row[1]), float(row[2]))
        for name, row in (("min", table.min(0)), ("median", np.median(table, axis=0)), ("max", table.max(0)))
    }


def _counted(words: Sequence[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _channels(facts: Sequence[CaseFacts], dataset: Dataset) -> list[Channel]:
    channels = []
    for number, name in enumerate(dataset.channel_names):
        # Only whole cases: in others the place in the tuple is not the channel.
        images = [case.images[number] for case in facts if len(case.images) == len(dataset.channel_names)]
        images = [image for image in images if np.isfinite(image.minimum)]
        if images:
            medians = np.median([image.intensities for image in images], axis=0).tolist()
            low, high = min(image.minimum for image in images), max(image.maximum for image in images)
            channels.append(Channel(name, low, tuple(zip(PERCENTILES, medians, strict=True)), high))
    return channels


def _classes(facts: Sequence[CaseFacts], dataset: Dataset, split: Split | None) -> list[ClassCount]:
    labelled = [(case.case, case.label) for case in facts if case.label is not None]
    train, val = (set(split.train), set(split.val)) if split else (set(), set())
    counts = []
    for c, (name, value) in enumerate(zip(dataset.classes.names, dataset.classes.values, strict=True)):
        holders = [(case, label) for case, label in labelled if label.class_voxels[c]]
        volumes = [float(label.class_voxels[c]) * label.voxel_ml for _, label in holders]
        counts.append(ClassCount(
            name, int(value), len(holders), sum(case in train for case, _ in holders),
            sum(case in val for case, _ in holders), int(sum(label.class_voxels[c] for _, label in holders)),
            float(np.median(volumes)) if volumes else None,
        ))  # fmt: skip
    return counts
