"""A 1×1×1 convolution as a matrix."""

from __future__ import annotations

from typing import TypeGuard

from jaxtyping import Float
from torch import Tensor, nn


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

    Contiguous and channels-last samples are viewed, never copied; any other layout is copied.
    """
    return sample.flatten(1)
