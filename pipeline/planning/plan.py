"""Plan a training from the data set, the machine and the time at hand.

Every number that is chosen comes with its reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from networks import BODY_NET
from pipeline.planning.choice import (
    NARROW,
    TRAINING_SHARE,
    WIDE_STEPS,
    Choice,
    DataSummary,
    Measure,
    choose,
)
from pipeline.planning.epochs import n_validations
from pipeline.planning.machine import Machine
from pipeline.planning.stages import VALIDATION_SHARE

SPLIT_SHARES = (90.0, 10.0, 0.0)
"""Percent of the cases for training, validation and test, where the data set has no split of its own."""

LEARNING_RATE = 0.016
"""Of Muon. Mean Dice of 24 held-out cases after 476 steps on the hippocampus: 0.876, 0.877, 0.881, 0.881 and 0.882 with
0.004, 0.008, 0.016, 0.032 and 0.064 (one seed); AdamW 0.859 with 0.002, 0.865 with 0.008, 0.864 with 0.016."""
WEIGHT_DECAY = 0.1
"""A step takes this times the learning rate off the weights. With 0.1 and 0.3 trainings on 96 cases of the hippocampus
ended 0.003 to 0.006 Dice above those with 1e-4, whose steps take off next to nothing (AdamW)."""
WARMUP_SHARE = 0.07

STRONGER = {"rotation_deg": 25.0, "scale": 0.3, "spatial_probability": 0.9, "intensity_probability": 0.3}
"""Strengths (`transforms.augment.Strengths`) where a training shows the voxels of its cases often."""
OFTEN = 60
"""How often that is. With 86 cases of the hippocampus, mean Dice of 24 others: shown 82 times 0.888, and 0.887 with the
default strengths, shown 156 times 0.887 and 0.884. There the training loss ended at 0.115 and 0.092, the validation's
at 0.116 and 0.122."""


@dataclass
class Plan:
    """Settings of a training with the reason for each, and what it will take."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By group and key, as a config file has them."""
    because: dict[str, str] = field(default_factory=dict)
    """Reason by "group.key"."""
    expected_s: float = 0.0
    """Seconds of all steps and validations."""
    preparing_s: float = 0.0
    """Seconds of preparing the cases beforehand, where the cache does not hold them."""
    expected_bytes: float = 0.0
    """Memory at its peak."""
    warnings: list[str] = field(default_factory=list)
    """What to check before a training, a line each."""

    def put(self, name: str, value: Any, because: str) -> None:
        """Set "group.key"."""
        group, key = name.split(".")
        self.settings.setdefault(group, {})[key] = value
        self.because[name] = because


def make_plan(data: DataSummary, machine: Machine, budget_s: float, measure: Measure) -> Plan:
    """Choose spacing, patch, batch, network and schedule so that the whole training ends within the budget.

    Args:
        data: the data set.
        machine: the machine.
        budget_s: seconds from the start of the training to its end.
        measure: measures training steps on this machine.

    Returns:
        The plan.

    Raises:
        ConfigError: memory or time do not suffice for any, see `choose`.
    """
    choice = choose(data, machine, budget_s, measure)
    schedule = choice.schedule
    expected_s = schedule.steps_s + schedule.validations_s
    plan = Plan(expected_s=expected_s, preparing_s=data.preparing_s, expected_bytes=choice.peak_bytes)
    if schedule.n_steps < choice.wanted_steps:
        plan.warnings.append(
            f"the time is short: it holds {schedule.n_steps} steps, where {len(data.class_names)} classes need "
            f"{choice.wanted_steps}; the network will be a poor one, give it more time"
        )
    _put_data(plan, data, machine, choice)
    because = f"{2 * NARROW} where there is time for {WIDE_STEPS} steps of them"
    plan.put("model.base_channels", choice.base_channels, because)
    strides, kernels = ([list(each) for each in triples] for triples in (choice.grid.strides, choice.grid.kernels))
    network = {"_target_": BODY_NET, "strides": strides, "kernels": kernels}
    plan.put("model.network", network, "an axis is halved while it has 8 voxels (nnU-Net's rule)")
    because = (
        f"{schedule.n_steps} steps: what a budget of {budget_s / 60:.3g} min holds beside validations, "
        f"{machine.start_s:.0f} s for starting, {data.preparing_s:.0f} s for preparing cases, and "
        f"{1 - TRAINING_SHARE:.0%} for a slower moment"
    )
    plan.put("training.max_epochs", schedule.n_epochs, because)
    plan.put("training.optimizer", "muon", "on a hippocampus 580 steps of it did what took AdamW 1570")
    plan.put("training.lr", LEARNING_RATE, "0.008 to 0.064 differed little")
    because = "a step takes this times lr off the weights; 0.0001 overfitted, 0.3 did no better"
    plan.put("training.weight_decay", WEIGHT_DECAY, because)
    plan.put("training.warmup_epochs", max(1, round(WARMUP_SHARE * schedule.n_epochs)), "7 % of the epochs")
    n = n_validations(schedule.n_epochs, schedule.validate_every, schedule.epochs_of[:-1])
    because = (
        f"{n} validations, one a smaller patch at most, take {schedule.validations_s:.0f} s: up to "
        f"{VALIDATION_SHARE:.0%} of the time, or one in all"
    )
    plan.put("training.validate_every", schedule.validate_every, because)
    if machine.accelerator == "cpu":
        plan.put("training.n_gpus", 0, "this machine has none")
        plan.put("training.n_processes", choice.cost.n_processes, choice.cost.why_processes)
    return plan


