"""Plan a training from the data set, the machine and the time at hand.

Every number that is chosen comes with its reason. Patches grow while a network trains (Fischer et al. 2024,
arXiv:2407.07853 and 2510.23241): most steps are taken on small patches, where a step costs little, and the last ones on
the patch that the network is used with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.planning.epochs import n_batches
from pipeline.planning.network_shape import Triple, network_shape, target_spacing, triple

LEAST_STEPS = 40
"""Steps that the largest patch must be trained for within its share of the time."""

GROWTH = (0.4, 0.6, 0.8, 1.0)
"""Edge of the patch in each share of the time, as a share of the final edge."""

BATCH_EXPONENT = 0.6
"""How the batch grows as patches get smaller: with less than the ratio of the voxels, for more steps."""

MEMORY_SHARE = 0.8
"""Share of the memory that a step may take."""

TRAINING_SHARE = 0.85
"""Share of the time that is left for training: starting, checking, preparing and a slower moment need the rest."""

VALIDATION_SHARE = 0.1
"""Share of the training time that validation may take."""

N_EPOCHS = 100
"""About as many points as the curves of a training should have."""

NARROW = 16
"""Channels at full resolution of a network for short budgets; multiples of 16 are fast."""

WIDE_STEPS = 8000
"""Steps from which on a network of twice the channels is worth its time."""

MOST_STEPS = 5
"""Halvings that BodyNet has at most."""

PROBE_VOXELS = 64**3
"""Voxels of the larger measured patch at most: what larger ones take follows from it."""

WINDOW_PASSES = 3
"""How often a voxel of a validation case goes through the network: windows overlap by half."""

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4
WARMUP_SHARE = 0.07


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
class Machine:
    """What a plan needs to know of the machine."""

    accelerator: str
    """"cpu" or "gpu"."""
    n_cores: int
    memory_bytes: int


@dataclass(frozen=True)
class Cost:
    """What a step of one process takes, as a line through two measured points."""

    fixed_s: float
    voxel_s: float
    fixed_bytes: float
    voxel_bytes: float
    forward_voxel_s: float
    """Seconds of a forward pass for one voxel."""
    n_processes: int
    """Processes that train together on this machine."""

    def step_s(self, patch: Sequence[int], batch: int) -> float:
        """Seconds of a step."""
        return self.fixed_s + self.voxel_s * math.prod(patch) * batch

    def peak_bytes(self, patch: Sequence[int], batch: int) -> float:
        """Memory of a step in all processes together."""
        return (self.fixed_bytes + self.voxel_bytes * math.prod(patch) * batch) * self.n_processes


@dataclass(frozen=True)
class Stage:
    """A share of the training with one patch."""

    patch: Triple
    batch: int
    """Patches in a batch of each process."""
    epochs: int


@dataclass
class Plan:
    """Settings of a training with the reason for each, and what it will take."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By group and key, as a config file has them."""
    because: dict[str, str] = field(default_factory=dict)
    """Reason by "group.key"."""
    expected_s: float = 0.0
    """Seconds of the training."""
    expected_bytes: float = 0.0
    """Memory at its peak."""

    def put(self, name: str, value: Any, because: str) -> None:
        """Set "group.key"."""
        group, key = name.split(".")
        self.settings.setdefault(group, {})[key] = value
        self.because[name] = because


