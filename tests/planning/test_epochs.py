"""Counts against exact fractions, and against what is due epoch by epoch."""

import math
from fractions import Fraction

from pipeline.planning.epochs import is_validated, n_batches, n_validations


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


def test_smaller_patches_are_validated_once_a_size_at_most_and_the_final_ones_as_ever():
    for growth in ((1,), (3, 4), (5, 1, 2)):
        grown = sum(growth)
        for every in range(1, 12):
            for n_epochs in range(grown + 1, grown + 12):
                due = {epoch for epoch in range(1, n_epochs + 1) if epoch % every == 0 or epoch == n_epochs}
                ends = [sum(growth[: n + 1]) for n in range(len(growth))]
                moved = {next((end for end in ends if epoch <= end), epoch) for epoch in due}
                found = {epoch for epoch in range(1, n_epochs + 1) if is_validated(epoch, n_epochs, every, growth)}
                assert found == moved
                assert n_validations(n_epochs, every, growth) == len(moved)
    assert [epoch for epoch in range(1, 5) if is_validated(epoch, 4, 1, (3, 5))] == [3, 4]  # ends before it has grown
