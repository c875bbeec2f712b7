"""How the C library keeps memory that is freed. Knows nothing of tensors."""

from __future__ import annotations

import ctypes
import platform

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
