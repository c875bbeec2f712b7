"""Memory: what a control group allows, how many workers fit, and that kept memory is not asked for again."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import psutil
import pytest

from pipeline.compute.memory import (
    control_group_memory,
    control_groups,
    free_memory_bytes,
    workers_that_fit,
)

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


def test_workers_are_bounded_by_memory_cores_and_the_work_and_there_is_always_one():
    cores = len(os.sched_getaffinity(0))
    assert workers_that_fit(1) == cores
    assert workers_that_fit(1, most=1) == 1
    assert workers_that_fit(1, most=0) == 1
    assert workers_that_fit(1 << 60) == 1
    assert workers_that_fit(psutil.virtual_memory().total // 2 + 1) == 1


def test_a_limit_of_the_address_space_bounds_what_is_free():
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), before[1]))
    try:
        free = free_memory_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert free <= 1 << 28


def test_a_control_groups_limit_and_use_are_read_in_both_versions(tmp_path):
    assert control_group_memory(tmp_path) == (None, 0)
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("8000\n")
    (old / "memory.usage_in_bytes").write_text("5000\n")
    (old / "memory.stat").write_text("cache 3000\ntotal_inactive_file 1000\n")
    assert control_group_memory(tmp_path) == (8000, 4000)
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("6000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 2000\n")
    assert control_group_memory(tmp_path) == (9000, 4000)
    (tmp_path / "memory.max").write_text("max\n")
    assert control_group_memory(tmp_path) == (8000, 4000)


def test_every_control_group_above_a_process_counts(tmp_path):
    listing = "12:pids:/x\n0::/system.slice/slurmstepd.scope/job_7/step_0\n"
    job = tmp_path / "system.slice" / "slurmstepd.scope" / "job_7"
    groups = control_groups(listing, tmp_path)
    assert groups == [job / "step_0", job, job.parent, job.parent.parent, tmp_path]
    assert control_groups("0::/\n", tmp_path) == control_groups("", tmp_path) == [tmp_path]


WITHOUT_MEMORY = """
import resource, sys
import psutil, torch
from pipeline.compute.memory import ran_out_of_memory

torch.set_num_threads(1)  # another thread may not find the memory to start
dtype = getattr(torch, sys.argv[1])
image, kernel = torch.ones(1, 16, 8, 8, 11, dtype=dtype), torch.ones(16, 16, 1, 1, 1, dtype=dtype)
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used, used))
try:
    while True:
        image = torch.cat([torch.nn.functional.conv3d(image, kernel)] * 4)
except RuntimeError as error:
    sys.exit(0 if ran_out_of_memory(error) else str(error))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_torch_says_of_a_convolution_without_memory_is_recognised(dtype):
    """In bfloat16 oneDNN says "could not create a primitive", and of every later one; in float32 torch's allocator."""
    subprocess.run([sys.executable, "-c", WITHOUT_MEMORY, dtype], check=True)
