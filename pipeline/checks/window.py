"""Choose how CT is scaled from the intensities of the labelled voxels, and say how much of the window they use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from pipeline.checks.case_check import CheckedCase, whole_cases
from pipeline.checks.histogram import Histogram, pooled_mean_std, pooled_percentiles
from pipeline.checks.modality import IntensityChoice

WIDEST = (-1000.0, 1000.0)
"""HU from air to dense bone: the window where no label tells which intensities matter."""

LEAST_WIDTH = 100.0
"""HU of the narrowest window: below, one organ of even intensities would be stretched to the noise of the scanner."""

LEAST_DEVIATION = LEAST_WIDTH / 5.15
"""HU of the smallest deviation: that of normally distributed values of which the narrowest window holds 99 %."""

_WITHIN = (0.5, 99.5)  # percentiles of the labelled voxels: nnU-Net's


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
    labelled = _labelled(cases, intensity, training)
    if not labelled:
        return WIDEST
    low, high = pooled_percentiles(labelled, _WITHIN)
    if high - low < LEAST_WIDTH:
        middle = (low + high) / 2
        low, high = middle - LEAST_WIDTH / 2, middle + LEAST_WIDTH / 2
    return float(np.floor(low)), float(np.ceil(high))


def choose_mean_std(
    cases: Sequence[CheckedCase],
    intensity: IntensityChoice,
    window: tuple[float, float],
    training: Collection[str] | None = None,
) -> tuple[float, float] | None:
    """Mean and deviation of the labelled voxels of the CT channels, clipped to the window; each case counts alike.

    nnU-Net's scaling of CT, but for the clipping: metal does not decide. For the arguments see `choose_window`.

    Returns:
        HU to a hundredth, the deviation at least `LEAST_DEVIATION`; None where no CT has labelled voxels.
    """
    labelled = _labelled(cases, intensity, training)
    if not labelled:
        return None
    mean, deviation = pooled_mean_std(labelled, *window)
    return round(mean, 2), round(max(deviation, LEAST_DEVIATION), 2)


def window_use(cases: Sequence[CheckedCase], intensity: IntensityChoice, window: tuple[float, float]) -> str:
    """Say how much of the window the labelled voxels of the CT channels use, and of them it cuts off; else empty."""
    labelled = _labelled(cases, intensity)
    if not labelled:
        return ""
    low, high = window
    bottom, top = pooled_percentiles(labelled, (5, 95))
    share = max(min(top, high) - max(bottom, low), 0) / (high - low)
    below, up_to = np.mean([voxels.percent_below(np.array(window)) for voxels in labelled], axis=0)
    return (
        f"90 % of the labelled voxels lie within {bottom:.0f} to {top:.0f} HU and use {100 * share:.0f} % "
        f"of the window {low:g} to {high:g}, which cuts off {below + 100 - up_to:.2g} % of all"
    )


def _labelled(
    cases: Sequence[CheckedCase], intensity: IntensityChoice, training: Collection[str] | None = None
) -> list[Histogram]:
    """The labelled voxels of every CT channel of every whole case that has some, of the training cases if given."""
    training = None if training is None else frozenset(training)
    chosen = [case for case in cases if training is None or case.case in training]
    channels = [index for index, way in enumerate(intensity.by_channel) if way == "ct"]
    of_all = [
        case.images[index].labelled for case in whole_cases(chosen, len(intensity.by_channel)) for index in channels
    ]
    return [labelled for labelled in of_all if labelled is not None]
