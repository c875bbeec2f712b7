"""The learning rate against torch's own schedulers and the documented history."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.schedule import Schedule


def test_the_warm_up_is_the_documented_one():
    schedule = Schedule(lr=1e-4, warmup_epochs=5, max_epochs=100, decay="cosine")
    rates = [schedule.learning_rate(epoch) for epoch in range(100)]
    assert rates[:6] == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5, 1e-4, 1e-4])
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=95)
    for rate in rates[5:]:
        assert rate == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        cosine.step()


def test_poly_decay_is_torchs_polynomial():
    schedule = Schedule(lr=1e-2, warmup_epochs=0, max_epochs=50, decay="poly")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    polynomial = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=50, power=0.9)
    for epoch in range(50):
        assert schedule.learning_rate(epoch) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        polynomial.step()


def test_a_warm_up_as_long_as_the_training_ends_at_the_full_rate():
    for decay in ("cosine", "poly", "constant"):
        schedule = Schedule(lr=1.0, warmup_epochs=4, max_epochs=4, decay=decay)
        assert [schedule.learning_rate(epoch) for epoch in range(4)] == [0.25, 0.5, 0.75, 1.0]