def _put_data(plan: Plan, data: DataSummary, machine: Machine, choice: Choice) -> None:
    grid, schedule = choice.grid, choice.schedule
    final = schedule.stages[-1]
    plan.put("data.mode", "patch", "cases are resampled to spacing_mm, not to one size")
    plan.put("data.spacing_mm", list(grid.spacing_mm), _why_spacing(choice))
    size = "median case" if final.patch == grid.whole else "largest part of the median case that memory and time allow"
    limit = f"{choice.peak_bytes / machine.memory_bytes:.0%} of the memory at most"
    plan.put("data.target_size", list(final.patch), f"{size}, in multiples of what the strides divide; {limit}")
    together = final.batch * choice.cost.n_processes
    because = f"{together} of the largest patches in a step of all processes: few, for more steps"
    plan.put("data.batch_size", final.batch, because)
    stages = zip(schedule.stages, schedule.epochs_of, strict=True)
    growth = [[*stage.patch, stage.batch, epochs] for stage, epochs in stages][:-1]
    because = "patch, batch and epochs: small patches first, where a step costs little, in equal shares of the time"
    plan.put("data.patch_growth", growth, because)
    because = f"{schedule.n_batches} steps an epoch, for {schedule.n_epochs} epochs in all"
    plan.put("data.patches_per_case", schedule.patches_per_case, because)
    if not data.is_split:
        because = "no case is left out for a test: evaluate on other data"
        plan.put("data.split_shares", list(SPLIT_SHARES), because)
    plan.put("data.data_aug", True, "patches are turned, scaled and shaded at random, so that few cases show more")
    shown = _times_shown(data, choice)
    if shown >= OFTEN:
        because = f"more than by default: voxels are shown {shown:.0f} times, and a network would learn them by heart"
        plan.put("data.augmentation", dict(STRONGER), because)
    plan.put("data.flips", [0] if data.mirrors else [], _why_flips(data))
    workers = 0 if machine.accelerator == "cpu" else machine.n_cores
    because = "every core trains" if workers == 0 else "one for each core, while the GPU trains"
    plan.put("data.num_workers", workers, because)


def _times_shown(data: DataSummary, choice: Choice) -> float:
    """How often the training shows a voxel of its cases."""
    schedule, sizes = choice.schedule, choice.grid.cases.sizes
    shown = 0.0
    for stage, epochs in zip(schedule.stages, schedule.epochs_of, strict=True):
        # Where a patch is larger than a case, the rest of it shows nothing
        of_patch = fmean(math.prod(map(min, stage.patch, size)) for size in sizes)
        shown += epochs * schedule.n_batches * stage.batch * choice.cost.n_processes * of_patch
    return shown / (data.n_train * fmean(map(math.prod, sizes)))


def _why_spacing(choice: Choice) -> str:
    times = choice.grid.times_coarser
    if times == 1:
        return "median voxel size (nnU-Net's rule)"
    return (
        f"{times:.2f} times the median voxel size: at a finer one memory or time do not hold {choice.wanted_steps} "
        f"steps on a quarter of a case and, in {VALIDATION_SHARE:.0%} of it, a validation"
    )


def _why_flips(data: DataSummary) -> str:
    if data.mirrors:
        return (
            "few structures, and none without its partner on the other side; [] if a name means a side that is not seen"
        )
    return "a body is no mirror image of itself"
