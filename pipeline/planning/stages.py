"""Divide the time of a training among growing patches and validations.

Patches grow while a network trains (Fischer et al. 2024, arXiv:2407.07853 and 2510.23241): most steps are taken on
small patches, where a step costs little, and the last ones on the patch that the network is used with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from networks.sliding_window import count_windows
from pipeline.planning.epochs import n_batches, n_validations
from pipeline.planning.machine import Cost
from pipeline.planning.network_shape import Triple
from pipeline.planning.patch_sizes import scaled

GROWTH = (0.4, 0.6, 0.8, 1.0)
"""Edge of the patch in each share of the time, as a share of the final edge."""

BATCH_EXPONENT = 0.6
"""How the batch grows as patches get smaller: with less than the ratio of the voxels, for more steps."""

LEAST_STEPS = 40
"""Steps that every patch must be trained for within its share of the time."""

VALIDATION_SHARE = 0.1
"""Share of the training time that validation may take."""

N_EPOCHS = 100
"""About as many points as the curves of a training should have."""

BETWEEN_EPOCHS_SHARE = 0.05
"""Share of the training time that may pass between epochs: where much does, they are fewer and longer."""

LEAST_EPOCHS = 4
"""Epochs of a stage at least: whole epochs then waste little of its time."""


@dataclass(frozen=True)
class Stage:
    """A share of the training with one patch."""

    patch: Triple
    batch: int
    """Patches in a batch of each process."""


@dataclass(frozen=True)
class Cases:
    """The cases of a data set at one voxel size."""

    sizes: tuple[Triple, ...]
    """Voxels of each."""
    n_train: int
    n_val: int
    n_channels: int = 1

    def validation_s(self, cost: Cost, window: Triple) -> float:
        """Seconds of validating one case through this window, mean over all."""
        n_windows = sum(n * count_windows(size, window) for size, n in Counter(self.sizes).items())
        return n_windows / len(self.sizes) * math.prod(window) * cost.validation_voxel_s + cost.case_s

    def validation_bytes(self, window: Triple, n_features: int) -> float:
        """Memory of the largest case with its label and segmentation, and of features blended through this window.

        These are sums in float32 along the windows in work, and as much that is final (`networks.sliding_window`).
        """
        most = 0.0
        for size in set(self.sizes):
            i, j, k = (max(n, w) for n, w in zip(size, window, strict=True))
            blended = 2 * 4 * n_features * i * j * window[2] if count_windows(size, window) > 1 else 0
            most = max(most, blended + 4 * (self.n_channels + 1) * i * j * k)
        return most


@dataclass(frozen=True)
class Schedule:
    """Stages, and how many epochs each has."""

    stages: tuple[Stage, ...]
    epochs_of: tuple[int, ...]
    """Epochs of each stage."""
    n_batches: int
    """Batches of each process in an epoch."""
    patches_per_case: float
    """The setting that makes as many batches."""
    validate_every: int
    """training.validate_every, see `is_validated`."""
    steps_s: float
    """Seconds of all steps, and between epochs."""
    validations_s: float
    """Seconds of all validations."""

    @property
    def n_voxels(self) -> int:
        """Of the final patch."""
        return math.prod(self.stages[-1].patch)

    @property
    def n_epochs(self) -> int:
        """Of all stages."""
        return sum(self.epochs_of)

    @property
    def n_steps(self) -> int:
        """Steps of all stages."""
        return self.n_epochs * self.n_batches


def growing(patch: Triple, batch: int, multiple: Triple) -> tuple[Stage, ...]:
    """The stages that lead to a final patch and batch."""
    shapes = dict.fromkeys(scaled(patch, share, multiple) for share in GROWTH)
    return tuple(Stage(shape, _batch(shape, patch, batch)) for shape in shapes)


def _batch(shape: Triple, patch: Triple, batch: int) -> int:
    return max(batch, round(batch * (math.prod(patch) / math.prod(shape)) ** BATCH_EXPONENT))


def least_seconds(cost: Cost, stages: Sequence[Stage], cases: Cases) -> float:
    """Seconds of the shortest training that `make_schedule` makes."""
    slowest_s = max(cost.step_s(stage.patch, stage.batch) for stage in stages)
    steps_s = len(stages) * (LEAST_STEPS * slowest_s + LEAST_EPOCHS * cost.epoch_s)
    return max(steps_s + _validations(cost, stages, cases)[1], steps_s / (1 - VALIDATION_SHARE))


def _validations(cost: Cost, stages: Sequence[Stage], cases: Cases) -> tuple[float, float]:
    """Seconds of one validation, and of the only one that there must be with the case that is tried beforehand."""
    if not cases.n_val:
        return 0.0, 0.0
    case_s = cases.validation_s(cost, stages[-1].patch)
    validation_s = math.ceil(cases.n_val / cost.n_processes) * case_s
    return validation_s, validation_s + case_s


def make_schedule(cost: Cost, stages: Sequence[Stage], cases: Cases, training_s: float) -> Schedule | None:
    """Give each stage as much time; None where that holds too few steps beside one validation.

    What validations leave of their share, as they come after whole epochs, goes to the steps.
    """
    validation_s, only_s = _validations(cost, stages, cases)
    most_s = max(only_s, VALIDATION_SHARE * training_s)
    step_s = [cost.step_s(stage.patch, stage.batch) for stage in stages]
    share_s = (training_s - most_s) / len(stages) - LEAST_EPOCHS * cost.epoch_s
    steps = [share_s / one_s for one_s in step_s]
    if min(steps) < LEAST_STEPS:
        return None
    n_epochs = min(N_EPOCHS, BETWEEN_EPOCHS_SHARE * training_s / cost.epoch_s) if cost.epoch_s else N_EPOCHS
    per_epoch = max(1, math.floor(min(sum(steps) / n_epochs, min(steps) / LEAST_EPOCHS)))
    epoch_s = [per_epoch * one_s + cost.epoch_s for one_s in step_s]
    more = (VALIDATION_SHARE * training_s - only_s) / validation_s if validation_s else 0
    most = 1 + max(0, math.floor(more))
    every = math.ceil(sum(_epochs_within(training_s - most_s, epoch_s)) / most)
    n, found = 0, 1
    while found > n:  # what is kept for validations makes epochs fewer, and so validations
        n = found
        kept_s = min(most_s, only_s + (n - 1) * validation_s)
        epochs = _epochs_within(training_s - kept_s, epoch_s)
        found = n_validations(sum(epochs), every, epochs[:-1]) if kept_s < most_s else n
    return Schedule(
        stages=tuple(stages),
        epochs_of=epochs,
        n_batches=per_epoch,
        patches_per_case=_patches_per_case(per_epoch, cases.n_train, stages[-1].batch, cost.n_processes),
        validate_every=every,
        steps_s=sum(n * one_s for n, one_s in zip(epochs, epoch_s, strict=True)),
        validations_s=only_s + (n_validations(sum(epochs), every, epochs[:-1]) - 1) * validation_s,
    )


def _epochs_within(available_s: float, epoch_s: Sequence[float]) -> tuple[int, ...]:
    """Epochs of each stage within a time, shared equally; the last stage has what the others leave, too."""
    *before, last_s = epoch_s
    epochs = [math.floor(available_s / len(epoch_s) / one_s) for one_s in before]
    used_s = sum(n * one_s for n, one_s in zip(epochs, before, strict=True))
    return *epochs, math.floor((available_s - used_s) / last_s)


def _patches_per_case(per_epoch: int, n_train: int, batch: int, n_processes: int) -> float:
    """The shortest decimal number of patches a case that makes so many batches in an epoch."""
    exact = per_epoch * batch * n_processes / n_train
    shorter = (math.floor(exact * 10**digits) / 10**digits for digits in range(9))
    fitting = (n for n in shorter if n > 0 and n_batches(n_train, n, batch, n_processes) == per_epoch)
    return next(fitting, exact)
