"""The argmax of a network's logits, slab by slab from its features: full-size logits never exist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from networks.head import head_matrix
from transforms.slabs import first_highest, segmentation_dtype, share_out, slabs


@torch.no_grad()
def segment_in_slabs(
    features: Float[Tensor, "B F *grid"], head: nn.Module | None, memory_budget_mb: float | int | None = None
) -> Integer[Tensor, " B *grid"]:
    """Return the class of the highest logit of `head(features)` at each voxel, the lowest class among equals.

    Args:
        features: of a batch of volumes.
        head: the 1×1×1 convolution that makes logits of them; None: the features are the logits.
        memory_budget_mb: of one slab, which is all the memory it takes, whatever the class count; None: chosen.

    Returns:
        Class indices, uint8, or uint16 above 255 classes.

    Raises:
        ValueError: the head is not a 1×1×1 convolution that fits the features.

    >>> logits = torch.tensor([[[[[0.1, 0.9]]], [[[0.3, 0.2]]]]])  # two classes on a grid of 1×1×2 voxels
    >>> segment_in_slabs(logits, None).tolist()
    [[[[1, 0]]]]
    """
    features = features.detach().as_subclass(Tensor)
    weight, bias = head_matrix(head, features.shape[1])
    n_classes = features.shape[1] if weight is None else weight.shape[0]
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    matrix = None if weight is None else weight.to(dtype)
    shift = torch.zeros((), dtype=dtype, device=features.device) if bias is None else bias.to(dtype)[:, None]
    grid = features.shape[2:]
    label_type = segmentation_dtype(n_classes)
    segmentation = torch.empty(len(features), grid.numel(), dtype=label_type, device=features.device)
    samples = [sample.flatten(1) for sample in features]

    def segment(parts: Sequence[tuple[int, slice]]) -> None:
        for b, voxels in parts:
            x = samples[b][:, voxels].to(dtype)
            logits = x.clone() if matrix is None else torch.addmm(shift, matrix, x)
            segmentation[b, voxels] = first_highest(logits).to(label_type)

    bytes_per_voxel = (n_classes + features.shape[1] + 4) * dtype.itemsize
    cuts = slabs(grid.numel(), bytes_per_voxel, features.device, memory_budget_mb)
    with torch.autocast(features.device.type, enabled=False):
        share_out([(b, voxels) for b in range(len(features)) for voxels in cuts], segment, features.device)
    return segmentation.view(len(features), *grid)
