"""The loss of a network that is supervised at several resolutions, each in slabs and at its own size.

At each level the label of a voxel is the class in its middle (nearest neighbour), as in nnU-Net and in
monai.losses.DeepSupervisionLoss. The shares of all classes in the voxel would need a number for each class and voxel;
the most frequent class alone would wipe out whatever is thinner than a coarse voxel, where nearest neighbour keeps each
class's share of the volume on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Integer
from torch import Tensor, nn

from networks.deep_supervision import Level
from pipeline.losses.dice_ce import DiceCE


def level_weights(n_levels: int) -> list[float]:
    """Weigh levels, finest first, by 1, 1/2, 1/4, …, divided by their sum, as nnU-Net does (version 2,
    `nnUNetTrainer._build_loss`).

    >>> level_weights(1), level_weights(2)
    ([1.0], [0.6666666666666666, 0.3333333333333333])
    """
    total = sum(0.5**level for level in range(n_levels))
    return [0.5**level / total for level in range(n_levels)]


def deep_supervision_loss(
    criterion: Callable[[Tensor, nn.Module | None, Tensor], DiceCE],
    levels: Sequence[Level],
    label: Integer[Tensor, "B 1 I J K"],
) -> DiceCE:
    """Return the weighted mean of the criterion over the levels; the counts are those of the finest level.

    With one level it is the criterion's own result. Raises what the criterion does.

    Args:
        criterion: The loss of a level's features, head and label, such as a `SlabDiceCELoss`.
        levels: Finest first; the first has the label's grid.
        label: At full size.
    """
    results = [criterion(level.features, level.head, label_at_level(label, level)) for level in levels]
    weighted = [result.loss * weight for result, weight in zip(results, level_weights(len(levels)), strict=True)]
    return results[0]._replace(loss=torch.stack(weighted).sum())


def label_at_level(label: Integer[Tensor, "B 1 I J K"], level: Level) -> Integer[Tensor, "B 1 I2 J2 K2"]:
    """Return the label's class in the middle of each of the level's voxels; beyond the image, that at its edge.

    Equal to torch's nearest-exact interpolation where the level's step divides the image.
    """
    # torch (2.13) cannot index uint16 on every device; the bits are the same
    found = label.view(torch.int16) if label.dtype == torch.uint16 else label
    grid = zip(level.features.shape[2:], level.step, level.first, strict=True)
    for axis, (size, step, first) in enumerate(grid, start=2):
        if (step, first) != (1, 0):
            places = torch.arange(size, device=label.device) * step + (first + step // 2)
            found = found.index_select(axis, places.clamp_(0, label.shape[axis] - 1))
    return found.view(label.dtype)
