"""Median frequency balancing against the formula of Eigen & Fergus, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config.settings import ConfigError
from pipeline.losses.class_weights import median_frequency_weights


def test_the_weights_are_the_papers_formula():
    # Class 2 lives in the second case only: its frequency is 10 / 100, not 10 / 200.
    counts = np.array([[60, 40, 0], [50, 40, 10]])
    frequency = np.array([110 / 200, 80 / 200, 10 / 100])
    assert median_frequency_weights(counts, 1.0) == pytest.approx(0.4 / frequency)
    assert median_frequency_weights(counts, 0.5) == pytest.approx(np.sqrt(0.4 / frequency))


def test_alpha_zero_weighs_all_alike_and_a_class_that_never_occurs_weighs_nothing():
    assert median_frequency_weights(np.array([[60, 0, 40]]), 0.0).tolist() == [1, 0, 1]


@pytest.mark.parametrize(("alpha", "said"), [(300, "found 3.2e-42 for class background"), (100, "for class cyst")])
def test_a_weight_that_float32_does_not_hold_is_refused_by_the_name_of_its_class(alpha, said):
    with pytest.raises(ConfigError, match=f"loss.weight_alpha {alpha}: .* {said}; lower it"):
        median_frequency_weights(np.array([[60, 40, 0], [50, 40, 10]]), alpha, ["background", "liver", "cyst"])


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_counts_are_left_as_they_are_and_may_be_of_any_kind(dtype, order):
    counts = np.array([[60, 40, 0], [50, 40, 10]], dtype, order=order)
    before = counts.copy()
    assert median_frequency_weights(counts, 1.0) == pytest.approx([0.4 / (110 / 200), 1, 4])
    assert np.array_equal(counts, before)
