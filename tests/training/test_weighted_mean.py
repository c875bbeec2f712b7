"""The mean of an epoch against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.training.weighted_mean import WeightedMean


def test_it_is_numpys_weighted_average_in_double_precision():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=100).astype(np.float32), rng.integers(0, 10**7, 100)
    mean = WeightedMean()
    for value, weight in zip(values, weights, strict=True):
        mean.update(torch.tensor(value), weight=torch.tensor(weight))
    assert float(mean.compute()) == pytest.approx(np.average(values.astype(np.float64), weights=weights), rel=1e-14)


def test_an_undefined_value_makes_the_mean_undefined_and_a_reset_forgets_it():
    mean = WeightedMean()
    mean.update(1.0)
    mean.update(torch.tensor(float("nan")))
    assert torch.isnan(mean.compute())
    mean.reset()
    mean.update(0.0, weight=0.0)
    assert torch.isnan(mean.compute())
    mean.update(3.0)
    assert mean.compute() == 3.0
    assert mean.half().total.dtype == torch.float64
