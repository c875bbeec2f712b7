"""Count the classes that a label does not annotate as background: merge their logits, and spread the gradient again.

A label that shows the liver alone says of no other voxel what it is. Its loss is that of the merged classes, with the
probabilities of the background and of all classes that are not annotated added up (marginal loss, Shi et al. 2021,
"Marginal loss and exclusion loss for partially supervised multi-organ segmentation"). With z_u the logits of those
classes and q their softmax among themselves:

    z = log Σ_u exp z_u,   ∂loss/∂z_u = q_u ∂loss/∂z

so that everything else is computed from fewer logits as ever. All of it happens in the slab's own memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class MergedClasses(NamedTuple):
    """The classes of a sample that does not annotate all, in the order in which its logits are computed."""

    order: Int[Tensor, " C"]
    """Every class: the annotated ones, the background as the last of them, then the others."""
    n_annotated: int
    """How many are left once the others are merged into the background."""
    row_of: Int[Tensor, " C"]
    """The place of each class in `order`."""

    @property
    def annotated(self) -> Int[Tensor, " rows"]:
        """The class of each row that is left."""
        return self.order[: self.n_annotated]


def merged_classes(annotated: Collection[int], n_classes: int, device: torch.device) -> MergedClasses | None:
    """Return how a sample's classes are merged; None where it annotates all.

    annotated: indices of the classes that its label shows where they are; the background belongs to them unsaid.

    >>> merged_classes([3], 5, torch.device("cpu")).order.tolist()
    [3, 0, 1, 2, 4]
    """
    shown = [c for c in range(1, n_classes) if c in annotated]
    if len(shown) == n_classes - 1:
        return None
    order = torch.tensor([*shown, 0, *(c for c in range(1, n_classes) if c not in annotated)])
    return MergedClasses(order.to(device), len(shown) + 1, order.argsort().to(device))


def are_annotated(annotated: Sequence[Collection[int]], n_classes: int) -> Bool[Tensor, "B C"]:
    """Say of each sample and class whether it is annotated; the background always is.

    Raises:
        ValueError: an index that is no class.

    >>> are_annotated([(1,), (1, 2)], 3).tolist()
    [[True, True, False], [True, True, True]]
    """
    strangers = sorted({c for classes in annotated for c in classes if not 0 <= c < n_classes})
    if strangers:
        raise ValueError(f"annotated: expected classes 0 … {n_classes - 1}, found {strangers[0]}")
    rows = [[c == 0 or c in classes for c in range(n_classes)] for classes in annotated]
    return torch.tensor(rows, dtype=torch.bool).view(len(annotated), n_classes)


def merge_into_background(logits: Float[Tensor, "C n"], n_annotated: int) -> Float[Tensor, " n"]:
    """Make the first `n_annotated` rows the logits of the merged classes, and return the background's own share.

    Overwrites all rows, which are in the order of `MergedClasses`: those behind hold each class's share of what was
    merged, for `spread_gradient`.
    """
    # Of logits near 0 a logarithm keeps all digits, also where they were 1e4; a softmax does not see the difference.
    logits.sub_(logits.amax(0))
    group = logits[n_annotated - 1 :]
    top = group.amax(0)
    group.sub_(top).exp_()
    total = group.sum(0)
    group.div_(total)
    own_share = group[0].clone()
    torch.add(total.log_(), top, out=group[0])
    return own_share


def spread_gradient(gradient: Float[Tensor, "C n"], n_annotated: int, own_share: Float[Tensor, " n"]) -> None:
    """Turn the gradient of merged logits into that of all classes, in place.

    Args:
        gradient: first the rows of the merged logits, then the shares that `merge_into_background` left.
        n_annotated: rows of merged logits, the background's as the last.
        own_share: what `merge_into_background` returned.
    """
    gradient[n_annotated:].mul_(gradient[n_annotated - 1])
    gradient[n_annotated - 1].mul_(own_share)
