"""Counts against exact fractions, and against what is due epoch by epoch."""

import math
from fractions import Fraction

from pipeline.planning.epochs import n_batches, n_validations


def test_an_epoch_has_as_many_batches_as_exact_fractions_give():
    for n_cases in range(1, 120, 3):
        for percent in range(1, 300, 7):
            for batch in (1, 3):
                exact = math.ceil(n_cases * Fraction(percent, 100) / (2 * batch))
                assert n_batches(n_cases, percent / 100, batch, 2) == max(1, exact), (n_cases, percent, batch)


def test_a_case_too_many_is_another_batch():
    assert n_batches(1_000_001, 1.0, 1_000_000, 1) == 2


def test_the_last_epoch_is_validated_once():
    for n_epochs in range(1, 30):
        for every in range(1, 40):
            due = {epoch for epoch in range(1, n_epochs + 1) if epoch % every == 0 or epoch == n_epochs}
            assert n_validations(n_epochs, every) == len(due)
