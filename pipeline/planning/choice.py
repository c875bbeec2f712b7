"""Choose voxel size, patch and width of the network: the finest and largest that memory holds and the time trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from pipeline.config.settings import ConfigError
from pipeline.console.text import gigabytes
from pipeline.planning.machine import Cost, Machine
from pipeline.planning.network_shape import Triple, network_shape, target_spacing, triple
from pipeline.planning.patch_sizes import multiple_of, patch_around, scaled, shorter_ones
from pipeline.planning.stages import (
    GROWTH,
    VALIDATION_SHARE,
    Cases,
    Schedule,
    Stage,
    growing,
    least_seconds,
    make_schedule,
)
from transforms.io.limits import MAX_VOXELS
from transforms.resize import align_to_spacing

TRAINING_SHARE = 0.93
"""Share of the time after starting and preparing in which steps and validations fit: a slower moment needs the rest.

With 0.95 a training of half an hour on two CPU cores ended after 1795 s."""

MEMORY_SHARE = 0.8
"""Share of the memory that training may take. On a CPU it comes to hold a little more than follows from the measured
steps: 1.48 GB for 1.41 with patches of 128×128×96 voxels, 3.16 for 3.00 with 160×160×160 (20 classes)."""

NARROW = 16
"""Channels at full resolution of a network for short budgets; multiples of 16 are fast."""

WIDE_STEPS = 8000
"""Steps from which on a network of twice the channels is worth its time."""

WIDE_VOXELS = 96**3
"""Voxels of a patch that are not given up for a wider network."""

MOST_HALVINGS = 5
"""Halvings that BodyNet has at most."""

PROBE_VOXELS = 64**3
"""Voxels of the larger measured patch at most: what larger ones take follows from it."""

LEAST_STEPS_IN_ALL = 300
"""Steps that a training takes at least, whatever its classes: 230 to 400 already segment the two of a hippocampus."""

STEPS_A_CLASS = 20
"""Steps that a training takes for each class at least: 780 segment the 37 of a mouse brain, 135 do not."""

PATCH_SHARE = 0.25
"""Least share of the median case in a patch, where memory holds as much (nnU-Net's rule for a coarser resolution)."""

COARSER = 2 ** (1 / 6)
"""Ratio of one voxel size that is tried to the one before."""

COARSE_EDGE = 32
"""Voxels of the median case that are left along every axis that is made coarser."""

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
    is_split: bool
    """Whether the data set brings its own division."""
    n_channels: int
    class_names: tuple[str, ...]
    """Background first."""
    mirrors: bool
    """Whether scans may be mirrored left to right."""
    preparing_s: float = 0.0
    """Seconds of preparing all cases before a training."""


@dataclass(frozen=True)
class Grid:
    """A data set at one voxel size, and the network for it."""

    times_coarser: float
    """Than the median voxel size, along the axis that is made coarser first."""
    spacing_mm: tuple[float, float, float]
    cases: Cases
    median: Triple
    """Voxels of the median case."""
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]

    @property
    def network(self) -> tuple[tuple[Triple, ...], ...]:
        """What the cost of a voxel follows from."""
        return self.strides, self.kernels

    @property
    def multiple(self) -> Triple:
        """What the edges of a patch are multiples of."""
        return multiple_of(self.strides)

    @property
    def whole(self) -> Triple:
        """The patch that holds the median case."""
        return patch_around(self.median, self.multiple)

    def measured(self, measure: Measure, base_channels: int) -> Cost:
        """What training takes here."""
        cost = measure(self.probes(), self.strides, self.kernels, base_channels)
        return replace(cost, n_features=base_channels)

    def probes(self) -> list[tuple[Triple, int]]:
        """Steps, patch and batch, that the cost of all others follows from, cheapest first."""
        patches = shorter_ones(self.whole, self.median, self.multiple)
        large = next((patch for patch in patches if math.prod(patch) <= PROBE_VOXELS), self.smallest())
        small = scaled(large, GROWTH[0], self.multiple)
        if small == large:
            return [(large, 1), (large, 2)]
        more = min(8, 2 * math.prod(large) // math.prod(small))  # patches with no more voxels than the last step's
        return [(small, 2), *([(small, more)] if more > 2 else []), (large, 2)]

    def smallest(self) -> Triple:
        """The smallest patch."""
        *_, last = shorter_ones(self.whole, self.median, self.multiple)
        return last


@dataclass(frozen=True)
class Choice:
    """What was chosen."""

    grid: Grid
    wanted_steps: int
    """Steps that a training of these classes should take, see `STEPS_A_CLASS`."""
    base_channels: int
    cost: Cost
    schedule: Schedule

    @property
    def peak_bytes(self) -> float:
        """Memory of the training at its peak."""
        return _peak_bytes(self.grid, self.cost, self.schedule.stages)


def choose(data: DataSummary, machine: Machine, budget_s: float, measure: Measure) -> Choice:
    """Choose for a training that ends within `budget_s`, validations included.

    Raises:
        ConfigError: not even the smallest patch fits the memory, or can be trained and validated in the time.
    """
    training_s = TRAINING_SHARE * (budget_s - machine.start_s - data.preparing_s)
    wanted = max(LEAST_STEPS_IN_ALL, STEPS_A_CLASS * len(data.class_names))
    grid, cost, schedule = _finest(data, machine, training_s, wanted, measure)
    if schedule is None:
        raise _refusal(grid, cost, machine, data.preparing_s)
    if schedule.n_steps >= 4 * WIDE_STEPS:
        wide = grid.measured(measure, 2 * NARROW)
        wider = _largest(grid, wide, machine, training_s, wanted)
        if wider is not None and wider.n_voxels >= min(schedule.n_voxels, WIDE_VOXELS):
            return Choice(grid, wanted, 2 * NARROW, wide, wider)
    return Choice(grid, wanted, NARROW, cost, schedule)


def _finest(
    data: DataSummary, machine: Machine, training_s: float, wanted: int, measure: Measure
) -> tuple[Grid, Cost, Schedule | None]:
    """The finest voxel size at which the time holds the wanted steps, else the coarsest with what can be trained."""
    grids = _grids(data)
    first = measured = next(grids)
    cost = first.measured(measure, NARROW)
    for grid in chain([first], grids):
        schedule = _largest(grid, cost, machine, training_s, wanted)
        if schedule is not None and grid.network != measured.network:  # a step of this network may take longer
            measured, cost = grid, grid.measured(measure, NARROW)
            schedule = _largest(grid, cost, machine, training_s, wanted)
        if schedule is not None:
            return grid, cost, schedule
    if grid.network != measured.network:
        cost = grid.measured(measure, NARROW)
    return grid, cost, _largest(grid, cost, machine, training_s)


def _grids(data: DataSummary) -> Iterator[Grid]:
    """The data set at its median voxel size, then at coarser ones: first along axes that are twice as fine as another.

    As nnU-Net finds its low resolution, in larger steps.
    """
    spacing = np.array(target_spacing(data.sizes, data.spacings_mm))
    times = 1.0
    while True:
        grid = grid_of(data, spacing, times)
        yield grid
        axes = spacing < spacing.max() / 2
        axes = axes if axes.any() else np.array([True] * 3)
        if min(np.array(grid.median)[axes]) / COARSER < COARSE_EDGE:
            return
        spacing, times = np.where(axes, spacing * COARSER, spacing), times * COARSER


def grid_of(data: DataSummary, spacing_mm: Iterable[float], times_coarser: float = 1.0) -> Grid:
    """The data set at a voxel size, in six digits."""
    i, j, k = (float(f"{mm:.6g}") for mm in spacing_mm)
    volumes = list(zip(data.sizes, data.spacings_mm, strict=True))
    sizes_of = {volume: triple(align_to_spacing(*volume, (i, j, k)).target_size) for volume in set(volumes)}
    sizes = [sizes_of[volume] for volume in volumes]
    median = triple(np.median(sizes, axis=0))
    shape = network_shape(median, (i, j, k))
    strides = shape.strides[:MOST_HALVINGS]
    kernels = (*shape.kernels[: len(strides)], (3, 3, 3))
    return Grid(
        times_coarser,
        (i, j, k),
        Cases(tuple(sizes), data.n_train, data.n_val, data.n_channels),
        median,
        strides,
        kernels,
    )


def _candidates(grid: Grid, cost: Cost, machine: Machine) -> Iterator[tuple[Stage, ...]]:
    """The stages towards each patch that memory holds, largest first; of two patches over all processes if it can."""
    most_bytes = MEMORY_SHARE * machine.memory_bytes
    for batch in dict.fromkeys((max(1, 2 // cost.n_processes), 1)):
        held = False
        for patch in shorter_ones(grid.whole, grid.median, grid.multiple):
            stages = growing(patch, batch, grid.multiple)
            if math.prod(patch) <= MAX_VOXELS and _peak_bytes(grid, cost, stages) <= most_bytes:
                held = True
                yield stages
        if held:
            return


def _peak_bytes(grid: Grid, cost: Cost, stages: Sequence[Stage]) -> float:
    """Of the largest step and the largest validation, in all processes together."""
    validation_bytes = cost.fixed_bytes + grid.cases.validation_bytes(stages[-1].patch, cost.n_features)
    return max(cost.n_processes * validation_bytes, *(cost.peak_bytes(stage.patch, stage.batch) for stage in stages))


def _largest(grid: Grid, cost: Cost, machine: Machine, training_s: float, wanted: int = 0) -> Schedule | None:
    """The schedule of the largest patch that the time trains; with `wanted`, for as many steps in all.

    Then one validation takes its share of the time at most, and the patch is not much smaller than memory allows.
    """
    most = 0
    for stages in _candidates(grid, cost, machine):
        n_voxels = math.prod(stages[-1].patch)
        most = most or n_voxels
        if wanted and n_voxels < PATCH_SHARE * most:
            return None
        schedule = make_schedule(cost, stages, grid.cases, training_s)
        if schedule is None or schedule.n_steps < wanted:
            continue
        if wanted and schedule.validations_s > VALIDATION_SHARE * training_s:
            continue
        return schedule
    return None


def _refusal(grid: Grid, cost: Cost, machine: Machine, preparing_s: float) -> ConfigError:
    """What is missing: memory for the smallest patch, or time for any that memory holds."""
    candidates = list(_candidates(grid, cost, machine))
    if not candidates:
        needed = _peak_bytes(grid, cost, growing(grid.smallest(), 1, grid.multiple)) / MEMORY_SHARE
        size = " × ".join(map(str, grid.smallest()))
        return ConfigError(
            f"--memory: expected {gigabytes(needed, 1)} at least, of which training on the smallest patches ({size} "
            f"voxels) may take {MEMORY_SHARE:.0%}, found {gigabytes(machine.memory_bytes, 1)}; raise it if the "
            "machine has more, else use another one"
        )
    least_s = min(least_seconds(cost, stages, grid.cases) for stages in candidates)
    minutes = math.ceil((least_s / TRAINING_SHARE + machine.start_s + preparing_s) / 60)
    return ConfigError(
        f"--budget: expected {minutes} minutes at least, since this machine takes so long for preparing the cases, the "
        f"shortest training and one validation of {grid.cases.n_val} cases; say --budget {minutes}min or more"
    )
