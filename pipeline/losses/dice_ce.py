"""Weighted soft Dice + cross entropy from features and a linear head, computed slab by slab.

Full-size logits, probabilities and one-hot labels never exist, so that memory does not grow with the class count. The
Dice term needs sums over whole volumes: the forward pass walks through the slabs and gathers the sums; the backward
pass walks through them again, recomputes each slab's softmax and turns it into gradients in place. What is kept in
between is one number a voxel.

With I, P and L the sums of p·y, p and y over the voxels of a class c in the batch (p softmax, y label), s = 1e-5 and
weights w:

    dice = mean_c w_c (1 − N_c / D_c),   N = 2 I + s,   D = P + L + s                  (Milletari et al. 2016)
    ce   = Σ_v w_y(v) · −log p_y(v) / Σ_v w_y(v)
    loss = dice + ce                                           (monai.losses.DiceCELoss, softmax, to_onehot_y, batch)
    ∂loss/∂z_k = p_k (b_k − Σ_c p_c b_c − g) + [k = y] g,   g = a_y p_y − w_y / Σ w
    a_c = −2 w_c / (n D_c),   b_c = w_c N_c / (n D_c²),   n the number of classes

Where a sample's label does not annotate all classes, p and y are those of its merged classes (`partial_labels`): the
sums of a class are taken over the samples that annotate it, those of the background over all, and n is the number of
classes that some sample annotates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from networks import gpu_kernels
from networks.head import head_matrix
from pipeline.compute.ranks import gathered, n_processes
from pipeline.losses.label_counts import count_labels, refuse_hidden_classes, refuse_unknown_labels
from pipeline.losses.partial_labels import are_annotated
from pipeline.losses.slab_softmax import Coefficients, SlabBatch, differentiate, gradient_of_all, summarise
from transforms.slabs import share_out

SMOOTH = 1e-5
"""Smoothing of MONAI's DiceLoss, smooth_nr and smooth_dr."""


class DiceCE(NamedTuple):
    """The loss, and what the same pass counted; the counts carry no gradient."""

    loss: Float[Tensor, ""]
    """Dice + cross entropy, float32 (float64 for float64 features)."""
    n_correct: Int[Tensor, ""]
    """Voxels whose label has the highest logit; a tie with another class counts as correct. Where classes are not
    annotated, their probability counts as the background's."""
    n_voxels: Int[Tensor, ""]
    """Voxels that count: all but the ignored ones."""


