"""Logits of one slab of voxels, their softmax statistics and the gradient that replaces them; see `dice_ce`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from networks.head import as_matrix
from transforms.slabs import slabs


class Slab(NamedTuple):
    """n voxels of one sample."""

    features: Float[Tensor, "F n"]
    """A view of the caller's features where their dtype is the slab's."""
    logits: Float[Tensor, "C n"]
    """Memory of the slab's own, free to be overwritten."""
    label: Int[Tensor, " n"]
    """Classes; 0 where the voxel is ignored."""
    ignored: Bool[Tensor, " n"] | None
    """Voxels that do not count; None if all do."""


class Coefficients(NamedTuple):
    """Factors of the loss's gradient, one a class; a, b and w / Σ w in `dice_ce`'s formulas."""

    own: Float[Tensor, " C"]
    """Dice's derivative by the softmax of a voxel's own class."""
    anywhere: Float[Tensor, " C"]
    """Dice's derivative by the softmax of the class in any voxel."""
    cross_entropy: Float[Tensor, " C"]
    """The class's weight in the cross entropy, divided by the sum of all voxels' weights."""


class SlabBatch:
    """Features, head and label of a batch, out of which the logits of one slab at a time are made.

    Args:
        features: Of any floating dtype; logits are float64 for float64 features, else float32.
        weight: The head's matrix; None: the features are the logits.
        bias: The head's bias, if it has one.
        label: Classes, and `ignore_index`.
        ignore_index: Label of the voxels that do not count; None: all count.
        memory_budget_mb: MiB for the working set of one slab; None takes the fastest measured for the device.
    """

    def __init__(
        self,
        features: Float[Tensor, "B F *grid"],
        weight: Float[Tensor, "C F"] | None,
        bias: Float[Tensor, " C"] | None,
        label: Integer[Tensor, "B N"],
        ignore_index: int | None,
        memory_budget_mb: float | int | None,
    ) -> None:
        self.dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.samples = [as_matrix(sample) for sample in features]
        self.matrix = None if weight is None else weight.to(self.dtype)
        self.shift = None if bias is None else bias.to(self.dtype)[:, None]
        self.label = label
        self.ignore_index = ignore_index
        self.n_classes = features.shape[1] if weight is None else len(weight)
        # Logits and their gradient's factor, features and their gradient, the label and about six numbers a voxel.
        bytes_per_voxel = (2 * self.n_classes + 2 * features.shape[1] + 8) * self.dtype.itemsize
        cuts = slabs(label.shape[1], bytes_per_voxel, features.device, memory_budget_mb)
        self.pieces = [(sample, voxels) for sample in range(len(features)) for voxels in cuts]
        """(sample, voxels) of every slab."""

    def slab(self, sample: int, voxels: slice) -> Slab:
        """Compute the logits of a slab and gather what belongs to it."""
        x = self.samples[sample][:, voxels].to(self.dtype)
        y = self.label[sample, voxels].long()
        ignored = None if self.ignore_index is None else y == self.ignore_index
        if ignored is not None:
            y = y.masked_fill(ignored, 0)  # not in place: an int64 label would be the caller's own memory
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


def summarise(slab: Slab) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Return 1 / Σ exp, the label's log-likelihood and whether the label is on top, a voxel each; ignored ones too.

    Overwrites the logits with exp(logits − their maximum), which never exceeds 1.
    """
    top = slab.logits.amax(0)
    own = slab.logits.gather(0, slab.label[None])[0]
    slab.logits.sub_(top).exp_()
    total = slab.logits.sum(0)
    return total.reciprocal(), (own - top).sub_(total.log()), own >= top


def differentiate(slab: Slab, inverse: Float[Tensor, " n"], coefficients: Coefficients) -> None:
    """Overwrite a slab's logits with the loss's gradient, as given at the top of `dice_ce`.

    The maximum is taken once more: subtracting a stored log Σ exp would lose the last digits at logits of 1e4.

    Args:
        slab: With fresh logits.
        inverse: 1 / Σ exp of `summarise`; 0 for ignored voxels.
        coefficients: Already multiplied by the gradient for the loss.
    """
    logits, label = slab.logits, slab.label
    logits.sub_(logits.amax(0)).exp_()
    own = logits.gather(0, label[None])[0] * inverse
    gain = coefficients.own[label] * own - coefficients.cross_entropy[label]
    if slab.ignored is not None:
        gain.masked_fill_(slab.ignored, 0)
    shift = (coefficients.anywhere @ logits).mul_(inverse).add_(gain).mul_(inverse)
    # (b_k − shift) / Σ exp in one go; ignored voxels have 1 / Σ exp = 0.
    logits.mul_(torch.addr(shift.neg_()[None], coefficients.anywhere, inverse))
    logits.scatter_add_(0, label[None], gain[None])
