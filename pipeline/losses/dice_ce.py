"""Weighted soft Dice + cross entropy from features and a linear head, computed slab by slab. Pure: opens no file.

Knows the loss, its gradient and the training accuracy; leaves the cutting into slabs to `slabs`, the class weights to
whoever counts the classes, and logging to `module`.

Full-size logits, probabilities and one-hot labels never exist, so that memory does not grow with the class count. The
Dice term needs sums over whole volumes: the forward pass walks through the slabs and gathers the sums; the backward
pass walks through them again, recomputes each slab's softmax and turns it into gradients in place. What is kept in
between is one number a voxel.

With I, P and L the sums of p·y, p and y over the voxels of a class c (p softmax, y label), s = 1e-5 and weights w:

    dice = mean_c w_c (1 − N_c / D_c),   N = 2 I + s,   D = P + L + s                  (Milletari et al. 2016)
    ce   = Σ_v w_y(v) · −log p_y(v) / Σ_v w_y(v)
    loss = dice + ce                                           (monai.losses.DiceCELoss, softmax, to_onehot_y)
    ∂loss/∂z_k = p_k (b_k − Σ_c p_c b_c − g) + [k = y] g,   g = a_y p_y − w_y / Σ w
    a_c = −2 w_c / (n D_c),   b_c = w_c N_c / (n D_c²),   n the number of classes in the mean
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from networks.head import as_matrix, head_matrix
from pipeline.compute.ranks import gathered, n_processes, rank
from pipeline.losses.slab_softmax import SlabBatch, compiled, differentiate, summarise
from transforms.slabs import counting_slabs, share_out

# The smoothing of MONAI's DiceLoss: smooth_nr = smooth_dr = 1e-5.
SMOOTH = 1e-5

T = TypeVar("T")


class DiceCE(NamedTuple):
    """The loss, and what the same pass counted; the counts carry no gradient."""

    loss: Float[Tensor, ""]
    """Dice + cross entropy, float32 (float64 for float64 features)."""
    n_correct: Int[Tensor, ""]
    """Voxels whose label has the highest logit; a tie with another class counts as correct."""
    n_voxels: Int[Tensor, ""]
    """Voxels that were looked at: all but the ignored ones."""


class SlabDiceCELoss(nn.Module):
    """Weighted soft Dice + cross entropy of `head(features)` without ever holding those logits.

    Arguments:
        class_weights: one weight a class, none negative, for the cross entropy and for the class's Dice term, as
            MONAI's DiceCELoss takes them. None weighs all classes alike.
        batch: True sums a class's Dice over the whole batch and averages over all classes, equal to
            DiceCELoss(batch=True): a class that the batch lacks costs its predicted volume. False takes the Dice of
            each sample by itself over the classes *present in that sample's label*, averages over these classes and
            then over the samples with any label; MONAI's batch=False is dominated by the classes that a volume lacks.
        ignore_index: voxels with this label count neither in Dice nor in cross entropy, as if they were not there.
        memory_budget_mb: MiB for the working set of one slab; None takes the fastest measured for the device.
        compile: run the slab's elementwise part through torch.compile, or without where that fails. On a 2-core
            AVX-512 CPU it was a third slower than without, so it is for accelerators.

    Several processes that train together may take their batches for one (`across_processes`): the loss is then the same
    in all of them, and gradients are scaled so that their *mean* over the processes, which DistributedDataParallel
    takes, is the gradient of one process with all the samples.

    A cross entropy whose weights sum to zero (all voxels ignored or of weight 0) is 0, where MONAI has NaN.
    """

    def __init__(
        self,
        class_weights: Sequence[float | int] | Tensor | None = None,
        batch: bool = True,
        ignore_index: int | None = None,
        memory_budget_mb: float | int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if weights is not None and not bool((weights >= 0).all()):
            raise ValueError("class_weights: expected numbers of 0 and above, found a negative one or NaN")
        self.class_weights: Tensor | None
        # Not persistent: the weights belong to the configuration, not to the network's checkpoint.
        self.register_buffer("class_weights", weights, persistent=False)
        self.batch = batch
        self.ignore_index = ignore_index
        self.memory_budget_mb = memory_budget_mb
        self.compile_slab = compile

    def forward(
        self,
        features: Float[Tensor, "B F *grid"],
        head: nn.Module | None,
        label: Integer[Tensor, "B ..."],
        *,
        across_processes: bool = False,
        counted: Sequence[bool] | None = None,
    ) -> DiceCE:
        """Compute the loss of `head(features)` (features themselves are the logits if head is None).

        `label` is an integer map (B, 1, *grid) or (B, *grid). The other arguments and what is raised: `slab_dice_ce`.
        """
        weight, bias = head_matrix(head, features.shape[1])
        return slab_dice_ce(
            features,
            weight,
            bias,
            label,
            class_weights=self.class_weights,
            batch=self.batch,
            ignore_index=self.ignore_index,
            memory_budget_mb=self.memory_budget_mb,
            compile=self.compile_slab,
            across_processes=across_processes,
            counted=counted,
        )


def slab_dice_ce(
    features: Float[Tensor, "B F *grid"],
    weight: Float[Tensor, "C F"] | None,
    bias: Float[Tensor, " C"] | None,
    label: Integer[Tensor, "B ..."],
    *,
    class_weights: Float[Tensor, " weights"] | None = None,
    batch: bool = True,
    ignore_index: int | None = None,
    memory_budget_mb: float | int | None = None,
    compile: bool = False,
    across_processes: bool = False,
    counted: Sequence[bool] | None = None,
) -> DiceCE:
    """Compute what `SlabDiceCELoss` computes, from the head's weight and bias; its arguments are explained there.

    `label` is an integer map (B, 1, *grid) or (B, *grid).

    With `across_processes` all connected processes must call this together, with batch=False for equally many samples
    each; n_correct and n_voxels remain this process's own. A sample that is not `counted` (None: all are) only fills
    the batch up: the loss is as if it were not there, and its gradient is 0.

    The head's product is taken in float32 (float64 for float64 features) whatever the autocast, from features of any
    floating type; gradients come back in the type and layout of what they belong to, so a GradScaler works as usual.

    Raises ValueError if the label's grid is not the features', if a label is neither a class nor `ignore_index`, or
    if `class_weights` has another length than there are classes.
    """
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
    left_out = () if counted is None else tuple(b for b, counts in enumerate(counted) if not counts)
    together = across_processes and n_processes() > 1
    plan = _Plan(n_classes, batch, ignore_index, memory_budget_mb, compile, together, left_out)
    return DiceCE(*_SlabDiceCE.apply(features, weight, bias, label.flatten(1), class_weights, plan))


class _Plan(NamedTuple):
    n_classes: int
    batch: bool
    ignore_index: int | None
    memory_budget_mb: float | int | None
    compile: bool
    across_processes: bool
    left_out: tuple[int, ...]


class _SlabDiceCE(torch.autograd.Function):
    """(features, weight, bias, label (B, N), class weights, plan) -> loss, n_correct, n_voxels."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        label: Tensor,
        class_weights: Tensor,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:
        counts = _class_counts(label, plan)
        # Under autocast the head would round the logits to 8 bits of mantissa, and the softmax would see it.
        with torch.autocast(features.device.type, enabled=False):
            sums, inverses, n_correct = _gather_sums(_slab_batch(features, weight, bias, label, plan), plan)
        n_voxels = counts.sum().long()
        own_share = slice(None)
        if plan.across_processes:
            sums, counts, own_share = _of_all_processes(sums, counts, plan)
        ce, ce_gradient = _cross_entropy(sums.log_likelihood, counts, class_weights.double())
        dice, *dice_gradients = _dice(sums, counts, class_weights.double(), plan.batch)
        own_gradient, any_gradient = (g[own_share].expand(len(label), -1) for g in dice_gradients)
        ctx.plan = plan
        ctx.save_for_backward(features, weight, bias, label, inverses, own_gradient, any_gradient, ce_gradient)
        ctx.mark_non_differentiable(n_correct, n_voxels)
        return (ce + dice).to(inverses.dtype), n_correct, n_voxels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        features, weight, bias, label, inverses, *coefficients = ctx.saved_tensors
        plan: _Plan = ctx.plan
        if plan.across_processes:
            loss_gradient = loss_gradient * n_processes()  # DistributedDataParallel will divide by it
        own, anywhere, ce = ((c * loss_gradient).to(inverses.dtype) for c in coefficients)
        needs = ctx.needs_input_grad
        into_gradient = compiled(differentiate) if plan.compile else differentiate
        with torch.autocast(features.device.type, enabled=False):
            batch = _slab_batch(features, weight, bias, label, plan)
            into_features = _empty_like(features) if needs[0] else None
            if into_features is not None and plan.left_out:
                into_features[list(plan.left_out)] = 0

            def add_up(places: Sequence[tuple[int, slice]]) -> list[Tensor]:
                # In float64, since a thousand slabs are added up; these are a few thousand numbers.
                into_head = [torch.zeros_like(h, dtype=torch.float64) for h in (weight, bias) if h is not None]
                for b, voxels in places:
                    slab = batch.slab(b, voxels)
                    logits = slab.logits
                    # From here on the logits' place holds their gradient.
                    into_gradient(logits, inverses[b, voxels], slab.label, slab.ignored, own[b], anywhere[b], ce)
                    if needs[1]:
                        into_head[0] += logits @ slab.features.T
                    if needs[2]:
                        into_head[1] += logits.sum(1)
                    if into_features is not None:
                        batch.write_gradient(logits, as_matrix(into_features[b])[:, voxels])
                return into_head

            into_head = [sum(parts) for parts in zip(*_share_out(batch, add_up, plan), strict=True)]
        into_weight = into_head[0].to(weight.dtype) if needs[1] else None
        into_bias = into_head[1].to(bias.dtype) if needs[2] else None
        return into_features, into_weight, into_bias, None, None, None


