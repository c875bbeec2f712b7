"""Work on a volume in slabs of voxels that fit a cache, one thread a slab; the argmax inside a slab."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

# Measured with 71 classes on a 2-core AMD EPYC (1 MiB of L2 a core): the working set of one thread should stay near
# its share of the cache; 3 to 6 MiB were fastest, 12 MiB 15 % slower, 50 MiB twice as slow.
CPU_BYTES_PER_THREAD = 4 * 2**20
# On an accelerator a slab only has to be large enough to fill the chip and to hide the launches.
ACCELERATOR_BYTES = 256 * 2**20

Share = TypeVar("Share")


def slab_bytes(device: torch.device, memory_budget_mb: float | int | None = None) -> int:
    """Bytes that the working set of one thread's slab may take.

    `memory_budget_mb` is in MiB, on a CPU for all threads together; None takes what was measured as fastest: the cache
    share of each thread on a CPU, 256 MiB elsewhere.
    """
    on_cpu = device.type == "cpu"
    if memory_budget_mb is None:
        return CPU_BYTES_PER_THREAD if on_cpu else ACCELERATOR_BYTES
    return int(memory_budget_mb * 2**20 / (torch.get_num_threads() if on_cpu else 1))


def slabs(
    n_voxels: int, bytes_per_voxel: int, device: torch.device, memory_budget_mb: float | int | None = None
) -> list[slice]:
    """Cut the voxels 0 … n_voxels of one sample into ranges whose working set fits the budget, see `slab_bytes`.

    A slab holds at least 256 voxels, whatever the budget, and more classes only make slabs shorter.

    >>> slabs(600, 2**13, torch.device("cpu"), memory_budget_mb=2 * torch.get_num_threads())
    [slice(0, 256, None), slice(256, 512, None), slice(512, 600, None)]
    """
    step = max(256, slab_bytes(device, memory_budget_mb) // bytes_per_voxel)
    return [slice(start, min(start + step, n_voxels)) for start in range(0, n_voxels, step)]


def counting_slabs(n_voxels: int, device: torch.device) -> list[slice]:
    """Cut voxels into ranges for counting labels, where arithmetic is next to nothing.

    On a CPU they stay below 32768 voxels, from where on torch calls in its other threads: counting takes less time than
    waiting for them, above all with data workers on the same cores.
    """
    step = 2**15 - 1 if device.type == "cpu" else 2**23
    return [slice(start, min(start + step, n_voxels)) for start in range(0, n_voxels, step)]


def share_out(pieces: Sequence[Any], work: Callable[[Sequence[Any]], Share], device: torch.device) -> list[Share]:
    """Let every CPU thread do the work on its run of pieces, all by itself; return the shares in the pieces' order.

    A slab is so small that torch's own threads would meet at a barrier every few microseconds, and each barrier waits
    for whoever has been interrupted: with data workers on the same cores that took ten times as long. Which thread
    does what is fixed, so that sums come out the same bit for bit. Off the CPU the caller does all the work.
    """
    n_threads = torch.get_num_threads()
    n_shares = min(n_threads, len(pieces)) if device.type == "cpu" else 1
    if n_shares <= 1:
        return [work(pieces)]
    inference = torch.is_inference_mode_enabled()

    def alone(share: Sequence[Any]) -> Share:
        # These settings belong to a thread and start from their defaults in a new one.
        torch.set_num_threads(1)
        with torch.inference_mode(inference), torch.no_grad():
            return work(share)

    ends = [len(pieces) * i // n_shares for i in range(n_shares + 1)]
    try:
        with ThreadPoolExecutor(n_shares) as pool:
            return list(pool.map(alone, [pieces[i:j] for i, j in pairwise(ends)]))
    finally:
        torch.set_num_threads(n_threads)  # what later threads start from


def segmentation_dtype(n_classes: int) -> torch.dtype:
    """Return the dtype of a segmentation in memory and in files: uint8, uint16 above 255 classes (255 is ignore)."""
    return torch.uint8 if n_classes <= 255 else torch.uint16


def first_highest(scores: Float[Tensor, " C *grid"]) -> Float[Tensor, " *grid"]:
    """Return the index of the maximum along the first axis, the lowest among equals, as a float tensor.

    Overwrites the scores. torch.argmax over the first axis takes ten times as long on a CPU (torch 2.13); this
    vectorises.

    >>> first_highest(torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 1.0]]))
    tensor([1., 0., 0.])
    """
    n_classes = len(scores)
    indices = torch.arange(n_classes, dtype=scores.dtype, device=scores.device)
    indices = indices.view(-1, *[1] * (scores.ndim - 1))
    lower = scores.lt_(scores.amax(0))
    return torch.add(indices, lower, alpha=n_classes, out=scores).amin(0)
