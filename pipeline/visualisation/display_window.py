"""Choose which intensities are drawn from black to white."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from transforms.intensity import AIR_HU

_MOST_VOXELS = 200_000  # of an image that decide: percentiles of more are the same
_WITHIN = (1.0, 99.5)  # percentiles of the voxels that are not the background


class DisplayWindow(NamedTuple):
    """Intensities and how they are called."""

    low: float
    """Drawn black, as everything below."""
    high: float
    """Drawn white, as everything above."""
    name: str
    """In words, with its unit."""


SOFT_TISSUE = DisplayWindow(-160.0, 240.0, "soft tissue, −160…240 HU")
"""What a CT is usually read in: level 40, width 400."""


def display_window(image: Shaped[np.ndarray, "i j k"], modality: str | None = None) -> DisplayWindow:
    """Soft tissue for a CT, else from the dark to the bright end of what is not background.

    Args:
        image: intensities as stored; NaN is left out.
        modality: "CT", "MR", or "scaled" for a network; None where nothing says it: then an image with the HU of air
            is a CT.
    """
    step = max(1, round((image.size / _MOST_VOXELS) ** (1 / 3)))
    sample = np.asarray(image[::step, ::step, ::step], np.float64)
    sample = sample[np.isfinite(sample)]
    if modality == "CT" or (modality is None and sample.size and sample.min() < AIR_HU):
        return SOFT_TISSUE
    if not sample.size or sample.min() == sample.max():
        return DisplayWindow(0.0, 1.0, "an even image")
    shown = sample[sample > sample.min()]
    low, high = (float(value) for value in np.percentile(shown, _WITHIN))
    if not high > low:
        low, high = float(sample.min()), float(sample.max())
    return DisplayWindow(low, high, f"intensities {low:.4g}…{high:.4g}")
