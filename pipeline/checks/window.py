"""Choose the CT window from the intensities of the labelled voxels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from pipeline.checks.case_check import CheckedCase, whole_cases
from pipeline.checks.modality import IntensityChoice
from pipeline.checks.voxel_statistics import PERCENTILES

WIDEST = (-1000.0, 1000.0)
"""HU from air to dense bone: the window where no label tells which intensities matter."""

LEAST_WIDTH = 100.0
"""HU of the narrowest window: below, one organ of even intensities would be stretched to the noise of the scanner."""


def choose_window(
    cases: Sequence[CheckedCase],
    intensity: IntensityChoice,
    setting: tuple[float, float] | Literal["auto"],
    training: Collection[str] | None = None,
) -> tuple[float, float]:
    """Choose the window in HU where the settings say "auto": the 0.5th and 99.5th percentiles of the labelled voxels.

    That is nnU-Net's clipping of CT (Isensee et al., Nature Methods 2021): every case counts alike, whatever its size.

    Args:
        cases: what was found in their files.
        intensity: which channels are CT.
        setting: numbers, or "auto".
        training: ids of the training cases, which alone decide; None: all.

    Returns:
        Whole HU, at least `LEAST_WIDTH` apart; `WIDEST` where no CT has labelled voxels.
    """
    if setting != "auto":
        return setting
    channels = [index for index, way in enumerate(intensity.by_channel) if way == "ct"]
    values = []
    for case in whole_cases(cases, len(intensity.by_channel)):
        if training is None or case.case in training:
            values += [np.asarray(case.images[index].labelled) for index in channels]
    values = [levels for levels in values if levels.size and np.isfinite(levels).all()]
    if not values:
        return WIDEST
    low, high = _pooled(values, (PERCENTILES[0], PERCENTILES[-1]))
    if high - low < LEAST_WIDTH:
        middle = (low + high) / 2
        low, high = middle - LEAST_WIDTH / 2, middle + LEAST_WIDTH / 2
    return float(np.floor(low)), float(np.ceil(high))


def _pooled(values: Sequence[np.ndarray], percentiles: Sequence[float]) -> list[float]:
    """Percentiles over all cases, each given by its values at `PERCENTILES`: where their mean distribution has them."""
    levels = np.unique(np.concatenate(values))
    below = np.mean([np.interp(levels, found, PERCENTILES, left=0, right=100) for found in values], axis=0)
    return np.interp(percentiles, below, levels).tolist()