def _slab_batch(features: Tensor, weight: Tensor | None, bias: Tensor | None, label: Tensor, plan: _Plan) -> SlabBatch:
    return SlabBatch(features, weight, bias, label, plan.ignore_index, plan.memory_budget_mb, plan.left_out)


def _share_out(batch: SlabBatch, work: Callable[[Sequence[tuple[int, slice]]], T], plan: _Plan) -> list[T]:
    # The compiler is not to be entered by several threads at once.
    return [work(batch.places)] if plan.compile else share_out(batch.places, work, batch.label.device)


def _empty_like(features: Float[Tensor, "B F *grid"]) -> Float[Tensor, "B F *grid"]:
    """Make an unset tensor of the same shape and type, channels last if the features are, else contiguous."""
    if features.stride(1) == 1:
        batch, channels, *grid = features.shape
        return features.new_empty(batch, *grid, channels).movedim(-1, 1)
    return torch.empty_like(features, memory_format=torch.contiguous_format)


class _Sums(NamedTuple):
    """Sums over each sample's voxels, float64 (B, C): p_c where the label is c, p_c anywhere, log p_c where it is c."""

    overlap: Tensor
    prediction: Tensor
    log_likelihood: Tensor


def _gather_sums(batch: SlabBatch, plan: _Plan) -> tuple[_Sums, Tensor, Tensor]:
    """Walk through all slabs; return the sums, 1 / Σ exp of each voxel (B, N) and the number of correct voxels."""
    statistics = compiled(summarise) if plan.compile else summarise
    label = batch.label
    inverses = torch.empty(label.shape, dtype=batch.dtype, device=label.device)

    def add_up(places: Sequence[tuple[int, slice]]) -> tuple[Tensor, Tensor]:
        table = torch.zeros(3, len(label), plan.n_classes, dtype=torch.float64, device=label.device)
        sums, n_correct = _Sums(*table), label.new_zeros((), dtype=torch.int64)
        for b, voxels in places:
            slab = batch.slab(b, voxels)
            inverse, log_likelihood, correct = statistics(slab.logits, slab.label)
            likelihood = log_likelihood.exp()
            if slab.ignored is not None:
                correct &= ~slab.ignored
                for quantity in (inverse, likelihood, log_likelihood):
                    quantity.masked_fill_(slab.ignored, 0)
            sums.overlap[b].index_add_(0, slab.label, likelihood.double())
            sums.log_likelihood[b].index_add_(0, slab.label, log_likelihood.double())
            sums.prediction[b] += slab.logits @ inverse
            inverses[b, voxels] = inverse
            n_correct += correct.sum()
        return table, n_correct

    tables, n_correct = zip(*_share_out(batch, add_up, plan), strict=True)
    return _Sums(*torch.stack(tables).sum(0)), inverses, torch.stack(n_correct).sum()


