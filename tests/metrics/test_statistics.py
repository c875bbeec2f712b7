"""Summaries and tests against scipy, closed forms and published figures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.metrics.statistics import bootstrap_interval, holm, summarise, wilcoxon_p


def test_a_summary_leaves_out_what_is_undefined_and_counts_what_is_infinite():
    summary = summarise(np.array([1.0, np.nan, 4.0, np.inf, 1.0, np.nan]))
    assert (summary.mean, summary.median, summary.n, summary.n_infinite) == (2.0, 1.0, 3, 1)
    assert summary.std == pytest.approx(np.sqrt(3))
    assert 1.0 <= summary.ci95[0] <= 2.0 <= summary.ci95[1] <= 4.0


def test_numbers_that_need_more_cases_are_undefined():
    empty, one = summarise(np.array([np.nan])), summarise(np.array([0.5]))
    assert np.isnan([empty.mean, empty.median, empty.std, *empty.ci95]).all()
    assert (one.mean, one.median, one.n) == (0.5, 0.5, 1)
    assert np.isnan([one.std, *one.ci95]).all()


def test_the_interval_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(3).beta(8, 2, size=40)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(5)).confidence_interval
    width = theirs.high - theirs.low
    assert bootstrap_interval(values, n_resamples=9999) == pytest.approx(tuple(theirs), abs=0.03 * width)


def test_the_interval_holds_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.normal(0.7, 0.1, size=60), seed=trial, n_resamples=400)
        held += low <= 0.7 <= high
    assert 0.91 <= held / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(9)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_wilcoxon_gives_darwins_maize_its_published_p():
    # Height differences of crossed and self-fertilised maize (Darwin 1876), in eighths of an inch: p = 0.041, as in
    # scipy's documentation of wilcoxon. No two are equal in size, so that the test is exact.
    eighths = np.array([6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75], float)
    assert wilcoxon_p(eighths) == pytest.approx(0.041, abs=5e-4)


def test_few_tied_differences_are_counted_exactly():
    rng = np.random.default_rng(2)
    for _ in range(10):
        differences = rng.choice([-2.0, -1.0, 1.0, 2.0, 3.0], size=7)
        every_sign = stats.wilcoxon(differences, method=stats.PermutationMethod(n_resamples=np.inf))
        assert wilcoxon_p(differences) == pytest.approx(every_sign.pvalue)


def test_many_tied_differences_follow_scipys_approximation():
    differences = np.random.default_rng(2).choice([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0], size=80)
    assert wilcoxon_p(differences) == pytest.approx(
        stats.wilcoxon(differences[differences != 0], method="asymptotic").pvalue
    )


def test_equal_pairs_say_nothing():
    assert wilcoxon_p(np.zeros(5)) == wilcoxon_p(np.zeros(0)) == 1.0
    assert wilcoxon_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0])) == pytest.approx(2 / 2**5)


def test_holm_reproduces_a_worked_example():
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
