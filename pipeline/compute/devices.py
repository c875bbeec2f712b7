"""What a training runs on: processor or GPUs, in which precision, with how much memory."""

from __future__ import annotations

from typing import Any

import torch

from networks.errors import NetworkError
from pipeline.compute.ranks import place
from pipeline.config.settings import Config, ConfigError


def choose_devices(config: Config) -> dict[str, Any]:
    """What Lightning is told about accelerator, devices, machines, strategy and precision.

    One process a device: GPUs, or CPU processes where training.n_processes asks for them. Where torchrun or SLURM has
    started the processes already, their number decides and the settings must not contradict it.

    "16" on a CPU trains in bfloat16 where the processor computes in it, else in float32: float16 has no fast
    convolutions there, and bfloat16 without its instructions is many times slower than float32.

    Raises:
        ConfigError: more GPUs than the machine has, or another number of processes than were started.
    """
    training, here = config.training, place()
    started = here.local_world_size if here.world_size > 1 else None
    there = torch.cuda.device_count()
    n_gpus = training.n_gpus
    if started and 0 < there < started and n_gpus != 0 and not (n_gpus is None and training.n_processes):
        raise ConfigError(_too_few_gpus(there, started, here.started_by))
    if n_gpus is None:
        n_gpus = 0 if training.n_processes else min(started or 1, there)
    if n_gpus > there:
        raise ConfigError(f"training.n_gpus is {n_gpus}, but this machine has {there}; lower --n_gpus (0 = CPU)")
    asked = ("n_gpus", n_gpus) if n_gpus else ("n_processes", training.n_processes or started or 1)
    if started not in (None, asked[1]):
        raise ConfigError(
            f"training.{asked[0]} is {asked[1]}, but {here.started_by} started {started} processes on this machine; "
            f"give --training.{asked[0]} {started}, or have {here.started_by} start {asked[1]}"
        )
    if training.precision == "32":
        effective = "32-true"
    elif n_gpus:
        effective = f"{training.precision}-mixed"
    else:
        effective = "bf16-mixed" if cpu_computes_in_bfloat16() else "32-true"
    return {
        "accelerator": "gpu" if n_gpus else "cpu",
        "devices": asked[1],
        "num_nodes": here.n_nodes,
        "strategy": "ddp" if asked[1] * here.n_nodes > 1 else "auto",
        "precision": effective,
    }


def _too_few_gpus(there: int, started: int, started_by: str) -> str:
    """Word that a process sees fewer GPUs than its machine has processes; SLURM may hide each one's from the others."""
    found = f"{started_by} started {started} processes on this machine, and this one sees {there} of its GPUs"
    if started_by == "SLURM":
        return (
            f"{found}, as with --gpus-per-task or --gpu-bind; each must see all of them: "
            f"use --gpus-per-node={started} instead, or --n_gpus 0 to train on the CPUs"
        )
    return f"{found}; have {started_by} start {there}, or give --n_gpus 0 to train on the CPUs"


def cpu_computes_in_bfloat16() -> bool:
    """Whether this processor has AVX512-BF16 or AMX."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA where there is one. Raises NetworkError if the machine lacks it."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise NetworkError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise NetworkError(f"device {name} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NetworkError(f"device {name} is not there; this machine has no CUDA device, use --device cpu")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """ "32" or "bf16"; "auto" takes bf16 where the device computes in it."""
    if name not in ("auto", "32", "bf16"):
        raise NetworkError(f"precision: expected auto, 32 or bf16, found {name!r}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32"
