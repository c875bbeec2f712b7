"""How the C library keeps memory that is freed. Knows nothing of tensors."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import psutil
import torch

# glibc, malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations; False where the C library is not glibc.

    glibc maps every block above 32 MB anew and unmaps it when it is freed (mallopt(3)). A training step on a CPU frees
    and asks for the same gigabytes again and again, and the kernel clears each page of them each time, on one core.
    What a process keeps is what it needed at its peak, plus the gaps between blocks of unequal size.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


_CONTROL_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


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


_BYTES_A_CASE = 3 << 30  # memory that a large CT and its label may take while they are looked at


def default_workers() -> int:
    """Cases that cores and memory allow to look at at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // _BYTES_A_CASE))
