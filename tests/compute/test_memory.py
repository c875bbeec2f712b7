"""Kept memory is not asked for again: the kernel counts the pages that a process touches for the first time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource
import numpy as np
from pipeline.compute.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(100 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
fresh = faults()
kept = keep_freed_memory()
faults()
print(kept, fresh, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told how to keep memory")
def test_kept_memory_is_not_cleared_by_the_kernel_again():
    run = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True)
    kept, fresh, again = run.stdout.split()
    assert kept == "True"
    assert int(again) < int(fresh) / 5