def make_plan(
    data: DataSummary,
    machine: Machine,
    budget_s: float,
    measure: Callable[[Sequence[tuple[Triple, int]], Sequence[Triple], Sequence[Triple], int], Cost],
) -> Plan:
    """Choose spacing, patch, batch, network and schedule so that the whole training ends within the budget.

    Args:
        data: the data set.
        machine: the machine.
        budget_s: seconds from the start of the training to its end.
        measure: measures steps of (patch, batch) pairs with a network of these strides, kernels and base channels.

    Returns:
        The plan.
    """
    spacing = target_spacing(data.sizes, data.spacings_mm)
    sizes = np.round(np.array(data.sizes) * np.array(data.spacings_mm) / spacing)
    median = triple(np.median(sizes, axis=0))
    shape = network_shape(median, spacing)
    strides = shape.strides[:MOST_STEPS]
    kernels = (*shape.kernels[: len(strides)], (3, 3, 3))
    multiple = _multiple(strides)
    whole = _rounded(median, multiple)
    probe = _shrunk_to(whole, multiple, PROBE_VOXELS)
    smaller = _scaled(probe, GROWTH[0], multiple)
    probes = [(smaller, 2) if smaller != probe else (probe, 1), (probe, 2)]
    channels = NARROW
    cost = measure(probes, strides, kernels, channels)
    training_s = budget_s * TRAINING_SHARE
    patch = _affordable(whole, median, multiple, cost, training_s, machine.memory_bytes)
    batch = max(1, 2 // cost.n_processes)
    if _n_steps(cost, patch, batch, multiple, training_s) >= 4 * WIDE_STEPS:
        channels = 2 * NARROW
        cost = measure(probes, strides, kernels, channels)
    schedule = _schedule(cost, patch, batch, multiple, training_s, data.n_train)
    validation_s = (
        data.n_val * float(np.median(sizes.prod(1))) * cost.forward_voxel_s * WINDOW_PASSES / cost.n_processes
    )
    every = max(1, math.ceil(schedule.epochs * validation_s / (VALIDATION_SHARE * training_s)))
    per_epoch = n_batches(data.n_train, schedule.patches_per_case, batch, cost.n_processes)
    plan = Plan(
        expected_s=sum(s.epochs * per_epoch * cost.step_s(s.patch, s.batch) for s in schedule.stages)
        + schedule.epochs / every * validation_s,
        expected_bytes=cost.peak_bytes(patch, batch),
    )
    plan.put("data.mode", "patch", "cases keep their own resolution")
    plan.put("data.spacing_mm", [round(mm, 4) for mm in spacing], "median voxel size (nnU-Net's rule)")
    size = "median case" if patch == whole else "largest that this machine and the time allow"
    plan.put("data.target_size", list(patch), f"{size}, rounded up to what the strides divide")
    plan.put("data.batch_size", batch, "two of the largest patches over all processes")
    growth = [[*stage.patch, stage.batch, stage.epochs] for stage in schedule.stages[:-1]]
    plan.put("data.patch_growth", growth, "small patches first, in equal shares of the time: patch, batch, epochs")
    plan.put("data.patches_per_case", schedule.patches_per_case, f"about {N_EPOCHS} epochs in all")
    plan.put("data.split_shares", [90, 10, 0], "no case is left out for a test: evaluate on other data")
    plan.put("data.data_aug", True, "varied patches")
    plan.put("data.flips", [0] if data.mirrors else [], _why_flips(data))
    workers = 0 if machine.accelerator == "cpu" else machine.n_cores
    plan.put("data.num_workers", workers, "the cores that do not train")
    plan.put("model.base_channels", channels, f"{2 * NARROW} where there is time for {WIDE_STEPS} steps of them")
    network = {"_target_": "networks.body_net.BodyNet", "strides": _lists(strides), "kernels": _lists(kernels)}
    plan.put("model.network", network, "an axis is halved while it has 8 voxels (nnU-Net's rule)")
    plan.put("training.max_epochs", schedule.epochs, f"{budget_s / 60:.3g} minutes, less what starting takes")
    plan.put("training.lr", LEARNING_RATE, "for short schedules of AdamW")
    plan.put("training.weight_decay", WEIGHT_DECAY, "as nnU-Net and its followers have it")
    plan.put("training.warmup_epochs", max(1, round(WARMUP_SHARE * schedule.epochs)), "7 % of the epochs")
    plan.put("training.validate_every", every, "validation takes a tenth of the time at most")
    if machine.accelerator == "cpu":
        because = "as many processes of one thread, or one process with all threads: measured"
        plan.put("training.n_gpus", 0, "this machine has none")
        plan.put("training.n_processes", cost.n_processes, because)
    return plan


def _affordable(
    patch: Triple, median: Triple, multiple: Triple, cost: Cost, training_s: float, memory_bytes: int
) -> Triple:
    """The largest patch, by steps from the whole median case, that memory allows and that time allows enough steps."""
    while True:
        too_large = cost.peak_bytes(patch, 1) > MEMORY_SHARE * memory_bytes
        too_slow = training_s / len(GROWTH) / cost.step_s(patch, 1) < LEAST_STEPS
        shorter = _shorten(patch, median, multiple)
        if not (too_large or too_slow) or shorter is None:
            return patch
        patch = shorter


@dataclass(frozen=True)
class _Schedule:
    stages: tuple[Stage, ...]
    patches_per_case: float

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(stage.epochs for stage in self.stages)


def _schedule(cost: Cost, patch: Triple, batch: int, multiple: Triple, training_s: float, n_train: int) -> _Schedule:
    """Stages of equal time."""
    shapes = list(dict.fromkeys(_scaled(patch, share, multiple) for share in GROWTH))
    time_s = training_s * (1 - VALIDATION_SHARE) / len(shapes)
    batches = [_batch(shape, patch, batch) for shape in shapes]
    steps = [time_s / cost.step_s(shape, size) for shape, size in zip(shapes, batches, strict=True)]
    patches_per_case = sum(steps) / N_EPOCHS / (n_train / (batch * cost.n_processes))
    patches_per_case = round(patches_per_case) if patches_per_case >= 1 else max(0.01, round(patches_per_case, 2))
    per_epoch = n_batches(n_train, patches_per_case, batch, cost.n_processes)
    epochs = [max(1, round(n / per_epoch)) for n in steps]
    stages = [Stage(shape, size, n) for shape, size, n in zip(shapes, batches, epochs, strict=True)]
    return _Schedule(tuple(stages), patches_per_case)


def _n_steps(cost: Cost, patch: Triple, batch: int, multiple: Triple, training_s: float) -> float:
    stages = [_scaled(patch, share, multiple) for share in GROWTH]
    return sum(training_s / len(GROWTH) / cost.step_s(stage, _batch(stage, patch, batch)) for stage in stages)


def _batch(stage: Sequence[int], patch: Sequence[int], batch: int) -> int:
    return max(batch, round(batch * (math.prod(patch) / math.prod(stage)) ** BATCH_EXPONENT))


def _lists(triples: Sequence[Triple]) -> list[list[int]]:
    return [list(one) for one in triples]


def _multiple(strides: Sequence[Triple]) -> Triple:
    """Product of the strides along each axis."""
    return triple(np.prod(np.array(strides).reshape(-1, 3), axis=0)) if strides else (1, 1, 1)


def _rounded(size: Sequence[float], multiple: Sequence[int]) -> Triple:
    return triple(math.ceil(n / m) * m for n, m in zip(size, multiple, strict=True))


def _scaled(patch: Sequence[int], share: float, multiple: Sequence[int]) -> Triple:
    """The patch with edges of about that share, two strides' products long at least where the patch is."""
    return triple(min(n, max(min(n, 2 * m), round(n * share / m) * m)) for n, m in zip(patch, multiple, strict=True))


def _shrunk_to(patch: Triple, multiple: Triple, voxels: int) -> Triple:
    while math.prod(patch) > voxels:
        shorter = _shorten(patch, patch, multiple)
        if shorter is None:
            break
        patch = shorter
    return patch


def _shorten(patch: Triple, median: Sequence[int], multiple: Triple) -> Triple | None:
    """The patch one step shorter along the axis that covers most of the median case; None where no axis can be."""
    axes = [axis for axis in range(3) if patch[axis] > 2 * multiple[axis]]
    if not axes:
        return None
    longest = max(axes, key=lambda axis: (patch[axis] / median[axis], patch[axis]))
    return triple(n - multiple[axis] if axis == longest else n for axis, n in enumerate(patch))


def _why_flips(data: DataSummary) -> str:
    if data.mirrors:
        return (
            "few structures, and none without its partner on the other side; [] if a name means a side that is not seen"
        )
    return "a body is no mirror image of itself"
