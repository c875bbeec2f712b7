"""Logits of one slab of voxels, their softmax statistics and the gradient that replaces them; see `dice_ce`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from pipeline.losses.partial_labels import MergedClasses, merge_into_background, merged_classes, spread_gradient
from transforms.slabs import slabs


class Slab(NamedTuple):
    """n voxels of one sample. A row is a class; where classes are merged, one of those that are left."""

    features: Float[Tensor, "F n"]
    """A view of the caller's features where their dtype is the slab's."""
    logits: Float[Tensor, "rows n"]
    """Memory of the slab's own, free to be overwritten."""
    label: Int[Tensor, " n"]
    """The row of each voxel's class; that of any class where the voxel is ignored."""
    ignored: Bool[Tensor, " n"] | None
    """Voxels that do not count; None if all do."""
    merged: MergedClasses | None = None
    """Which class each row is; None where every class has the row of its index."""
    of_all: Float[Tensor, "C n"] | None = None
    """The memory of which `logits` are the first rows, in `merged`'s order; None where nothing is merged."""
    own_share: Float[Tensor, " n"] | None = None
    """See `merge_into_background`; None where nothing is merged."""

    def classes(self) -> Int[Tensor, " n"]:
        """The class of each voxel."""
        return self.label if self.merged is None else self.merged.annotated[self.label]


class Coefficients(NamedTuple):
    """Factors of the loss's gradient, one a row of a slab; a, b and w / Σ w in `dice_ce`'s formulas."""

    own: Float[Tensor, " rows"]
    """Dice's derivative by the softmax of a voxel's own class."""
    anywhere: Float[Tensor, " rows"]
    """Dice's derivative by the softmax of the class in any voxel."""
    cross_entropy: Float[Tensor, " rows"]
    """The class's weight in the cross entropy, divided by the sum of all voxels' weights."""

    def of_rows(self, merged: MergedClasses | None) -> Coefficients:
        """Those of the classes that are left where some are merged, in their order."""
        return self if merged is None else Coefficients(*(factors[merged.annotated] for factors in self))


class SlabBatch:
    """Features, head and label of a batch, out of which the logits of one slab at a time are made.

    Args:
        features: Of any floating dtype; logits are float64 for float64 features, else float32.
        weight: The head's matrix; None: the features are the logits.
        bias: The head's bias, if it has one.
        label: Classes, and `ignore_index`.
        ignore_index: Label of the voxels that do not count; None: all count.
        memory_budget_mb: MiB for the working set of one slab; None takes the fastest measured for the device.
        annotated: By sample the classes that its label shows; None: all.
    """

    def __init__(
        self,
        features: Float[Tensor, "B F *grid"],
        weight: Float[Tensor, "C F"] | None,
        bias: Float[Tensor, " C"] | None,
        label: Integer[Tensor, "B N"],
        ignore_index: int | None,
        memory_budget_mb: float | int | None,
        annotated: Sequence[Collection[int]] | None = None,
    ) -> None:
        self.dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.features = features
        self.samples = [sample.flatten(1) for sample in features]
        self.matrix = None if weight is None else weight.to(self.dtype)
        self.shift = None if bias is None else bias.to(self.dtype)[:, None]
        self.label = label
        self.ignore_index = ignore_index
        self.n_classes = features.shape[1] if weight is None else len(weight)
        n_samples, device = len(features), features.device
        self.merged: list[MergedClasses | None] = [None] * n_samples
        if annotated is not None:
            self.merged = [merged_classes(classes, self.n_classes, device) for classes in annotated]
        # Logits and their gradient's factor, features and their gradient, the label and about six numbers a voxel.
        # Merging takes three more, and one or more fewer in the factor.
        bytes_per_voxel = (2 * self.n_classes + 2 * features.shape[1] + 8) * self.dtype.itemsize
        cuts = slabs(label.shape[1], bytes_per_voxel, device, memory_budget_mb)
        self.pieces = [(sample, voxels) for sample in range(n_samples) for voxels in cuts]
        """(sample, voxels) of every slab."""

    def slab(self, sample: int, voxels: slice) -> Slab:
        """Compute the logits of a slab and gather what belongs to it."""
        x = self.samples[sample][:, voxels].to(self.dtype)
        y = self.label[sample, voxels].long()
        ignored = None if self.ignore_index is None else y == self.ignore_index
        if ignored is not None:
            y = y.masked_fill(ignored, 0)  # not in place: an int64 label would be the caller's own memory
        merged = self.merged[sample]
        if merged is None:
            return Slab(x, self._logits(x, self.matrix, self.shift), y, ignored)
        if self.matrix is None:
            logits = x[merged.order]
        else:
            shift = None if self.shift is None else self.shift[merged.order]
            logits = self._logits(x, self.matrix[merged.order], shift)
        own_share = merge_into_background(logits, merged.n_annotated)
        return Slab(x, logits[: merged.n_annotated], merged.row_of[y], ignored, merged, logits, own_share)

    @staticmethod
    def _logits(
        x: Float[Tensor, "F n"], matrix: Float[Tensor, "C F"] | None, shift: Float[Tensor, "C 1"] | None
    ) -> Float[Tensor, "C n"]:
        if matrix is None:
            return x.clone()
        return matrix @ x if shift is None else torch.addmm(shift, matrix, x)

    def write_gradient(
        self, logits: Float[Tensor, "C n"], target: Float[Tensor, "F n"], merged: MergedClasses | None = None
    ) -> None:
        """Write the head's transpose times the logits' gradient into the slab of the features' gradient.

        merged: the order of the logits' rows; None: that of the classes.
        """
        matrix = self.matrix if self.matrix is None or merged is None else self.matrix[merged.order]
        if matrix is None:
            target.copy_(logits if merged is None else logits[merged.row_of])
        elif target.dtype == logits.dtype:
            torch.mm(matrix.T, logits, out=target)
        else:
            target.copy_(matrix.T @ logits)


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
        coefficients: Of the slab's rows, already multiplied by the gradient for the loss.
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


def gradient_of_all(slab: Slab) -> Float[Tensor, "C n"]:
    """Return the gradient that `differentiate` left, for every class, in the order of the slab's `merged`."""
    if slab.merged is None or slab.of_all is None or slab.own_share is None:
        return slab.logits
    spread_gradient(slab.of_all, slab.merged.n_annotated, slab.own_share)
    return slab.of_all
