"""Choose patch and width of the network: the largest that memory holds and the time trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config.settings import ConfigError
from pipeline.console.text import gigabytes
from pipeline.planning.machine import Cost, Machine
from pipeline.planning.network_shape import Triple, network_shape, target_spacing, triple
from pipeline.planning.patch_sizes import multiple_of, patch_around, scaled, shorter_ones
from pipeline.planning.stages import GROWTH, Cases, Schedule, Stage, growing, least_seconds, make_schedule
from transforms.io.limits import MAX_VOXELS
from transforms.resize import align_to_spacing

START_S = 15.0
"""Seconds that starting a training and checking remembered cases take."""

TRAINING_SHARE = 0.85
"""Share of the other time that is left for training: checking, preparing and a slower moment need the rest."""

MEMORY_SHARE = 0.8
"""Share of the memory that a step may take."""

NARROW = 16
"""Channels at full resolution of a network for short budgets; multiples of 16 are fast."""

WIDE_STEPS = 8000
"""Steps from which on a network of twice the channels is worth its time."""

MOST_STEPS = 5
"""Halvings that BodyNet has at most."""

PROBE_VOXELS = 64**3
"""Voxels of the larger measured patch at most: what larger ones take follows from it."""

Measure = Callable[[Sequence[tuple[Triple, int]], Sequence[Triple], Sequence[Triple], int], Cost]
"""Measures steps of (patch, batch) pairs with a network of these strides, kernels and base channels."""


@dataclass(frozen=True)
class DataSummary:
    """What a plan needs to know of a data set; axes are left-right, back-front, foot-head."""

    sizes: tuple[Triple, ...]
    """Voxels of each case."""
    spacings_mm: tuple[tuple[float, float, float], ...]
    """Voxel sizes of each case."""
    n_train: int
    n_val: int
    n_channels: int
    class_names: tuple[str, ...]
    """Background first."""
    mirrors: bool
    """Whether scans may be mirrored left to right."""


@dataclass(frozen=True)
class Grid:
    """A data set at one voxel size, and the network for it."""

    spacing_mm: tuple[float, float, float]
    cases: Cases
    median: Triple
    """Voxels of the median case."""
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]

    @property
    def multiple(self) -> Triple:
        """What the edges of a patch are multiples of."""
        return multiple_of(self.strides)

    @property
    def whole(self) -> Triple:
        """The patch that holds the median case."""
        return patch_around(self.median, self.multiple)

    def probes(self) -> list[tuple[Triple, int]]:
        """Two steps, patch and batch, that the cost of all others follows from."""
        patches = shorter_ones(self.whole, self.median, self.multiple)
        large = next((patch for patch in patches if math.prod(patch) <= PROBE_VOXELS), self.smallest())
        small = scaled(large, GROWTH[0], self.multiple)
        return [(small, 2) if small != large else (large, 1), (large, 2)]

    def smallest(self) -> Triple:
        """The smallest patch."""
        *_, last = shorter_ones(self.whole, self.median, self.multiple)
        return last


@dataclass(frozen=True)
class Choice:
    """What was chosen."""

    grid: Grid
    base_channels: int
    cost: Cost
    schedule: Schedule

    @property
    def peak_bytes(self) -> float:
        """Memory of the training at its peak."""
        return _peak_bytes(self.cost, self.schedule.stages)


def choose(data: DataSummary, machine: Machine, budget_s: float, measure: Measure) -> Choice:
    """Choose for a training that ends within `budget_s`, validations included.

    Raises:
        ConfigError: not even the smallest patch fits the memory, or can be trained and validated in the time.
    """
    training_s = TRAINING_SHARE * (budget_s - START_S)
    grid = grid_of(data, target_spacing(data.sizes, data.spacings_mm))
    cost = measure(grid.probes(), grid.strides, grid.kernels, NARROW)
    schedule = _largest(grid, cost, machine, training_s)
    if schedule is None:
        raise _refusal(grid, cost, machine)
    if schedule.n_steps >= 4 * WIDE_STEPS:
        wide = measure(grid.probes(), grid.strides, grid.kernels, 2 * NARROW)
        wider = _largest(grid, wide, machine, training_s)
        if wider is not None:
            return Choice(grid, 2 * NARROW, wide, wider)
    return Choice(grid, NARROW, cost, schedule)


def grid_of(data: DataSummary, spacing_mm: tuple[float, float, float]) -> Grid:
    """The data set at a voxel size."""
    volumes = zip(data.sizes, data.spacings_mm, strict=True)
    sizes = [triple(align_to_spacing(size, mm, spacing_mm).target_size) for size, mm in volumes]
    median = triple(np.median(sizes, axis=0))
    shape = network_shape(median, spacing_mm)
    strides = shape.strides[:MOST_STEPS]
    cases = Cases(tuple(sizes), data.n_train, data.n_val)
    return Grid(spacing_mm, cases, median, strides, (*shape.kernels[: len(strides)], (3, 3, 3)))


def _candidates(grid: Grid, cost: Cost, machine: Machine) -> Iterator[tuple[Stage, ...]]:
    """The stages towards each patch that memory holds, largest first; of two patches over all processes if it can."""
    for batch in dict.fromkeys((max(1, 2 // cost.n_processes), 1)):
        held = False
        for patch in shorter_ones(grid.whole, grid.median, grid.multiple):
            stages = growing(patch, batch, grid.multiple)
            if math.prod(patch) <= MAX_VOXELS and _peak_bytes(cost, stages) <= MEMORY_SHARE * machine.memory_bytes:
                held = True
                yield stages
        if held:
            return


def _peak_bytes(cost: Cost, stages: Sequence[Stage]) -> float:
    return max(cost.peak_bytes(stage.patch, stage.batch) for stage in stages)


def _largest(grid: Grid, cost: Cost, machine: Machine, training_s: float) -> Schedule | None:
    """The schedule of the largest patch for which the time suffices."""
    schedules = (make_schedule(cost, stages, grid.cases, training_s) for stages in _candidates(grid, cost, machine))
    return next((schedule for schedule in schedules if schedule is not None), None)


def _refusal(grid: Grid, cost: Cost, machine: Machine) -> ConfigError:
    """What is missing: memory for the smallest patch, or time for any that memory holds."""
    candidates = list(_candidates(grid, cost, machine))
    if not candidates:
        needed = cost.peak_bytes(grid.smallest(), 1) / MEMORY_SHARE
        size = " × ".join(map(str, grid.smallest()))
        return ConfigError(
            f"--memory: expected {gigabytes(needed, 1)} at least, since a step on the smallest patch ({size} voxels) "
            f"may take {MEMORY_SHARE:.0%} of it, found {gigabytes(machine.memory_bytes, 1)}; use a machine with more"
        )
    least_s = min(least_seconds(cost, stages, grid.cases) for stages in candidates)
    minutes = math.ceil((least_s / TRAINING_SHARE + START_S) / 60)
    return ConfigError(
        f"--budget: expected {minutes} minutes at least, since this machine takes so long for the shortest training "
        f"and one validation of {grid.cases.n_val} cases; say --budget {minutes}min or more"
    )