def _of_all_processes(sums: _Sums, counts: Tensor, plan: _Plan) -> tuple[_Sums, Tensor, slice]:
    """Put all processes' sums and counts one below the other; the slice is where this process's samples stand.

    Where the whole batch is summed, each process gives one row, so that their numbers of samples may differ.
    """
    tables = torch.stack([*sums, counts], dim=1)
    if plan.batch:
        return *_untangle(gathered(tables.sum(0, keepdim=True))), slice(None, 1)
    first = rank() * len(tables)
    return *_untangle(gathered(tables)), slice(first, first + len(tables))


def _untangle(tables: Tensor) -> tuple[_Sums, Tensor]:
    *sums, counts = tables.unbind(1)
    return _Sums(*sums), counts


def _class_counts(label: Tensor, plan: _Plan) -> Tensor:
    """Count each sample's voxels of each class, float64 (B, C); refuse a label that is neither class nor ignored."""
    n_classes = plan.n_classes
    counts = label.new_zeros(len(label), n_classes + 2, dtype=torch.int64)
    for b, sample in enumerate(label):
        for voxels in counting_slabs(len(sample), label.device):
            y = sample[voxels].long()
            # One bin more for strangers and one for the ignored, which may have any number.
            bins = torch.where((y < 0) | (y >= n_classes), n_classes, y)
            if plan.ignore_index is not None:
                bins.masked_fill_(y == plan.ignore_index, n_classes + 1)
            counts[b] += torch.bincount(bins, minlength=n_classes + 2)
            if counts[b, n_classes]:
                stranger = int(y[bins == n_classes][0])
                raise ValueError(
                    f"label: expected classes 0 … {n_classes - 1} or ignore_index {plan.ignore_index}, "
                    f"found {stranger}; remap the label, or set the class count or ignore_index to fit"
                )
    if plan.left_out:
        counts[list(plan.left_out)] = 0
    return counts[:, :n_classes].double()


def _cross_entropy(log_likelihood: Tensor, counts: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted cross entropy and w_c / Σ w (C,); both are 0 where the weights sum to 0."""
    total = (counts * weights).sum()
    share = torch.where(total > 0, weights / total.clamp(min=torch.finfo(torch.float64).tiny), 0)
    return -(log_likelihood * share).sum(), share


def _dice(sums: _Sums, counts: Tensor, weights: Tensor, batch: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Dice loss, its gradient by p_y where the label is c and by p_c anywhere: (B or 1, C)."""
    overlap, prediction, reference = sums.overlap, sums.prediction, counts
    if batch:
        overlap, prediction, reference = (s.sum(0, keepdim=True) for s in (overlap, prediction, reference))
        present = torch.ones_like(reference)
    else:
        present = (reference > 0).double()
    n_present = present.sum(1, keepdim=True)
    share = weights * present / n_present.clamp(min=1) / (n_present > 0).sum().clamp(min=1)
    numerator, denominator = 2 * overlap + SMOOTH, prediction + reference + SMOOTH
    loss = (share * (1 - numerator / denominator)).sum()
    own, anywhere = -2 * share / denominator, share * numerator / denominator**2
    return loss, own, anywhere
