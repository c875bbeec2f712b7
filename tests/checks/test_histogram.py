"""Percentiles of histograms against numpy's of the voxels themselves."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.checks.histogram import MAX_BINS, Histogram, pooled_percentiles

PERCENTILES = (0.5, 5, 50, 95, 99.5)


def organ(rng: np.random.Generator, **parts: float) -> np.ndarray:
    """20000 voxels of a liver, of which shares are lung or bone."""
    hu = rng.normal(60, 15, 20000)
    n_lung, n_bone = (int(20000 * parts.get(name, 0)) for name in ("lung", "bone"))
    hu[:n_lung] = rng.normal(-850, 30, n_lung)
    hu[n_lung : n_lung + n_bone] = rng.normal(900, 100, n_bone)
    return hu.round().astype(np.int16)


@pytest.mark.parametrize(
    ("n_cases", "n_other", "parts"),
    [
        (100, 2, {"lung": 0.3}),
        (100, 20, {"lung": 0.04}),
        (100, 30, {"bone": 0.02}),
        (100, 15, {"bone": 0.05}),
        (20, 20, {"lung": 0.02, "bone": 0.02}),
        (1, 0, {}),
    ],
)
def test_pooled_percentiles_are_those_of_the_pooled_voxels(n_cases: int, n_other: int, parts: dict) -> None:
    """A few cases with a structure that others lack decide the ends of a window."""
    rng = np.random.default_rng(0)
    cases = [organ(rng, **(parts if index < n_other else {})) for index in range(n_cases)]
    found = pooled_percentiles([Histogram.of(voxels) for voxels in cases], PERCENTILES)
    np.testing.assert_allclose(found, np.percentile(np.concatenate(cases), PERCENTILES), atol=3)


def test_every_case_counts_alike() -> None:
    small, large = np.full(10, 40), np.full(10000, 80)
    assert pooled_percentiles([Histogram.of(small), Histogram.of(large)], (25, 75)) == pytest.approx([40, 80])


@pytest.mark.parametrize(("low", "high"), [(-1024, 3071), (0, 65535), (-3e38, 3e38), (0, 1), (7, 7)])
def test_any_range_fits_in_a_bounded_number_of_bins(low: float, high: float) -> None:
    values = np.append(np.random.default_rng(0).uniform(low, high, 5000), [low, high])
    histogram = Histogram.of(values)
    assert len(histogram.counts) <= MAX_BINS
    assert histogram.counts.sum() == len(values)
    assert pooled_percentiles([histogram], PERCENTILES) == pytest.approx(
        np.percentile(values, PERCENTILES), abs=histogram.width
    )
