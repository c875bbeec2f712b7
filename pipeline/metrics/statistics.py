"""Summaries of scores with bootstrap intervals, and paired tests; patients are drawn and tested, not scans.

Scans of one patient resemble each other: five scans of a patient say less than scans of five patients. The bootstrap
therefore draws whole subjects with all of their cases, and tests compare means of subjects. NaN means "left out",
infinity the distance to a structure that is missing; neither counts in a mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

CONFIDENCE = 0.95
N_RESAMPLES = 2000
"""With other seeds an end of a 95 % interval is another by 1 to 3 % of its width (standard deviation)."""

LEAST_SUBJECTS = 6
"""Fewer have no interval: what is drawn from five subjects is little more than their five numbers."""

NUMBERS_AT_ONCE = 2**21
"""Numbers in memory while subjects are drawn (16 MB of float64), whatever their number."""

_EQUAL_WITHIN_DIGITS = 6
"""Differences are rounded to so many decimals before they are called zero, or equal to each other: 0.1 + 0.2 − 0.3 is
5.6e-17, which is not a difference, and earlier versions stored Dice to 3e-8."""


@dataclass(frozen=True)
class Summary:
    """Scores of one class over the cases that have one."""

    mean: float
    """Over cases; NaN where there is none, as the median."""
    median: float
    std: float
    """Of a sample of cases (n − 1); NaN below two."""
    n: int
    """Cases with a finite score; the other numbers are theirs."""
    n_subjects: int
    """Subjects of these cases."""
    n_infinite: int
    """Cases with an infinite score: the distance to a structure that was missed."""
    ci95: tuple[float, float]
    """Interval of the mean; NaN below LEAST_SUBJECTS."""


def number_subjects(cases: Sequence[str], subjects: Sequence[str | None]) -> Int[np.ndarray, " cases"]:
    """A number for the subject of each case, from 0; a case of which no subject is known is of one of its own.

    >>> number_subjects(["a", "b", "c", "d"], ["b", None, "b", None]).tolist()
    [0, 1, 0, 2]
    """
    # A subject may be called as another one's case is.
    keys = [("case", case) if who is None else ("subject", who) for case, who in zip(cases, subjects, strict=True)]
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([number_of[key] for key in keys], dtype=np.int64)


def summarise(
    scores: Float[np.ndarray, "cases classes"], subject: Int[np.ndarray, " cases"] | None = None, *, seed: int = 0
) -> list[Summary]:
    """Sum up the scores of each class over cases; NaN is left out.

    Args:
        scores: of each case and class.
        subject: a number for the subject of each case; None: every case is of a subject of its own.
        seed: decides the intervals.

    >>> (liver,) = summarise(np.array([[0.9], [0.8], [np.nan], [np.inf]]))
    >>> round(liver.mean, 2), liver.n, liver.n_infinite
    (0.85, 2, 1)
    """
    finite = np.isfinite(scores)
    subject = np.arange(len(scores)) if subject is None else subject
    intervals = bootstrap_intervals(scores, subject, seed=seed)
    summaries = []
    for c in range(scores.shape[1]):
        values = scores[finite[:, c], c].astype(np.float64)
        summaries.append(
            Summary(
                mean=float(values.mean()) if len(values) else np.nan,
                median=float(np.median(values)) if len(values) else np.nan,
                std=float(values.std(ddof=1)) if len(values) > 1 else np.nan,
                n=len(values),
                n_subjects=len(np.unique(subject[finite[:, c]])),
                n_infinite=int(np.isinf(scores[:, c]).sum()),
                ci95=(float(intervals[c, 0]), float(intervals[c, 1])),
            )
        )
    return summaries


def bootstrap_intervals(
    scores: Float[np.ndarray, "cases classes"],
    subject: Int[np.ndarray, " cases"] | None = None,
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Float[np.ndarray, "classes 2"]:
    """Return the 95 % interval of each class's mean over cases; subjects are drawn with replacement, by the seed.

    The cluster bootstrap (Davison and Hinkley 1997, section 3.8; Field and Welsh 2007): a subject drawn twice counts
    with all of its cases twice. The percentile interval (Efron 1979) is too narrow with few subjects; here its ends lie
    as much further out as Student's t is wider than the normal distribution (Hesterberg 2015, "expanded percentile
    interval"). NaN for classes with scores of fewer than LEAST_SUBJECTS. What is not finite is left out.
    """
    finite = np.isfinite(scores)
    subject = np.arange(len(scores)) if subject is None else subject
    sums = subject_sums(np.where(finite, scores, 0.0), subject)
    counts = subject_sums(finite.astype(np.float64), subject)
    n_subjects = (counts > 0).sum(0)
    intervals = np.full((scores.shape[1], 2), np.nan)
    if not (n_subjects >= LEAST_SUBJECTS).any():
        return intervals
    means = np.empty((n_resamples, scores.shape[1]))
    for rows, drawn in _drawn(len(sums), n_resamples, seed):
        n_drawn = drawn @ counts
        # A resample may hold no subject of a rare class; it says nothing about that class's mean.
        means[rows] = np.divide(drawn @ sums, n_drawn, out=np.full_like(n_drawn, np.nan), where=n_drawn > 0)
    for c in np.flatnonzero(n_subjects >= LEAST_SUBJECTS):
        tail = _expanded_tail(int(n_subjects[c]))
        intervals[c] = np.nanquantile(means[:, c], [tail, 1 - tail])
    return intervals


def _expanded_tail(n: int) -> float:
    """The share to cut off at each end of the bootstrap's means of n values, so that 95 % intervals hold 95 %.

    The bootstrap's deviation is √((n − 1)/n) of the usual one, and its quantiles are the normal distribution's instead
    of Student's (Hesterberg 2015, equation 8).
    """
    t = stats.t.ppf((1 - CONFIDENCE) / 2, n - 1)
    return float(stats.norm.cdf(np.sqrt(n / (n - 1)) * t))


def _drawn(n: int, n_resamples: int, seed: int) -> Iterator[tuple[slice, Float[np.ndarray, "resamples n"]]]:
    """Yield, for some resamples at a time, which they are and how often each of n subjects was drawn in each."""
    generator = np.random.default_rng(seed)
    at_once = max(1, NUMBERS_AT_ONCE // max(n, 1))
    for start in range(0, n_resamples, at_once):
        rows = slice(start, min(start + at_once, n_resamples))
        size = rows.stop - rows.start
        drawn = generator.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield rows, np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def subject_sums(
    values: Float[np.ndarray, "cases classes"], subject: Int[np.ndarray, " cases"]
) -> Float[np.ndarray, "subjects classes"]:
    """Add up the values of each subject's cases, subjects in the order of their numbers.

    >>> subject_sums(np.array([[1.0], [2.0], [4.0]]), np.array([7, 3, 7])).tolist()
    [[2.0], [5.0]]
    """
    order = np.argsort(subject, kind="stable")
    _, first = np.unique(subject[order], return_index=True)
    return np.add.reduceat(values[order], first, axis=0)


def subject_means(values: Float[np.ndarray, " cases"], subject: Int[np.ndarray, " cases"]) -> Float[np.ndarray, " n"]:
    """Return the mean of each subject's cases, subjects in the order of their numbers.

    >>> subject_means(np.array([1.0, 2.0, 4.0]), np.array([7, 3, 7])).tolist()
    [2.0, 2.5]
    """
    sums = subject_sums(np.stack([values, np.ones_like(values)], 1), subject)
    return sums[:, 0] / sums[:, 1]


def wilcoxon_p(differences: Float[np.ndarray, " n"]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test (1945) that independent paired differences centre on zero.

    Equal pairs are dropped, as Wilcoxon did; without any unequal pair p is 1. Exact up to 50 untied differences, and by
    scipy's choice of approximation above. Differences count to six decimals.

    >>> wilcoxon_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5]))  # 2 of 2**5 sign patterns
    0.0625
    """
    rounded = np.round(differences, _EQUAL_WITHIN_DIGITS)
    unequal = rounded[rounded != 0]
    if not len(unequal):
        return 1.0
    # With ties "auto" would draw random permutations below 13 pairs; all 2^n sign patterns are no more work there.
    tied = len(np.unique(np.abs(unequal))) < len(unequal)
    if tied and len(unequal) <= 12:
        return _exact_p(unequal)
    return float(stats.wilcoxon(unequal, method="asymptotic" if tied else "auto").pvalue)


def _exact_p(differences: Float[np.ndarray, " n"]) -> float:
    """Count the sign patterns whose rank sum lies as far from the middle as the observed one; ties share their rank."""
    ranks = stats.rankdata(np.abs(differences))
    patterns = (np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks))) & 1
    sums, middle = patterns @ ranks, ranks.sum() / 2
    observed = ranks[differences > 0].sum()
    is_as_far: Bool[np.ndarray, " patterns"] = np.abs(sums - middle) >= abs(observed - middle) - 1e-9
    return float(np.mean(is_as_far))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number by Holm's step-down method (1979); the results are compared with the level.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order: Int[np.ndarray, " n"] = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return [float(value) for value in adjusted]
