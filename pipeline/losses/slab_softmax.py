"""The logits of one slab of voxels, their softmax statistics and the gradient that replaces them; compiled on request.

Knows one slab at a time; `losses` adds them up to a loss. The formulas stand there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from networks.head import as_matrix
from transforms.slabs import slabs

logger = logging.getLogger(__name__)


class Slab(NamedTuple):
    """Some voxels of one sample: features (F, n), logits (C, n), which may be overwritten, and labels (n,)."""

    features: Float[Tensor, "F n"]
    logits: Float[Tensor, "C n"]
    label: Int[Tensor, " n"]
    ignored: Bool[Tensor, " n"] | None


class SlabBatch:
    """Features, label and head, out of which one slab's logits at a time are made; a sample left out has no slab."""

    def __init__(
        self,
        features: Float[Tensor, "B F *grid"],
        weight: Float[Tensor, "C F"] | None,
        bias: Float[Tensor, " C"] | None,
        label: Integer[Tensor, "B N"],
        ignore_index: int | None,
        memory_budget_mb: float | int | None,
        left_out: Collection[int] = (),
    ) -> None:
        self.dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.samples = [as_matrix(sample) for sample in features]
        self.matrix = None if weight is None else weight.to(self.dtype)
        self.shift = None if bias is None else bias.to(self.dtype)[:, None]
        self.label, self.ignore_index = label, ignore_index
        n_classes = features.shape[1] if weight is None else len(weight)
        # Logits and their gradient's factor, features and their gradient, the label and about six numbers a voxel.
        bytes_per_voxel = (2 * n_classes + 2 * features.shape[1] + 8) * self.dtype.itemsize
        cuts = slabs(label.shape[1], bytes_per_voxel, features.device, memory_budget_mb)
        self.places = [(b, voxels) for b in range(len(features)) if b not in left_out for voxels in cuts]

    def slab(self, sample: int, voxels: slice) -> Slab:
        x = self.samples[sample][:, voxels].to(self.dtype)
        y = self.label[sample, voxels].long()
        ignored = None if self.ignore_index is None else y == self.ignore_index
        if ignored is not None:
            y.masked_fill_(ignored, 0)
        if self.matrix is None:
            logits = x.clone()
        else:
            logits = self.matrix @ x if self.shift is None else torch.addmm(self.shift, self.matrix, x)
        return Slab(x, logits, y, ignored)

    def write_gradient(self, logits: Float[Tensor, "C n"], target: Float[Tensor, "F n"]) -> None:
        """Write the head's transpose times the logits' gradient into the slab of the features' gradient."""
        if self.matrix is None:
            target.copy_(logits)
        elif target.dtype == logits.dtype:
            torch.mm(self.matrix.T, logits, out=target)
        else:
            target.copy_(self.matrix.T @ logits)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile the function; where there is no working compiler, say so once and go on without."""
    from torch._dynamo.exc import TorchDynamoException  # late: importing the compiler takes seconds

    attempts = [torch.compile(function, dynamic=True)]

    def run(*arguments: Any) -> Any:
        try:
            return attempts[0](*arguments)
        except TorchDynamoException as error:
            if attempts[0] is function:
                raise
            logger.warning("the loss runs uncompiled, since torch.compile failed: %s", str(error).splitlines()[0])
            attempts[0] = function
            return function(*arguments)

    return run


def summarise(
    logits: Float[Tensor, "C n"], label: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Return 1 / Σ exp, the label's log-likelihood and whether the label is on top, a voxel each.

    Overwrites the logits with exp(logits − their maximum), which never exceeds 1.
    """
    top = logits.amax(0)
    own = logits.gather(0, label[None])[0]
    logits.sub_(top).exp_()
    total = logits.sum(0)
    return total.reciprocal(), (own - top).sub_(total.log()), own >= top


def differentiate(
    logits: Float[Tensor, "C n"],
    inverse: Float[Tensor, " n"],
    label: Int[Tensor, " n"],
    ignored: Bool[Tensor, " n"] | None,
    own_gradient: Float[Tensor, " C"],
    any_gradient: Float[Tensor, " C"],
    ce_gradient: Float[Tensor, " C"],
) -> None:
    """Overwrite a slab's logits with the loss's gradient, as given at the top of this file.

    The maximum is taken once more: subtracting a stored log Σ exp would lose the last digits at logits of 1e4.
    """
    logits.sub_(logits.amax(0)).exp_()
    own = logits.gather(0, label[None])[0] * inverse
    gain = own_gradient[label] * own - ce_gradient[label]
    if ignored is not None:
        gain.masked_fill_(ignored, 0)
    shift = (any_gradient @ logits).mul_(inverse).add_(gain).mul_(inverse)
    # (b_k − shift) / Σ exp in one go; ignored voxels have 1 / Σ exp = 0.
    logits.mul_(torch.addr(shift.neg_()[None], any_gradient, inverse))
    logits.scatter_add_(0, label[None], gain[None])
