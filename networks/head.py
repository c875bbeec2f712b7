"""A 1×1×1 convolution as a matrix that acts on each voxel's features."""

from __future__ import annotations

from typing import TypeGuard

from jaxtyping import Float
from torch import Tensor, nn


def head_matrix(
    head: nn.Module | None, n_features: int
) -> tuple[Float[Tensor, "C F"] | None, Float[Tensor, " C"] | None]:
    """Return weight and bias of a 1×1×1 convolution; (None, None) for None: the features are the logits.

    >>> weight, bias = head_matrix(nn.Conv3d(32, 71, 1), 32)
    >>> weight.shape, bias.shape
    (torch.Size([71, 32]), torch.Size([71]))

    Raises:
        ValueError: If the head is anything but a plain 1×1×1 convolution of `n_features` channels, since only a map
            that acts on each voxel alone can be applied slab by slab.
    """
    if head is None:
        return None, None
    if not isinstance(head, nn.Conv1d | nn.Conv2d | nn.Conv3d) or not is_pointwise(head):
        raise ValueError(
            f"head: expected a 1×1×1 convolution with stride 1, no padding and one group, or None, found {head}; "
            "give the logits as features and head=None"
        )
    weight, bias = head.weight, head.bias
    if weight.shape[1] != n_features:
        raise ValueError(f"head: expected {n_features} input channels, as the features have, found {weight.shape[1]}")
    return weight.flatten(1), bias


def is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d]:
    """Return whether the module is a convolution, transposed or not, that acts on each voxel alone."""
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d)
        and set(module.kernel_size) == set(module.stride) == {1}
        and (module.padding in ("valid", "same") or set(module.padding) == {0})
        and module.groups == 1
    )
