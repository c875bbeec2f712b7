"""Summaries and tests against scipy, closed forms and published figures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.metrics import statistics
from pipeline.metrics.statistics import bootstrap_intervals, holm, subject_means, summarise, wilcoxon_p


def summary_of(scores):
    (summary,) = summarise(np.array(scores)[:, None])
    return summary


def patients(rng, n_patients, n_scans, n_repetitions, mean=0.0):
    """Scores (cases, repetitions) whose patients differ by 0.05 and whose scans of a patient by 0.01, and whose."""
    of_patient = rng.normal(mean, 0.05, (n_patients, 1, n_repetitions))
    scores = of_patient + rng.normal(0, 0.01, (n_patients, n_scans, n_repetitions))
    return scores.reshape(-1, n_repetitions), np.repeat(np.arange(n_patients), n_scans)


def test_a_summary_leaves_out_what_is_undefined_and_counts_what_is_infinite():
    summary = summary_of([1.0, np.nan, 4.0, np.inf, 1.0, np.nan, 1.0, 1.0, 4.0])
    assert (summary.mean, summary.median, summary.n, summary.n_infinite) == (2.0, 1.0, 6, 1)
    assert summary.std == pytest.approx(np.sqrt(12 / 5))
    assert 1.0 <= summary.ci95[0] <= 2.0 <= summary.ci95[1] <= 4.0


def test_numbers_that_need_more_cases_are_undefined():
    empty, one = summary_of([np.nan]), summary_of([0.5])
    assert np.isnan([empty.mean, empty.median, empty.std, *empty.ci95]).all()
    assert (one.mean, one.median, one.n, one.n_subjects) == (0.5, 0.5, 1, 1)
    assert np.isnan([one.std, *one.ci95]).all()
    (of_one_patient,) = summarise(np.array([[0.5], [0.7], [0.9]]), np.array([4, 4, 4]))
    assert (of_one_patient.n, of_one_patient.n_subjects) == (3, 1)
    assert np.isnan(of_one_patient.ci95).all()


def test_both_numbers_count_only_where_a_class_has_scores():
    scores = np.array([[0.5, np.nan], [0.7, np.nan], [0.9, 0.2], [0.1, np.inf]])
    first, second = summarise(scores, np.array([1, 1, 2, 3]))
    assert (first.n, first.n_subjects) == (4, 3)
    assert (second.n, second.n_subjects, second.n_infinite) == (1, 1, 1)


def test_the_interval_agrees_with_scipys_bootstrap_at_the_expanded_percentiles():
    values = np.random.default_rng(3).beta(8, 2, size=40)
    # Hesterberg (2015): with 40 values, as far out as Student's t with 39 degrees of freedom and √(40/39).
    level = 1 - 2 * stats.norm.cdf(-np.sqrt(40 / 39) * 2.0226909)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", confidence_level=level, rng=np.random.default_rng(5)
    ).confidence_interval
    (ours,) = bootstrap_intervals(values[:, None], n_resamples=9999)
    assert ours == pytest.approx(tuple(theirs), abs=0.03 * (theirs.high - theirs.low))


@pytest.mark.parametrize(("n_patients", "n_scans"), [(60, 1), (10, 1), (10, 5), (30, 4)])
def test_the_interval_holds_the_true_mean_about_95_times_in_100(n_patients, n_scans):
    scores, subject = patients(np.random.default_rng(1), n_patients, n_scans, 2000)
    low, high = bootstrap_intervals(scores, subject).T
    assert 0.93 <= np.mean((low <= 0) & (high >= 0)) <= 0.97


def test_equal_runs_differ_significantly_in_5_of_100_comparisons_of_10_patients_with_5_scans():
    scores, subject = patients(np.random.default_rng(2), 10, 5, 2000)
    p = np.array([wilcoxon_p(subject_means(differences, subject)) for differences in scores.T])
    assert 0.03 <= np.mean(p < 0.05) <= 0.065
    by_scan = np.array([wilcoxon_p(differences) for differences in scores.T[:200]])
    assert np.mean(by_scan < 0.05) > 0.2  # what scans taken for patients claim


def test_a_patient_counts_with_all_scans_and_the_order_of_cases_does_not_matter():
    scores, subject = patients(np.random.default_rng(3), 6, 3, 4)
    shuffled = np.random.default_rng(4).permutation(len(scores))
    assert np.allclose(bootstrap_intervals(scores, subject), bootstrap_intervals(scores[shuffled], subject[shuffled]))
    # Drawn with the same numbers, a patient's three equal scans are as good as one.
    once, thrice = scores[::3], np.repeat(scores[::3], 3, axis=0)
    assert np.allclose(bootstrap_intervals(thrice, subject), bootstrap_intervals(once))


def test_many_subjects_are_drawn_in_parts_of_little_memory(monkeypatch):
    values = np.random.default_rng(0).random((50, 3))
    whole = bootstrap_intervals(values, seed=4)
    monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 50 * 7)
    assert np.allclose(bootstrap_intervals(values, seed=4), whole, atol=0.05)
    assert np.isfinite(bootstrap_intervals(values, seed=4)).all()


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random((9, 1))
    assert np.array_equal(bootstrap_intervals(values, seed=4), bootstrap_intervals(values, seed=4))
    assert not np.array_equal(bootstrap_intervals(values, seed=4), bootstrap_intervals(values, seed=5))


def test_wilcoxon_gives_darwins_maize_its_published_p():
    # Height differences of crossed and self-fertilised maize (Darwin 1876), in eighths of an inch: p = 0.041, as in
    # scipy's documentation of wilcoxon. No two are equal in size, so that the test is exact.
    eighths = np.array([6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75], float)
    assert wilcoxon_p(eighths) == pytest.approx(0.041, abs=5e-4)


def test_rounding_errors_are_neither_differences_nor_untied():
    assert wilcoxon_p(np.full(6, 0.1 + 0.2 - 0.3)) == 1.0
    tied = np.array([0.3 - 0.2, 0.4 - 0.3, 0.1, 0.7 - 0.6, -(0.9 - 0.8)])  # five times 0.1, in floating point
    assert len(np.unique(np.abs(tied))) > 1
    assert wilcoxon_p(tied) == wilcoxon_p(np.array([0.1, 0.1, 0.1, 0.1, -0.1])) == pytest.approx(0.375)


def test_dice_of_earlier_versions_in_single_precision_make_no_difference():
    one, other = np.float32([0.8, 0.6]).astype(float), np.float32([0.7, 0.7]).astype(float)
    assert one.mean() != other.mean()
    assert wilcoxon_p(np.full(6, one.mean() - other.mean())) == 1.0


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
