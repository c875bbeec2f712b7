"""How a volume is cut into slabs of voxels that fit a memory budget, and what a 1×1×1 head is as a matrix.

Leaves to others what is computed inside a slab: the loss in `losses`, the argmax in `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Measured with 71 classes on a 2-core AMD EPYC (1 MB of L2 a core): the working set of one thread should stay
# near its share of the cache: 3 and 6 MiB were fastest, 12 MiB 15 % slower, 50 MiB twice as slow, while smaller slabs
# only bring more synchronisation, which hurts when data workers compete for the same cores.
CPU_BYTES_PER_THREAD = 6 * 2**20
# On an accelerator a slab only has to be large enough to fill the chip and to hide the launches.
ACCELERATOR_BYTES = 256 * 2**20


def slabs(
    n_voxels: int, bytes_per_voxel: int, device: torch.device, memory_budget_mb: float | int | None = None
) -> Iterator[slice]:
    """Cut the voxels 0 … n_voxels of one sample into ranges whose working set fits the budget.

    `memory_budget_mb` is in MiB; None takes what was measured as fastest: the cache share of each thread on a CPU,
    256 MiB elsewhere. A slab holds at least 256 voxels, whatever the budget, and more classes only make slabs shorter.
    """
    default = CPU_BYTES_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else ACCELERATOR_BYTES
    budget = default if memory_budget_mb is None else memory_budget_mb * 2**20
    step = max(256, int(budget) // bytes_per_voxel)
    for start in range(0, n_voxels, step):
        yield slice(start, min(start + step, n_voxels))


def head_matrix(
    head: nn.Module | None, n_features: int
) -> tuple[Float[Tensor, "C F"] | None, Float[Tensor, " C"] | None]:
    """Return weight (C, F) and bias (C,) of a 1×1×1 convolution; (None, None) for None: the features are the logits.

    Raises ValueError if the head is anything but a plain 1×1×1 convolution of `n_features` channels, since only a
    map that acts on each voxel alone can be applied slab by slab.
    """
    if head is None:
        return None, None
    if not _is_pointwise_convolution(head):
        raise ValueError(
            f"head: expected a 1×1×1 convolution with stride 1, no padding and one group, or None, found {head}; "
            "give the logits as features and head=None"
        )
    weight, bias = head.weight, head.bias
    if weight.shape[1] != n_features:
        raise ValueError(f"head: expected {n_features} input channels, as the features have, found {weight.shape[1]}")
    return weight.flatten(1), bias


def _is_pointwise_convolution(head: nn.Module) -> TypeGuard[nn.Conv3d]:
    return (
        isinstance(head, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and set(head.kernel_size) == {1}
        and set(head.stride) == {1}
        and head.padding in {(0,) * len(head.kernel_size), "valid", "same"}
        and head.groups == 1
    )


def as_matrix(sample: Float[Tensor, " F *grid"]) -> Float[Tensor, "F N"]:
    """View one sample's channels as rows, its voxels as columns, in the order of the flattened grid.

    Contiguous and channels-last samples are viewed, never copied; any other layout is copied once per sample.
    """
    return sample.flatten(1)
