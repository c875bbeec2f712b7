"""Intensities as histograms, small enough to be remembered of every case, and percentiles over many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

MAX_BINS = 2048
"""Bins of a histogram at most: one whole HU each for a soft organ, two for a body from air to bone."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many voxels have which intensity, in bins of equal width; at least one voxel."""

    start: float
    """Lower edge of the first bin, half below a whole number: a whole HU lies in the middle of its bin."""
    width: float
    """A power of two, 1 or more: no intensity is off by more than this."""
    counts: Int[np.ndarray, " bins"]

    @classmethod
    def of(cls, values: Shaped[np.ndarray, " n"]) -> Histogram:
        """Count finite values, at least one."""
        lowest, highest = float(values.min()), float(values.max())
        start = np.floor(lowest) - 0.5
        width = 1.0
        while start + width * MAX_BINS <= highest:
            width *= 2
        bins = int((highest - start) // width) + 1
        counts, _ = np.histogram(values, bins, (start, start + width * bins))
        return cls(start, width, counts)

    @property
    def edges(self) -> Float[np.ndarray, " edges"]:
        """Lower edges of all bins, and the last one's upper edge."""
        return self.start + self.width * np.arange(len(self.counts) + 1)

    def percent_below(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Percent of the voxels below each of some intensities."""
        below = np.concatenate([[0], np.cumsum(self.counts)])
        return np.interp(values, self.edges, 100 * below / below[-1])


def pooled_mean_std(histograms: Sequence[Histogram], low: float, high: float) -> tuple[float, float]:
    """Mean and deviation over the voxels of several histograms, clipped to low … high; each counts alike.

    >>> mean, deviation = pooled_mean_std([Histogram.of(np.array([0, 2])), Histogram.of(np.full(9, 99))], 0, 21)
    >>> mean, round(deviation, 3)
    (11.0, 10.025)
    """
    moments = []
    for histogram in histograms:
        values = np.clip(histogram.edges[:-1] + histogram.width / 2, low, high)
        moments.append([np.average(values**power, weights=histogram.counts) for power in (1, 2)])
    mean, mean_square = np.mean(moments, axis=0)
    return float(mean), float(np.sqrt(max(mean_square - mean**2, 0)))


def pooled_percentiles(histograms: Sequence[Histogram], percentiles: Sequence[float]) -> list[float]:
    """Percentiles over the voxels of several histograms, of which each counts alike, whatever its size.

    >>> pooled_percentiles([Histogram.of(np.arange(101)), Histogram.of(np.arange(200, 301))], (25, 75))
    [50.0, 250.0]
    """
    edges = np.unique(np.concatenate([histogram.edges for histogram in histograms]))
    below = sum(histogram.percent_below(edges) for histogram in histograms) / len(histograms)
    return np.interp(percentiles, below, edges).tolist()
