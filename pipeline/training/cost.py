"""Estimate what a training costs on this machine: disk for the cache, memory and time from one trial step."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from networks.sliding_window import count_windows
from pipeline.cache.entry import CacheError, entry_bytes
from pipeline.cache.folder import ELSEWHERE, NEW_OR_OURS, cache_info, others_in
from pipeline.checks.case_check import CheckedCase
from pipeline.checks.findings import Finding
from pipeline.checks.screening import Screened
from pipeline.compute.devices import choose_devices
from pipeline.compute.measuring import run_measurement
from pipeline.compute.memory import memory_bytes, ran_out_of_memory
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config, DataConfig
from pipeline.console.text import BYTES_PER_GB, gigabytes, some_of
from pipeline.planning.epochs import n_validations
from pipeline.planning.network_shape import Triple, triple
from pipeline.training.patch_schedule import PatchSchedule
from transforms.resize import align_to_spacing

TIME_LIMIT_S = 1800.0
"""A step that takes longer is given up: hundreds of them make an epoch."""
HEADROOM = 0.9
"""Share of the memory that a training may take at its peak: the system and the loading of data need the rest."""
KEPT_SHARE = 0.15
"""How much more a training on a CPU holds after ten steps than after the few that are measured: memory that it frees is
kept in pieces that fit no longer. 8.11 GB after two steps became 9.39 at 160×160×256."""


@dataclass(frozen=True)
class Trial:
    """What one training step and one validation took."""

    step_s: float
    """Seconds of a training step (one batch): the fastest after the first, which warms up."""
    validation_s: float
    """Seconds of validating one case."""
    peak_bytes: int
    """Most memory in use: of the GPU where it trains, else of the process, once ten steps are taken."""
    device: str
    """The GPU's name, or the number of CPU threads."""
    precision: str
    """As Lightning calls it: "16-mixed", "bf16-mixed", "32-true"."""


@dataclass(frozen=True)
class Estimate:
    """What a training needs, and what the machine has."""

    cache_dir: str
    """Folder of the prepared cases."""
    cache_bytes: int
    """Size of all prepared cases of train and validation."""
    free_bytes: int
    """Bytes free on the disk of that folder."""
    held_bytes: int
    """Bytes that the folder holds already; entries of the same data and settings are used again."""
    memory_bytes: int
    """Memory of the device that trains."""
    n_val: int
    """Validation cases."""
    n_validations: int
    """Epochs that are validated."""
    steps_per_epoch: int
    """Training steps of each process in an epoch."""
    max_epochs: int
    epoch_s: float
    """Seconds of an epoch, mean over all: its steps and its share of the validations, without loading; 0 without a
    trial step."""
    peak_bytes: int
    """Most memory of all processes on a CPU, or of one GPU; 0 without a trial step."""
    trial: Trial | None
    """One measured step of one process; None where none was taken."""