class SlabDiceCELoss(nn.Module):
    """Weighted soft Dice + cross entropy of `head(features)` without ever holding those logits.

    Equal to monai.losses.DiceCELoss(softmax=True, to_onehot_y=True, batch=True, weight=class_weights), in value and in
    all gradients: a class's Dice is summed over the whole batch and averaged over all classes, so that a class that the
    batch lacks costs its predicted volume. A cross entropy whose weights sum to zero (all voxels ignored or of weight
    0) is 0, where MONAI has NaN.

    >>> features, head = torch.zeros(2, 16, 8, 8, 8, requires_grad=True), nn.Conv3d(16, 71, 1)
    >>> label = torch.zeros(2, 1, 8, 8, 8, dtype=torch.uint8)
    >>> loss, n_correct, n_voxels = SlabDiceCELoss()(features, head, label)
    >>> loss.backward()
    >>> features.grad.shape, int(n_voxels)
    (torch.Size([2, 16, 8, 8, 8]), 1024)

    Args:
        class_weights: One weight a class, none negative, for the cross entropy and for the class's Dice term. None
            weighs all classes alike.
        ignore_index: Voxels with this label count neither in Dice nor in cross entropy, as if they were not there.
        memory_budget_mb: MiB for the working set of one slab; None takes the fastest measured for the device.

    Attributes:
        checks_labels: Look for labels that are no class, for which a GPU is waited for. Without, the loss is NaN where
            there are some and kernels of our own run; `refuse_unknown_labels` then says which.

    Raises:
        ValueError: If a weight is negative or NaN.
    """

    def __init__(
        self,
        class_weights: Sequence[float | int] | Tensor | None = None,
        ignore_index: int | None = None,
        memory_budget_mb: float | int | None = None,
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if weights is not None and not bool((weights >= 0).all()):
            raise ValueError("class_weights: expected numbers of 0 and above, found a negative one or NaN")
        self.class_weights: Tensor | None
        # Not persistent: the weights belong to the configuration, not to the network's checkpoint.
        self.register_buffer("class_weights", weights, persistent=False)
        self.ignore_index = ignore_index
        self.memory_budget_mb = memory_budget_mb
        self.checks_labels = True

    def forward(
        self,
        features: Float[Tensor, "B F *grid"],
        head: nn.Module | None,
        label: Integer[Tensor, "B ..."],
        *,
        across_processes: bool = False,
        counted: Sequence[bool] | None = None,
        annotated: Sequence[Collection[int]] | None = None,
    ) -> DiceCE:
        """Compute the loss of `head(features)`; with head None the features are the logits (F = n_classes).

        The head's product is taken in float32 (float64 for float64 features) whatever the autocast, from features of
        any floating type; gradients come back in the type and layout of what they belong to, so a GradScaler works as
        usual.

        Args:
            features: The network's features.
            head: Its 1×1×1 convolution.
            label: Integer map (B, 1, *grid) or (B, *grid).
            across_processes: Take the batches of all connected processes for one. All must call this together. The loss
                is the same in all of them, and gradients are scaled so that their *mean* over the processes, which
                DistributedDataParallel takes, is the gradient of one process with all the samples; n_correct and
                n_voxels remain this process's own.
            counted: Whether each sample counts; one that does not only fills the batch up: the loss is as if it were
                not there, and its gradient is 0. None: all count.
            annotated: By sample the indices of the classes that its label shows, the background among them unsaid. The
                probability of the others counts as background (Shi et al. 2021). None: all; of connected processes all
                or none give it.

        Raises:
            ValueError: If the label's grid is not the features', if a label is neither a class nor `ignore_index`, if
                it holds a class that is not annotated, or if `class_weights` has another length than there are classes.
        """
        weight, bias = head_matrix(head, features.shape[1])
        options = _Options(self.ignore_index, self.memory_budget_mb, across_processes, annotated, self.checks_labels)
        return _dice_ce(features, weight, bias, label, self.class_weights, counted, options)


def _dice_ce(
    features: Float[Tensor, "B F *grid"],
    weight: Float[Tensor, "C F"] | None,
    bias: Float[Tensor, " C"] | None,
    label: Integer[Tensor, "B ..."],
    class_weights: Float[Tensor, " weights"] | None,
    counted: Sequence[bool] | None,
    options: _Options,
) -> DiceCE:
    # MONAI's MetaTensor would run its bookkeeping on each of thousands of slab operations.
    features, label = features.as_subclass(Tensor), label.as_subclass(Tensor)
    n_classes = features.shape[1] if weight is None else weight.shape[0]
    if label.ndim == features.ndim:
        label = label[:, 0]
    if label.shape != features.shape[:1] + features.shape[2:]:
        raise ValueError(
            f"label: expected {tuple(features.shape[:1] + features.shape[2:])}, the features' grid, "
            f"found {tuple(label.shape)}"
        )
    if class_weights is not None and class_weights.shape != (n_classes,):
        raise ValueError(f"class_weights: expected {n_classes} numbers, one a class, found {len(class_weights)}")
    if class_weights is None:
        class_weights = features.new_ones(n_classes, dtype=torch.float32)
    if counted is not None and not all(counted):
        kept = [sample for sample, counts in enumerate(counted) if counts]
        features, label = features[kept], label.long()[kept]  # torch (2.13) cannot index uint16
        if options.annotated is not None:
            options = options._replace(annotated=[options.annotated[sample] for sample in kept])
    if options.annotated is not None and len(options.annotated) != len(features):
        raise ValueError(f"annotated: expected the classes of {len(features)} samples, found {len(options.annotated)}")
    options = options._replace(across_processes=options.across_processes and n_processes() > 1)
    return DiceCE(*_SlabDiceCE.apply(features, weight, bias, label.flatten(1), class_weights, options))


class VolumeDiceCE:
    """The loss of one volume whose features come in parts, as those of a sliding window do; without gradient.

    Equal to `SlabDiceCELoss` of the whole volume, since the loss is made of sums over voxels.

    Args:
        head: the network's 1×1×1 convolution, or None where the features are the logits.
        class_weights: (C,), see `SlabDiceCELoss`; None weighs all classes alike.
        ignore_index: see there.
        annotated: indices of the classes that the label shows, see `SlabDiceCELoss.forward`; None: all.
    """

    def __init__(
        self,
        head: nn.Module | None,
        *,
        class_weights: Float[Tensor, " C"] | None = None,
        ignore_index: int | None = None,
        annotated: Collection[int] | None = None,
    ) -> None:
        self.head = head
        self.class_weights = class_weights
        self.options = _Options(ignore_index, None, False, None if annotated is None else [annotated])
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    @torch.no_grad()
    def add(self, features: Float[Tensor, F * grid], label: Integer[Tensor, "*grid"]) -> None:
        """Add a part of the volume. Raises ValueError as `SlabDiceCELoss.forward` does."""
        weight, bias = head_matrix(self.head, len(features))
        flat = label.as_subclass(Tensor).reshape(1, -1)
        with torch.autocast(features.device.type, enabled=False):
            batch = self.options.batch(features.as_subclass(Tensor)[None], weight, bias, flat)
            counts, _ = self.options.class_counts(flat, batch.n_classes)
            sums = torch.stack(_gather_sums(batch)[0])
        self._sums = sums if self._sums is None else self._sums + sums
        self._counts = counts if self._counts is None else self._counts + counts

    def loss(self) -> Float[Tensor, ""]:
        """Return the loss of all parts together, float64. Raises ValueError where no part was added."""
        if self._sums is None or self._counts is None:
            raise ValueError("loss: expected at least one part of the volume, found none")
        weights = (
            self._counts.new_ones(len(self._counts)) if self.class_weights is None else self.class_weights.double()
        )
        sums, shown = _Sums(*self._sums), self.options.n_annotating(self._counts)
        ce = _cross_entropy(sums.log_likelihood, self._counts, weights)[0]
        return ce + _dice(sums, self._counts, weights, shown)[0]


class _Options(NamedTuple):
    ignore_index: int | None
    memory_budget_mb: float | int | None
    across_processes: bool
    annotated: Sequence[Collection[int]] | None
    checks_labels: bool = True

    def batch(self, features: Tensor, weight: Tensor | None, bias: Tensor | None, label: Tensor) -> SlabBatch:
        return SlabBatch(features, weight, bias, label, self.ignore_index, self.memory_budget_mb, self.annotated)

    def class_counts(
        self, label: Integer[Tensor, "B N"], n_classes: int, *, checks: bool = True
    ) -> tuple[Float[Tensor, " C"], Int[Tensor, ""]]:
        """Count the voxels of each class, and those whose label is neither a class nor ignored.

        Raises:
            ValueError: If there are some of the latter and this `checks`, or if a class is not annotated.
        """
        counts, n_unknown = count_labels(label, n_classes, self.ignore_index)
        if checks and n_unknown:
            refuse_unknown_labels(label, n_classes, self.ignore_index)
        if self.annotated is not None:
            refuse_hidden_classes(counts, are_annotated(self.annotated, n_classes).to(label.device))
        return counts.sum(0).double(), n_unknown

    def n_annotating(self, counts: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """How many samples of this process annotate each class; 1 for every class where nothing says."""
        if self.annotated is None:
            return torch.ones_like(counts)
        return are_annotated(self.annotated, len(counts)).sum(0).to(counts)


class _Sums(NamedTuple):
    """Sums over all voxels of a batch, float64."""

    overlap: Float[Tensor, " C"]
    """p_c over the voxels whose label is c."""
    prediction: Float[Tensor, " C"]
    """p_c over all voxels."""
    log_likelihood: Float[Tensor, " C"]
    """log p_c over the voxels whose label is c."""


class _HeadGradient(NamedTuple):
    """Gradient of the head, float64: a thousand slabs are added up, of a few thousand numbers each."""

    weight: Float[Tensor, "C F"] | None
    bias: Float[Tensor, " C"] | None


class _SlabDiceCE(torch.autograd.Function):
    """(features, weight, bias, label (B, N), class weights, options) -> loss, n_correct, n_voxels."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        label: Tensor,
        class_weights: Tensor,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Under autocast the head would round the logits to 8 bits of mantissa, and the softmax would see it.
        with torch.autocast(features.device.type, enabled=False):
            batch = options.batch(features, weight, bias, label)
            checks = options.checks_labels or gpu_kernels_for(batch) is None  # slabs cannot do with unknown labels
            counts, n_unknown = options.class_counts(label, batch.n_classes, checks=checks)
            sums, inverses, n_correct = _gather_sums(batch)
        n_voxels, shown = counts.sum().long(), options.n_annotating(counts)
        if options.across_processes:
            *of_all, counts, shown = gathered(torch.stack([*sums, counts, shown])[None]).sum(0)
            sums = _Sums(*of_all)
        ce, ce_gradient = _cross_entropy(sums.log_likelihood, counts, class_weights.double())
        dice, own, anywhere = _dice(sums, counts, class_weights.double(), shown)
        loss = torch.where(n_unknown > 0, math.nan, ce + dice)
        ctx.options = options
        ctx.save_for_backward(features, weight, bias, label, inverses, own, anywhere, ce_gradient)
        ctx.mark_non_differentiable(n_correct, n_voxels)
        return loss.to(inverses.dtype), n_correct, n_voxels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        features, weight, bias, label, inverses, *coefficients = ctx.saved_tensors
        options: _Options = ctx.options
        if options.across_processes:
            loss_gradient = loss_gradient * n_processes()  # DistributedDataParallel will divide by it
        needs_features, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        into_features = _empty_like(features) if needs_features else None
        with torch.autocast(features.device.type, enabled=False):
            batch = options.batch(features, weight, bias, label)
            scaled = Coefficients(*((c * loss_gradient).to(inverses.dtype) for c in coefficients))
            head = _differentiate(batch, inverses, scaled, into_features)
        into_weight = head.weight.to(weight.dtype) if needs_weight and head.weight is not None else None
        into_bias = head.bias.to(bias.dtype) if needs_bias and head.bias is not None else None
        return into_features, into_weight, into_bias, None, None, None


def _differentiate(
    batch: SlabBatch,
    inverses: Float[Tensor, "B N"],
    coefficients: Coefficients,
    into_features: Float[Tensor, "B F *grid"] | None,
) -> _HeadGradient:
    """Write the gradient of the features, and return the head's."""
    if kernels := gpu_kernels_for(batch):
        of_weight, of_bias = kernels.differentiate(batch, inverses, coefficients, into_features)
        return _HeadGradient(of_weight, None if batch.shift is None else of_bias)
    work = partial(_differentiate_pieces, batch, inverses, coefficients, into_features)
    parts = share_out(batch.pieces, work, batch.label.device)
    return _HeadGradient(_total([part.weight for part in parts]), _total([part.bias for part in parts]))


def _total(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.stack(there).sum(0) if there else None


def _empty_like(features: Float[Tensor, "B F *grid"]) -> Float[Tensor, "B F *grid"]:
    """Make an unset tensor of the same shape and type, channels last if the features are, else contiguous."""
    if features.stride(1) == 1:
        batch, channels, *grid = features.shape
        return features.new_empty(batch, *grid, channels).movedim(-1, 1)
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _gather_sums(batch: SlabBatch) -> tuple[_Sums, Float[Tensor, "B N"], Int[Tensor, ""]]:
    """Walk through all slabs; return the sums, 1 / Σ exp of each voxel and the number of correct voxels."""
    inverses = torch.empty(batch.label.shape, dtype=batch.dtype, device=batch.label.device)
    if kernels := gpu_kernels_for(batch):
        table, n_correct = kernels.sum_up(batch, inverses)
        return _Sums(*table), inverses, n_correct
    parts = share_out(batch.pieces, partial(_sum_pieces, batch, inverses), batch.label.device)
    tables, n_correct = zip(*parts, strict=True)
    return _Sums(*torch.stack(tables).sum(0)), inverses, torch.stack(n_correct).sum()


def gpu_kernels_for(batch: SlabBatch) -> ModuleType | None:
    """Return `dice_ce_gpu` where it takes this batch, all voxels at once instead of slabs."""
    if not gpu_kernels.run_on(batch.features):
        return None
    from pipeline.losses import dice_ce_gpu  # needs Triton

    return dice_ce_gpu if dice_ce_gpu.can_take(batch) else None


def _sum_pieces(
    batch: SlabBatch, inverses: Float[Tensor, "B N"], pieces: Sequence[tuple[int, slice]]
) -> tuple[Float[Tensor, "3 C"], Int[Tensor, ""]]:
    """Add up these pieces' sums, in _Sums' order, and correct voxels; write their 1 / Σ exp."""
    table = torch.zeros(3, batch.n_classes, dtype=torch.float64, device=batch.label.device)
    sums, n_correct = _Sums(*table), batch.label.new_zeros((), dtype=torch.int64)
    for sample, voxels in pieces:
        slab = batch.slab(sample, voxels)
        inverse, log_likelihood, correct = summarise(slab)
        likelihood = log_likelihood.exp()
        if slab.ignored is not None:
            correct &= ~slab.ignored
            for quantity in (inverse, likelihood, log_likelihood):
                quantity.masked_fill_(slab.ignored, 0)
        classes = slab.classes()
        sums.overlap.index_add_(0, classes, likelihood.double())
        sums.log_likelihood.index_add_(0, classes, log_likelihood.double())
        prediction = (slab.logits @ inverse).double()
        if slab.merged is None:
            sums.prediction.add_(prediction)
        else:
            sums.prediction.index_add_(0, slab.merged.annotated, prediction)
        inverses[sample, voxels] = inverse
        n_correct += correct.sum()
    return table, n_correct


def _differentiate_pieces(
    batch: SlabBatch,
    inverses: Float[Tensor, "B N"],
    coefficients: Coefficients,
    into_features: Float[Tensor, "B F *grid"] | None,
    pieces: Sequence[tuple[int, slice]],
) -> _HeadGradient:
    """Write these pieces' gradient into that of the features; return their part of the head's."""
    into_weight = None if batch.matrix is None else torch.zeros_like(batch.matrix, dtype=torch.float64)
    into_bias = None if batch.shift is None else torch.zeros_like(batch.shift[:, 0], dtype=torch.float64)
    for sample, voxels in pieces:
        slab = batch.slab(sample, voxels)
        merged = slab.merged
        differentiate(slab, inverses[sample, voxels], coefficients.of_rows(merged))
        gradient = gradient_of_all(slab)
        if into_weight is not None:
            of_slab = gradient @ slab.features.T
            into_weight += of_slab if merged is None else of_slab[merged.row_of]
        if into_bias is not None:
            of_slab = gradient.sum(1)
            into_bias += of_slab if merged is None else of_slab[merged.row_of]
        if into_features is not None:
            batch.write_gradient(gradient, into_features[sample].flatten(1)[:, voxels], merged)
    return _HeadGradient(into_weight, into_bias)


def _cross_entropy(
    log_likelihood: Float[Tensor, " C"], counts: Float[Tensor, " C"], weights: Float[Tensor, " C"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " C"]]:
    """Return the weighted cross entropy and w_c / Σ w; both are 0 where the weights sum to 0."""
    total = (counts * weights).sum()
    share = torch.where(total > 0, weights / total.clamp(min=torch.finfo(torch.float64).tiny), 0)
    return -(log_likelihood * share).sum(), share


def _dice(
    sums: _Sums, counts: Float[Tensor, " C"], weights: Float[Tensor, " C"], shown: Float[Tensor, " C"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Return the Dice loss, its derivative by p_y where the label is c and by p_c anywhere.

    shown: how many samples annotate each class; one that none does has no term in the mean.
    """
    has_term = (shown > 0).double()
    share = weights * has_term / has_term.sum().clamp(min=1)
    numerator = 2 * sums.overlap + SMOOTH
    denominator = sums.prediction + counts + SMOOTH
    loss = (share * (1 - numerator / denominator)).sum()
    return loss, -2 * share / denominator, share * numerator / denominator**2
