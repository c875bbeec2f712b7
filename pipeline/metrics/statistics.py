"""What scores of several cases say together: summaries with bootstrap intervals, and paired tests of two runs. Pure.

Knows numbers, NaN for "left out", and infinity for a distance to nothing; neither cases nor classes nor files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import wilcoxon

CONFIDENCE = 0.95
N_RESAMPLES = 2000
"""The ends of a 95 % interval are then known to about a hundredth of its width."""


@dataclass(frozen=True)
class Summary:
    """Scores of one class over the cases that have one.

    `n` cases have a finite score; `n_infinite` have an infinite one (a distance to a structure that was missed) and
    count in no other number here. Where n is too small for a number it is NaN: mean and median need one case, the
    standard deviation (of a sample, n − 1) and the interval of the mean two.
    """

    mean: float
    median: float
    std: float
    n: int
    n_infinite: int
    ci95: tuple[float, float]


def summarise(scores: Float[np.ndarray, " cases"], *, seed: int = 0) -> Summary:
    """Sum up the scores of one class; NaN is left out."""
    finite = scores[np.isfinite(scores)].astype(np.float64)
    n = len(finite)
    return Summary(
        mean=float(finite.mean()) if n else np.nan,
        median=float(np.median(finite)) if n else np.nan,
        std=float(finite.std(ddof=1)) if n > 1 else np.nan,
        n=n,
        n_infinite=int(np.isinf(scores).sum()),
        ci95=bootstrap_interval(finite, seed=seed),
    )


def bootstrap_interval(
    values: Float[np.ndarray, " n"], *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean (Efron 1979): cases drawn with replacement, by the seed.

    (NaN, NaN) below two values. With few cases the interval is too narrow, as every bootstrap's is.
    """
    if len(values) < 2:
        return np.nan, np.nan
    means = _drawn_counts(len(values), n_resamples, seed) @ values / len(values)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _drawn_counts(n: int, n_resamples: int, seed: int) -> Int[np.ndarray, "resamples n"]:
    """How often each of n values was drawn in each resample. As counts the means are one product; and they are the same
    for all classes and metrics of n cases, where drawing takes longer than all else."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)


def wilcoxon_p(differences: Float[np.ndarray, " n"]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test (1945) that paired differences centre on zero.

    Equal pairs are dropped, as Wilcoxon did; without any pair left nothing speaks against equality, p = 1. Exact up to
    50 untied differences, and by scipy's choice of approximation above.
    """
    unequal = differences[differences != 0]
    if not len(unequal):
        return 1.0
    # With ties "auto" would draw random permutations below 13 pairs; all 2^n sign patterns are no more work there.
    tied = len(np.unique(np.abs(unequal))) < len(unequal)
    if tied and len(unequal) <= 12:
        return _exact_p(unequal)
    return float(wilcoxon(unequal, method="asymptotic" if tied else "auto").pvalue)


def _exact_p(differences: Float[np.ndarray, " n"]) -> float:
    """Count the sign patterns whose rank sum lies as far from the middle as the observed one; ties share their rank."""
    size = np.abs(differences)
    ranks = np.array([(np.sum(size < s) + np.sum(size <= s) + 1) / 2 for s in size])
    patterns = (np.arange(2 ** len(size))[:, None] >> np.arange(len(size))) & 1
    sums, middle = patterns @ ranks, ranks.sum() / 2
    observed = ranks[differences > 0].sum()
    return float(np.mean(np.abs(sums - middle) >= abs(observed - middle) - 1e-9))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number by Holm's step-down method (1979); compare the results with the wanted level."""
    p = np.asarray(p_values, dtype=np.float64)
    order: Int[np.ndarray, " n"] = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return [float(value) for value in adjusted]