def estimate_training(
    config: Config, screened: Screened, trial: Trial | None = None
) -> tuple[Estimate, tuple[Finding, ...]]:
    """Estimate disk, memory and time, and compare them with what the machine has.

    Args:
        config: the settings.
        screened: the data set; where it could not be divided, all cases train.
        trial: a measured step (see `measure_step`).

    Returns:
        The estimate, and a finding for each thing that this machine lacks.

    Raises:
        ConfigError: more GPUs are asked for than the machine has.
    """
    dataset, split = screened.dataset, screened.split
    n_train = len(split.train) if split else len(dataset.cases)
    n_val = len(split.val) if split else 0
    training = config.training
    devices = choose_devices(training.n_gpus, training.n_processes, training.precision)
    steps = math.ceil(n_train / (config.data.batch_size * devices.n_processes))
    windows, share = 1.0, 1.0
    growth: tuple[int, ...] = ()
    size: tuple[int, int, int] = config.data.target_size
    if sizes := _prepared_sizes(screened.cases, config.data):
        patches = PatchSchedule.from_settings(config.data)
        growth = patches.growth_epochs
        steps = patches.n_batches(n_train, devices.n_processes)
        share = patches.mean_voxels(training.max_epochs) / (math.prod(size) * config.data.batch_size)
        windows = fmean(count_windows(case, size) for case in sizes)
        size = (math.ceil(fmean(map(math.prod, sizes))), 1, 1)
    validated = n_validations(training.max_epochs, training.validate_every, growth)
    validation_share = math.ceil(n_val / devices.n_processes) * windows * validated / training.max_epochs
    bytes_a_case = entry_bytes(size, in_channels=len(dataset.channel_names), n_classes=len(dataset.classes.names))
    cache_dir = Path(config.data.cache_dir)
    estimate = Estimate(
        cache_dir=config.data.cache_dir,
        cache_bytes=(n_train + n_val) * bytes_a_case,
        free_bytes=_free_bytes(cache_dir),
        held_bytes=_held_bytes(cache_dir),
        memory_bytes=memory_bytes(devices.accelerator),
        n_val=n_val,
        n_validations=validated,
        steps_per_epoch=steps,
        max_epochs=training.max_epochs,
        epoch_s=steps * share * trial.step_s + validation_share * trial.validation_s if trial else 0.0,
        peak_bytes=trial.peak_bytes * (devices.per_machine if devices.accelerator == "cpu" else 1) if trial else 0,
        trial=trial,
    )
    return estimate, (*_shortages(estimate, config), *_other_folder(cache_dir))


def _prepared_sizes(cases: Sequence[CheckedCase], data: DataConfig) -> list[Triple]:
    """Voxels of each prepared case; none where all have the target size."""
    if data.mode == "resize":
        return []
    images = [case.images[0] for case in cases if case.images]
    grids = [align_to_spacing(image.world_size, image.world_spacing_mm, data.spacing_mm) for image in images]
    return [triple(grid.target_size) for grid in grids]


def _shortages(estimate: Estimate, config: Config) -> Iterator[Finding]:
    cache_limit_gb = config.data.cache_limit_gb
    needed = f"{gigabytes(estimate.cache_bytes)} for the prepared cases"
    if estimate.cache_bytes > estimate.free_bytes:
        # Whether what the cache holds is of this data and these settings shows only once every file is hashed.
        may_suffice = estimate.cache_bytes <= estimate.free_bytes + estimate.held_bytes
        found = f"{gigabytes(estimate.free_bytes)} free, and {gigabytes(estimate.held_bytes)} in the cache"
        remedy = "free the disk, or name another data.cache_dir"
        if may_suffice:
            remedy = f"unless the cache holds these cases already: {_pruning(estimate)}, or name another data.cache_dir"
        yield Finding("warning" if may_suffice else "error", "disk", "", estimate.cache_dir, needed, found, remedy)
    if 0 < cache_limit_gb * BYTES_PER_GB < estimate.cache_bytes:
        found = f"data.cache_limit_gb {cache_limit_gb:g}"
        yield Finding("error", "disk", "", estimate.cache_dir, needed, found, "raise or remove the limit")
    if estimate.trial and estimate.peak_bytes > HEADROOM * estimate.memory_bytes:
        expected = f"a peak of at most {gigabytes(HEADROOM * estimate.memory_bytes, 1)} ({HEADROOM:.0%} of the memory)"
        found = f"{gigabytes(estimate.peak_bytes, 1)} of all processes, estimated from trial steps"
        yield Finding("warning", "memory", "", estimate.trial.device, expected, found, less_memory(config))


def _other_folder(cache_dir: Path) -> Iterator[Finding]:
    with contextlib.suppress(OSError):  # it is to be made, or may not be read: its preparation says what is wrong
        if others := others_in(cache_dir):
            yield Finding("error", "cache", "", str(cache_dir), NEW_OR_OURS, some_of(others, 3), ELSEWHERE)


def _pruning(estimate: Estimate) -> str:
    """The command that frees as much as the prepared cases take in a cache that holds it, and what it removes."""
    kept_gb = (estimate.held_bytes + estimate.free_bytes - estimate.cache_bytes) / BYTES_PER_GB
    command = f"bodyseg cache prune --cache_dir {shlex.quote(estimate.cache_dir)} --max_gb {math.floor(kept_gb)}"
    return f"{command} removes the prepared cases that were used longest ago"


