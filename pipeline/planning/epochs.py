"""Count the batches of an epoch and the validations of a training."""

from __future__ import annotations

import math


def n_batches(n_cases: int, patches_per_case: float, batch: int, n_processes: int) -> int:
    """Batches of each process in an epoch: as many as hold `patches_per_case` patches of every case, at least one.

    >>> n_batches(25, 0.28, 1, 1)  # 25 * 0.28 is 7.000000000000001 in floating point
    7
    """
    return max(1, math.ceil(round(n_cases * patches_per_case / (batch * n_processes), 9)))


def n_validations(n_epochs: int, every: int) -> int:
    """Validations of a training that validates after every so many epochs, and after the last.

    >>> n_validations(10, 4)  # after epochs 4, 8 and 10
    3
    """
    return math.ceil(n_epochs / every)
