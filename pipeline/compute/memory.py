"""Memory of this machine: how much there is, is free, was in use, how many workers fit; keep what is freed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
import sys
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt, from malloc.h."""

_CONTROL_GROUP = Path("/sys/fs/cgroup")

_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|unable to allocate|std::bad_alloc|MemoryError"
    r"|ALLOC_FAILED|could not create a memory object|could not create a primitive(?! descriptor)",
    re.IGNORECASE,
)
"""How torch's allocators, numpy, oneDNN, CUDA's libraries and the system say that there was no memory left. oneDNN
refuses an unsupported operation when it makes the primitive's descriptor; after that only memory can be missing."""


def memory_bytes(accelerator: str) -> int:
    """Memory of the first GPU, or of this machine as far as its control group (container, job) may use it."""
    if accelerator == "gpu":
        return int(torch.cuda.get_device_properties(0).total_memory)
    limit, _ = _tightest_limit()
    total = int(psutil.virtual_memory().total)
    return total if limit is None else min(total, limit)


def free_memory_bytes() -> int:
    """Main memory that this process may still take: of the machine, its control group and its own address space."""
    free = int(psutil.virtual_memory().available)
    limit, used = _tightest_limit()
    if limit is not None:
        free = min(free, limit - used)
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        free = min(free, address_space - int(psutil.Process().memory_info().vms))
    return max(0, free)


def peak_memory_bytes() -> int:
    """Most main memory that this process has held so far."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    # Only the second choice: Linux hands ru_maxrss on from the process that started this one
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Let `peak_memory_bytes` count from what is held now on, where the system can (Linux: proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _tightest_limit() -> tuple[int | None, int]:
    """Limit (None: there is none) and use of that of this process's control groups which has least left."""
    try:
        listing = Path("/proc/self/cgroup").read_text()
    except OSError:
        listing = ""
    found = []
    for group in control_groups(listing, _CONTROL_GROUP):
        limit, used = control_group_memory(group)
        if limit is not None:
            found.append((limit, used))
    return min(found, key=lambda one: one[0] - one[1], default=(None, 0))


def control_groups(listing: str, root: Path) -> list[Path]:
    """The folders of a process's control group of version 2 and of all above it: a job's limit may be on any of them.

    Args:
        listing: /proc/PID/cgroup.
        root: where the groups are mounted; of a container's own hierarchy, which it sees as a root, the only one.
    """
    names = [line.removeprefix("0::").strip("/") for line in listing.splitlines() if line.startswith("0::")]
    parts = Path(names[0]).parts if names else ()
    return [root.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def control_group_memory(folder: Path) -> tuple[int | None, int]:
    """Read a control group's limit (None: it has none) and use in bytes, from its files of version 2, else of 1.

    Pages of files that the kernel drops when memory is needed do not count as used.
    """
    version_2 = (folder, "memory.max", "memory.current", "inactive_file")
    version_1 = (folder / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for group, limit_file, use_file, droppable in (version_2, version_1):
        try:
            limit = int((group / limit_file).read_text())
            used = int((group / use_file).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return limit, max(0, used - int(statistics.get(droppable, 0)))
        except (OSError, ValueError):  # no such group, or the word "max"
            continue
    return None, 0


def available_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SHARED_RESERVE = 2**20
"""Bytes of shared memory for semaphores and small tensors, each a page."""

MORE_SHARED_MEMORY = "give it more (docker run --shm-size 8g; mount -o remount,size=8g /dev/shm)"


def lacks_shared_memory() -> bool:
    """Whether the shared memory is too full for processes to share anything, even semaphores."""
    shared = shared_memory()
    return shared is not None and shared[0] < SHARED_RESERVE


def shared_memory() -> tuple[int, int] | None:
    """Free and total bytes of the memory that processes share tensors through; None where it has no own limit."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return None
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def workers_that_fit(bytes_each: int, most: int | None = None) -> int:
    """How many workers the cores and the free memory allow where each takes `bytes_each`: 1 or more, at most `most`."""
    cores = available_cores()
    fitting = min(cores, free_memory_bytes() // max(1, bytes_each))
    return max(1, fitting if most is None else min(fitting, most))


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations; False where the C library is not glibc.

    glibc maps every block above 32 MB again and unmaps it when it is freed (mallopt(3)). A training step on a CPU frees
    and asks for the same gigabytes again and again, and the kernel clears each page of them each time, on one core.
    What a process keeps is what it needed at its peak, plus the gaps between blocks of unequal size.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that there was no memory left."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False