def _free_bytes(folder: Path) -> int:
    """Bytes free on the disk of a folder that may not exist yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _held_bytes(folder: Path) -> int:
    """Bytes of the entries in a cache folder."""
    with contextlib.suppress(CacheError):  # no cache yet
        return cache_info(folder).n_bytes
    return 0


def less_memory(settings: Config, *, workers_first: bool = False, may_take_longer: bool = True) -> str:
    """Name three settings that help where memory ends and are not yet as low as they go, the least costly first.

    Args:
        settings: of the training.
        workers_first: whether it ended in a process that prepares batches.
        may_take_longer: False leaves out what takes time instead of memory.
    """
    data, model = settings.data, settings.model
    own = {"base_channels", "light"} & (model.network or {}).keys()  # there the flags for them are refused
    recomputes = model.checkpointing or bool((model.network or {}).get("checkpointing"))
    helps = {
        "lower --num_workers": workers_first and data.num_workers > 0,
        "lower --batch_size": data.batch_size > 1,
        "set --model.checkpointing true": may_take_longer and model.is_body_net and not recomputes,
        "choose a smaller --target_size": True,
        "train the light model (--use_light_model)": model.is_body_net and not (own or model.use_light_model),
        "lower --base_channels": model.is_body_net and not own and model.base_channels > model.least_channels,
    }
    return ", or ".join([remedy for remedy, applies in helps.items() if applies][:3])


def measure_step(config: Config, *, in_channels: int, n_classes: int, trust: bool = False) -> Trial | Finding:
    """Take one training step at the configured size in a process of its own (`trial_step`), which the kernel may end.

    Args:
        config: the settings.
        in_channels: image channels.
        n_classes: classes with the background.
        trust: take network classes from any package.

    Returns:
        Its time, and the memory that a training takes; a finding where it did not end well.
    """
    request = {"config": as_mapping(config), "in_channels": in_channels, "n_classes": n_classes, "trust": trust}
    try:
        process = run_measurement("pipeline.training.trial_step", request, time_limit_s=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        less = less_memory(config, may_take_longer=False)
        return _failed("step_failed", f"none within {TIME_LIMIT_S / 60:.0f} minutes", less)
    trial = read_trial(process.returncode, process.stdout, process.stderr, less_memory(config))
    if isinstance(trial, Finding):
        return trial
    devices = choose_devices(config.training.n_gpus, config.training.n_processes, config.training.precision)
    return after_ten_steps(trial, devices.accelerator)


def after_ten_steps(trial: Trial, accelerator: str) -> Trial:
    """A trial of fewer steps with the memory that a training holds once it has taken ten, see `KEPT_SHARE`."""
    if accelerator == "gpu":
        return trial
    return replace(trial, peak_bytes=int((1 + KEPT_SHARE) * trial.peak_bytes))


def read_trial(exit_code: int, output: str, error_output: str, if_memory_ends: str) -> Trial | Finding:
    """Return what the process of a trial step says, or why it failed as a finding.

    if_memory_ends: what to do then.

    >>> read_trial(-9, "", "", "lower --batch_size").found
    'the process was killed, as the system does when memory ends'
    """
    answer = _answer(output)
    if "step_s" in answer:
        return Trial(**answer)
    message = str(answer.get("error") or _last_line(error_output))
    if exit_code == -signal.SIGKILL:
        return _failed("memory", "the process was killed, as the system does when memory ends", if_memory_ends)
    if ran_out_of_memory(RuntimeError(message)):
        return _failed("memory", message[:200], if_memory_ends)
    found = message[:400] or f"a process that ended with code {exit_code}"
    return _failed("step_failed", found, "correct the settings")


def _answer(output: str) -> dict[str, Any]:
    try:
        return dict(json.loads(_last_line(output)))
    except (ValueError, TypeError):
        return {}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _failed(kind: str, found: str, remedy: str) -> Finding:
    return Finding("error", kind, "", "trial step", "a training step at the configured size", found, remedy)
