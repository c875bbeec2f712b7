"""Suggest a target size for training on whole scans: the median scan's own voxels, or coarser where these are many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.planning.network_shape import Triple, target_spacing, triple

MOST_VOXELS = 160 * 160 * 256
"""Of the documented size, whose steps fit into 8 GB of memory."""

MULTIPLE = 8
"""What edges are multiples of, as nnU-Net's patch of 40×56×40 for the hippocampus."""


@dataclass(frozen=True)
class TargetSuggestion:
    """A target size that suits a data set."""

    size: Triple
    """Voxels along left-right, back-front, foot-head."""
    voxel_mm: tuple[float, float, float]
    """Of the median scan brought onto that size."""
    times_coarser: float
    """Than the scans' own voxels, along the axis that loses most; 1 where none does."""


def suggest_target_size(sizes: Sequence[Sequence[int]], spacings_mm: Sequence[Sequence[float]]) -> TargetSuggestion:
    """Suggest a size whose voxels are those of the median scan, or as much coarser as `MOST_VOXELS` asks for.

    The finest axes become coarser first, until all are alike.

    Args:
        sizes: voxels (I, J, K) of each case, in RAS+ order.
        spacings_mm: voxel sizes of each case, in the same order.

    >>> suggest_target_size([(35, 51, 36)], [(1, 1, 1)]).size
    (40, 56, 40)
    >>> suggest_target_size([(512, 512, 400)], [(0.8, 0.8, 1.5)]).size
    (160, 160, 240)
    """
    own_mm = spacing = np.array(target_spacing(sizes, spacings_mm))
    extent_mm = np.median(np.asarray(sizes, np.float64) * np.asarray(spacings_mm, np.float64), axis=0)
    low, high = float(spacing.min()), float(max(extent_mm))
    if math.prod(_rounded(extent_mm / spacing)) > MOST_VOXELS:
        for _ in range(50):  # bisection: the finest voxel that fits
            middle = (low + high) / 2
            fits = math.prod(_rounded(extent_mm / np.maximum(spacing, middle))) <= MOST_VOXELS
            low, high = (low, middle) if fits else (middle, high)
        spacing = np.maximum(spacing, high)
    size = _rounded(extent_mm / spacing)
    voxel_mm = extent_mm / np.array(size)
    i, j, k = (float(mm) for mm in voxel_mm)
    return TargetSuggestion(size, (i, j, k), max(1.0, float((voxel_mm / own_mm).max())))


def _rounded(size: np.ndarray) -> Triple:
    return triple(np.maximum(2, np.ceil(np.round(size, 6) / MULTIPLE)) * MULTIPLE)
