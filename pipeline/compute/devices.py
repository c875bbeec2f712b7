"""Choose what a training or a prediction runs on: CPU or GPUs, how many, and in which precision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.compute.memory import available_cores
from pipeline.compute.ranks import THIS_PROGRAM, read_rank
from pipeline.config.settings import ConfigError


@dataclass(frozen=True)
class Devices:
    """What a training runs on: one process a GPU, or one or several CPU processes, on each of one or more machines."""

    accelerator: Literal["cpu", "gpu"]
    per_machine: int
    """GPUs, or CPU processes, of each machine."""
    n_machines: int
    precision: str
    """What the network computes in, as Lightning calls it: 32-true, 16-mixed or bf16-mixed."""

    @property
    def n_processes(self) -> int:
        """Processes that train together on all machines."""
        return self.per_machine * self.n_machines

    @property
    def n_gpus(self) -> int:
        """GPUs of each machine; 0 on CPUs."""
        return self.per_machine if self.accelerator == "gpu" else 0

    def trainer_arguments(self) -> dict[str, Any]:
        """The arguments of Lightning's Trainer that say the same."""
        return {
            "accelerator": self.accelerator,
            "devices": self.per_machine,
            "num_nodes": self.n_machines,
            "strategy": "ddp" if self.n_processes > 1 else "auto",
            "precision": self.precision,
        }


def choose_devices(n_gpus: int | None, n_processes: int | None, precision: str) -> Devices:
    """Choose a training's devices by training.n_gpus, training.n_processes and training.precision.

    One process a device: GPUs, or CPU processes where training.n_processes asks for them. Where torchrun or SLURM has
    started the processes already, their number decides and the settings must not contradict it.

    "16" on a CPU trains in bfloat16 where the processor computes in it, else in float32: float16 has no fast
    convolutions there, and bfloat16 without its instructions is many times slower than float32.

    Raises:
        ConfigError: more GPUs than the machine has, or another number of processes than were started.
        ProcessError: the launcher's environment variables make no sense.
    """
    here = read_rank()
    started = here.local_world_size if here.world_size > 1 else None
    n_gpus = _n_gpus(n_gpus, n_processes, started, here.started_by)
    if n_gpus:
        setting, per_machine = "n_gpus", n_gpus
    else:
        setting, per_machine = "n_processes", n_processes or started or 1
    if started not in (None, per_machine):
        raise ConfigError(
            f"training.{setting} is {per_machine}, but {here.started_by} started {started} processes on this machine; "
            f"give --training.{setting} {started}, or have {here.started_by} start {per_machine}"
        )
    return Devices("gpu" if n_gpus else "cpu", per_machine, here.n_nodes, _training_precision(precision, n_gpus))


@contextlib.contextmanager
def shared_threads(n: int) -> Iterator[None]:
    """Inside, give this process, one of `n` that this program starts on its machine, its share of the cores' threads.

    torch gives every process a thread for each core; where several processes train together, these wait for each other,
    spinning. OMP_NUM_THREADS comes first: torchrun sets it; and SLURM gives each task cores of its own.
    """
    if n == 1 or "OMP_NUM_THREADS" in os.environ or read_rank().started_by not in ("", THIS_PROGRAM):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, available_cores() // n))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _n_gpus(n_gpus: int | None, n_processes: int | None, started: int | None, started_by: str) -> int:
    """GPUs to use on this machine: as many as asked for, else as there are processes, or one, or none."""
    present = torch.cuda.device_count()
    may_use_gpus = n_gpus != 0 and not (n_gpus is None and n_processes)
    if started and 0 < present < started and may_use_gpus:
        raise ConfigError(_too_few_gpus(present, started, started_by))
    if n_gpus is None:
        return min(started or 1, present) if may_use_gpus else 0
    if n_gpus > present:
        raise ConfigError(f"training.n_gpus is {n_gpus}, but this machine has {present}; lower --n_gpus (0 = CPU)")
    return n_gpus


def _training_precision(precision: str, n_gpus: int) -> str:
    if precision == "32":
        return "32-true"
    if n_gpus:
        return f"{precision}-mixed"
    return "bf16-mixed" if cpu_computes_in_bfloat16() else "32-true"


def _too_few_gpus(present: int, started: int, started_by: str) -> str:
    """Word that a process sees fewer GPUs than its machine has processes; SLURM may hide each one's from the others."""
    found = f"{started_by} started {started} processes on this machine, and this one sees {present} of its GPUs"
    if started_by == "SLURM":
        return (
            f"{found}, as with --gpus-per-task or --gpu-bind; each must see all of them: "
            f"use --gpus-per-node={started} instead, or --n_gpus 0 to train on the CPUs"
        )
    return f"{found}; have {started_by} start {present}, or give --n_gpus 0 to train on the CPUs"


def cpu_computes_in_bfloat16() -> bool:
    """Whether this processor has AVX512-BF16 or AMX."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name: auto (CUDA where there is one), cpu, cuda or cuda:N.

    Raises:
        ConfigError: another name, or a device that this machine lacks.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise ConfigError(f"device {name} does not exist; this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name} does not exist; this machine has no CUDA device, use --device cpu")
    return device


def choose_precision(name: str, device: torch.device, trained: str = "") -> str:
    """Choose what a prediction computes in: "32", "bf16" or "16" (float16).

    Args:
        name: one of these, or "auto": what the network was trained in where the device computes in it, else "32".
        device: where it is computed.
        trained: what the network was trained in, as Lightning calls it; "" where the checkpoint does not say: "auto"
            then takes bf16 where the device computes in it.

    Raises:
        ConfigError: another name, or float16 without a GPU.
    """
    if name not in ("auto", "32", "bf16", "16"):
        raise ConfigError(f"precision: expected auto, 32, bf16 or 16, found {name!r}")
    is_gpu = device.type == "cuda"
    if name == "16" and not is_gpu:
        raise ConfigError("precision: 16 (float16) needs a GPU, found a CPU; use --precision auto, 32 or bf16")
    if name != "auto":
        return name
    if trained == "16-mixed":
        return "16" if is_gpu else "32"
    if trained == "32-true":
        return "32"
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if is_gpu else cpu_computes_in_bfloat16()
    return "bf16" if fast else "32"
