"""What a first training on a data set could be: a target size for its whole scans, and what that costs here."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.checks.findings import Finding
from pipeline.checks.screening import Screened, assess
from pipeline.compute.devices import choose_devices
from pipeline.config.settings import Config, DataConfig
from pipeline.console.progress import Progress, one_step
from pipeline.planning.data_settings import DESCRIBING, described
from pipeline.planning.network_shape import Triple
from pipeline.planning.target_size import TargetSuggestion, suggest_target_size
from pipeline.training.cost import Estimate, Trial, after_ten_steps, estimate_training, less_memory
from pipeline.training.step_times import StepRequest, StepTime, measure_steps

SMALL: Triple = (32, 32, 32)
LEAST: Triple = (48, 48, 48)
MOST: Triple = (96, 96, 96)
"""The largest volume that is measured, in seconds on a CPU. Of much smaller ones the weights take as much memory as the
voxels, so that the line through two of them told the memory of whole bodies a fifth too high or too low."""


@dataclass(frozen=True)
class FirstTraining:
    """A training of the default network on whole scans at a suggested size."""

    target: TargetSuggestion
    lost: str
    """Which classes are likely to vanish at that size, in words; "" for none."""
    estimate: Estimate
    shortages: tuple[Finding, ...]
    """What this machine lacks for it."""
    dataset_roots: tuple[str, ...]
    data_settings: dict[str, Any]
    """What was said about these data sets, see `described`: the training and its plan need it, too."""
    has_other_settings: bool
    """Whether further settings of the data were given, which the training needs, too."""


def suggest_training(
    config: Config,
    screened: Screened,
    *,
    given: Collection[str] = (),
    measure: bool = True,
    progress: Progress | None = None,
) -> FirstTraining | None:
    """Suggest a first training; None where no image could be read.

    Args:
        config: the settings, of which the target size is replaced.
        screened: the data set and what was found in it.
        given: see `described`.
        measure: take training steps on small patches, in a process of its own, for time and memory.
        progress: called before and after these steps.
    """
    roots = config.data.dataset_roots
    data_settings = described(config.data, given)
    data_settings.pop("sided_pairs", None)  # goes with data.flips, which is one of the others
    others = replace(config.data, **{name: getattr(DataConfig, name) for name in DESCRIBING})
    has_other_settings = others != DataConfig(config.data.dataset_root)
    images = [case.images[0] for case in screened.cases if case.images]
    if not images:
        return None
    target = suggest_target_size([image.world_size for image in images], [image.world_spacing_mm for image in images])
    config = replace(config, data=replace(config.data, target_size=target.size))
    trial, too_large = _trial(config, screened, progress) if measure else (None, None)
    estimate, shortages = estimate_training(config, screened, trial)
    if too_large is not None and all(finding.kind != "memory" for finding in shortages):
        shortages = (*shortages, _not_measured(too_large, config))
    found = assess(config, screened.dataset, screened.cases).findings
    lost = next((finding.found for finding in found if finding.kind == "class_lost"), "")
    return FirstTraining(target, lost, estimate, shortages, roots, data_settings, has_other_settings)


def probes(target: Triple) -> tuple[tuple[Triple, int], ...]:
    """The volumes and batches whose steps are measured, the last of them the target size itself where it can be.

    One between the first and the last is there for a machine whose memory does not hold the last.

    >>> [patch for patch, _ in probes((160, 160, 256))], [patch for patch, _ in probes((40, 40, 40))]
    ([(32, 32, 32), (48, 48, 48), (96, 96, 96)], [(32, 32, 32), (48, 48, 48)])
    """
    large = sorted((LEAST, target, MOST), key=math.prod)[1]
    return tuple((patch, 1) for patch in dict.fromkeys((SMALL, LEAST, large)))


def _not_measured(patch: Triple, config: Config) -> Finding:
    expected = f"memory for a training step of {'×'.join(map(str, patch))} voxels"
    found = "a process that ended before it"
    return Finding("warning", "memory", "", "trial step", expected, found, less_memory(config))


def _trial(config: Config, screened: Screened, progress: Progress | None) -> tuple[Trial | None, Triple | None]:
    """What a step takes, None where not even two were measured; and the first volume that was too large, if any."""
    training = config.training
    steps = probes(config.data.target_size)
    request = StepRequest(
        network={},
        in_channels=len(screened.dataset.channel_names),
        n_classes=len(screened.dataset.classes.names),
        base_channels=config.model.base_channels,
        precision=training.precision,
        n_gpus=training.n_gpus,
        steps=steps,
    )
    with one_step(progress, "measuring training steps"):
        measured = measure_steps(request)
    too_large = steps[len(measured)][0] if len(measured) < len(steps) else None
    if len(measured) < 2:
        return None, too_large
    devices = choose_devices(training.n_gpus, training.n_processes, training.precision)
    name = "the GPU" if devices.accelerator == "gpu" else "the CPU"
    trial = trial_of(measured, config.data.target_size, config.data.batch_size, name, devices.precision)
    return after_ten_steps(trial, devices.accelerator), too_large


def trial_of(measured: Sequence[StepTime], size: Triple, batch: int, device: str, precision: str) -> Trial:
    """What a step of one process takes at a size and batch, on the line through the first and the last measured."""
    small, large = measured[0], measured[-1]
    small_voxels, large_voxels = (math.prod(one.patch) * one.batch for one in (small, large))
    voxels = math.prod(size)

    def at(n_voxels: int, at_small: float, at_large: float) -> float:
        slope = max(0.0, (at_large - at_small) / (large_voxels - small_voxels))
        return max(at_small * min(1.0, n_voxels / small_voxels), at_small + slope * (n_voxels - small_voxels))

    return Trial(
        step_s=at(batch * voxels, small.all_threads[0], large.all_threads[0]),
        validation_s=at(voxels, small.all_threads[1], large.all_threads[1]),
        peak_bytes=int(at(batch * voxels, small.peak_bytes, large.peak_bytes)),
        device=device,
        precision=precision,
    )
