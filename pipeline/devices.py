"""What a training runs on: processor or GPUs, in which precision, with how much memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pipeline.config import Config, ConfigError

_CONTROL_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def choose_devices(config: Config) -> dict[str, Any]:
    """What Lightning is told about accelerator, number of devices and precision.

    "16" on a CPU trains in bfloat16 where the processor computes in it, else in float32: float16 has no fast
    convolutions there, and bfloat16 without its instructions is many times slower than float32.

    Raises:
        ConfigError: more GPUs than the machine has.
    """
    there = torch.cuda.device_count()
    n_gpus = min(1, there) if config.training.n_gpus is None else config.training.n_gpus
    if n_gpus > there:
        raise ConfigError(f"training.n_gpus is {n_gpus}, but this machine has {there}; lower --n_gpus (0 = CPU)")
    precision = config.training.precision
    if precision == "32":
        effective = "32-true"
    elif n_gpus:
        effective = f"{precision}-mixed"
    else:
        effective = "bf16-mixed" if cpu_computes_in_bfloat16() else "32-true"
    return {
        "accelerator": "gpu" if n_gpus else "cpu",
        "devices": max(1, n_gpus),
        "strategy": "ddp" if n_gpus > 1 else "auto",
        "precision": effective,
    }


def is_first_process() -> bool:
    """Whether this is the process that writes files and prints; the only one outside DistributedDataParallel."""
    return getattr(rank_zero_only, "rank", 0) == 0


def cpu_computes_in_bfloat16() -> bool:
    """Whether this processor has AVX512-BF16 or AMX."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def memory_bytes(accelerator: str) -> int:
    """Memory of the first GPU, or of this machine as far as its control group (container, job) may use it."""
    if accelerator == "gpu":
        return int(torch.cuda.get_device_properties(0).total_memory)
    limits = [int(psutil.virtual_memory().total)]
    for path in map(Path, _CONTROL_GROUP_LIMITS):
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such group, or the word "max"
            continue
    return min(limits)
