"""Count the batches of an epoch, and say which epochs of a training are validated."""

from __future__ import annotations

import math
from collections.abc import Sequence


def n_batches(n_cases: int, patches_per_case: float, batch: int, n_processes: int) -> int:
    """Batches of each process in an epoch: as many as hold `patches_per_case` patches of every case, at least one.

    >>> n_batches(25, 0.28, 1, 1)  # 25 * 0.28 is 7.000000000000001 in floating point
    7
    """
    return max(1, math.ceil(round(n_cases * patches_per_case / (batch * n_processes), 9)))


def is_validated(finished: int, n_epochs: int, every: int, growth: Sequence[int] = ()) -> bool:
    """Whether a validation follows when so many of `n_epochs` epochs are finished.

    After every so many epochs and after the last one. Those that are due while patches are smaller than the final ones
    are one for each size, after its last epoch: the best epoch is chosen by its validation, and of many such epochs one
    would now and then come out ahead of the better ones with the final patches, by chance.

    Args:
        finished: epochs that are finished.
        n_epochs: of the whole training.
        every: training.validate_every.
        growth: epochs of each smaller patch, in their order.

    >>> [n for n in range(1, 11) if is_validated(n, 10, 2, growth=(3, 2))]
    [3, 5, 6, 8, 10]
    """
    begins = 0
    for epochs in growth:
        ends = begins + epochs
        if finished <= ends:
            return finished == n_epochs or (finished == ends and ends // every > begins // every)
        begins = ends
    return finished == n_epochs or finished % every == 0


def n_validations(n_epochs: int, every: int, growth: Sequence[int] = ()) -> int:
    """Validations of a training, see `is_validated`.

    >>> n_validations(10, 4)  # after epochs 4, 8 and 10
    3
    """
    return sum(is_validated(finished, n_epochs, every, growth) for finished in range(1, n_epochs + 1))
