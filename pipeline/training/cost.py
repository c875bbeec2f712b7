"""What a training will cost on this machine: disk for the cache, memory and time from one trial step.

The step itself is `trial_step`'s, in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.entry import CacheError, entry_bytes
from pipeline.cache.folder import cache_info
from pipeline.checks.findings import Finding
from pipeline.compute.devices import choose_devices
from pipeline.compute.memory import memory_bytes
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config
from pipeline.console.text import gigabytes
from pipeline.datasets.dataset import Dataset, Split
from pipeline.training.trial_step import Trial

TIME_LIMIT_S = 1800.0
"""A step that takes longer is given up: hundreds of them make an epoch."""
HEADROOM = 0.9
"""Share of the memory that a training may take at its peak: the system and the loading of data need the rest."""
_LESS_MEMORY = "lower --batch_size, --base_channels or --target_size, or set model.checkpointing"


@dataclass(frozen=True)
class Estimate:
    """What a training needs and what the machine has; `trial` is None where no step was measured.

    `epoch_s` is steps × step + validations × validation of one process: loading is not in it, and 0 without a trial.
    """

    cache_dir: str
    cache_bytes: int
    free_bytes: int
    memory_bytes: int
    n_val: int
    steps_per_epoch: int
    max_epochs: int
    epoch_s: float
    trial: Trial | None


def estimate_training(
    config: Config,
    dataset: Dataset,
    split: Split | None,
    *,
    measure: bool,
    trust: bool = False,
    progress: Callable[[str, int, int], None],
) -> tuple[Estimate, tuple[Finding, ...]]:
    """Estimate disk, memory and time, and hold them against the machine.

    Args:
        config: the settings.
        dataset: the data set, listed.
        split: its division; None: all cases train.
        measure: take a trial step.
        trust: take network classes from any package in it.
        progress: called with (what, done, total).

    Returns:
        The estimate, and a finding for each thing that this machine lacks. Raises ConfigError for GPUs it has not.
    """
    sizes = {"in_channels": len(dataset.channel_names), "n_classes": len(dataset.classes.names)}
    n_train, n_val = (len(split.train), len(split.val)) if split else (len(dataset.cases), 0)
    findings: list[Finding] = []
    devices = choose_devices(config.training.n_gpus, config.training.n_processes, config.training.precision)
    trial = None
    if measure:
        progress("taking a trial step", 0, 1)
        trial = _measure(config, sizes, findings, trust=trust)
        progress("taking a trial step", 1, 1)
    steps = math.ceil(n_train / (config.data.batch_size * devices.n_processes))
    validations = math.ceil(n_val / devices.n_processes)
    estimate = Estimate(
        cache_dir=config.data.cache_dir,
        cache_bytes=(n_train + n_val) * entry_bytes(config, **sizes),
        free_bytes=_free_bytes(Path(config.data.cache_dir)),
        memory_bytes=memory_bytes(devices.accelerator),
        n_val=n_val,
        steps_per_epoch=steps,
        max_epochs=config.training.max_epochs,
        epoch_s=steps * trial.step_s + validations * trial.validation_s if trial else 0.0,
        trial=trial,
    )
    return estimate, (*findings, *_shortages(estimate, config))


def _shortages(estimate: Estimate, config: Config) -> Iterator[Finding]:
    needed = f"{gigabytes(estimate.cache_bytes)} for the prepared cases"
    if estimate.cache_bytes > estimate.free_bytes:
        found = f"{gigabytes(estimate.free_bytes)} free (with what the cache holds already)"
        remedy = "free the disk, or name another data.cache_dir"
        yield Finding("error", "disk", "", estimate.cache_dir, needed, found, remedy)
    limit = config.data.cache_limit_gb * 1e9
    if 0 < limit < estimate.cache_bytes:
        found = f"data.cache_limit_gb {config.data.cache_limit_gb:g}"
        yield Finding("error", "disk", "", estimate.cache_dir, needed, found, "raise or remove the limit")
    if estimate.trial and estimate.trial.peak_bytes > HEADROOM * estimate.memory_bytes:
        expected = f"a peak of at most {gigabytes(HEADROOM * estimate.memory_bytes, 1)} ({HEADROOM:.0%} of the memory)"
        found = f"{gigabytes(estimate.trial.peak_bytes, 1)} in a trial step"
        yield Finding("warning", "memory", "", estimate.trial.device, expected, found, _LESS_MEMORY)


def _free_bytes(folder: Path) -> int:
    """Bytes free on the disk of a folder that may not exist yet, and those that the cache in it holds already."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    held = 0
    with contextlib.suppress(CacheError):  # no cache yet
        held = cache_info(folder).n_bytes
    return shutil.disk_usage(there).free + held


def _measure(config: Config, sizes: dict[str, int], findings: list[Finding], *, trust: bool) -> Trial | None:
    """Take the trial step in a process of its own; None, with a finding, where it does not end well."""
    asked = json.dumps({"config": as_mapping(config), **sizes, "trust": trust})
    # The modules of this process shall be the other one's, wherever it was started.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "pipeline.training.trial_step"]
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, text=True, env=environment, timeout=TIME_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        findings.append(_failed("step_failed", f"none within {TIME_LIMIT_S / 60:.0f} minutes", _LESS_MEMORY))
        return None
    answer = _answer(done.stdout)
    if "step_s" in answer:
        return Trial(**answer)
    findings.append(_why_failed(done.returncode, str(answer.get("error") or _last_line(done.stderr))))
    return None


def _answer(output: str) -> dict:
    try:
        return dict(json.loads(_last_line(output)))
    except (ValueError, TypeError):
        return {}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _why_failed(code: int, message: str) -> Finding:
    if code == -signal.SIGKILL:
        return _failed("memory", "the process was killed, as the system does when memory ends", _LESS_MEMORY)
    if re.search(r"out of memory|can't allocate memory|MemoryError", message, re.IGNORECASE):
        return _failed("memory", message[:200], _LESS_MEMORY)
    return _failed("step_failed", message[:400] or f"a process that ended with code {code}", "correct the settings")


def _failed(kind: str, found: str, remedy: str) -> Finding:
    return Finding("error", kind, "", "trial step", "a training step at the configured size", found, remedy)
