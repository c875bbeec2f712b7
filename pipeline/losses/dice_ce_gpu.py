"""The two passes of `dice_ce` over all voxels on a GPU: logits, softmax and gradients stay in registers (Triton).

The slabs of `slab_softmax`, which are used elsewhere, write and read each of a slab's logits some ten times, and take
eight times as long there (H100, 71 classes).

Tensor cores multiply bfloat16 and add in float32. A float32 number is the sum of three bfloat16 ones, a float16 of two:
products of features and head are added up over these parts, and are as exact as float32's.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from networks import gpu_kernels
from networks.onednn_workaround import HALF
from pipeline.losses.slab_softmax import Coefficients, SlabBatch

LONGEST_EDGE, LARGEST_HEAD = 128, 128 * 32
"""Of the head's matrix, classes and features rounded up to powers of 2: the longer one, and their product. With more, a
tile of 64 voxels does not fit a multiprocessor's shared memory on every GPU from Ampere on (100 kB). 118 classes of 32
features do."""
PART = torch.bfloat16
"""What tensor cores multiply. Triton's interpreter, which runs kernels on a CPU, cannot, and is given float32."""
SUMMING, DIFFERENTIATING = 32, 64
"""Voxels of a tile in the two passes. With 71 classes on an H100 3.3 ms for the sums (64 voxels: 4.7) and 3.9 for the
gradient (32 voxels: 8.8; 128 take as long)."""
MOST_PROGRAMS = 1056
"""Programs that walk through the voxels: a few for each multiprocessor."""


def can_take(batch: SlabBatch) -> bool:
    """Return whether the kernels are made for a batch, which lies on a GPU: half precision, a head that fits, and every
    class annotated in every sample, of which there is one at least; labels are int32 in the kernels. They are tried
    once for each such head, and a warning says where they fail."""
    if batch.matrix is None or any(batch.merged) or batch.features.dtype not in HALF or not batch.label.numel():
        return False
    if not -(2**31) <= (batch.ignore_index or 0) < 2**31:
        return False
    blocks = _blocks(*batch.matrix.shape)
    if max(blocks) > LONGEST_EDGE or math.prod(blocks) > LARGEST_HEAD:
        return False
    features, ignores = batch.features, batch.ignore_index is not None
    return _can_run(features.device, features.dtype, *batch.matrix.shape, batch.shift is not None, ignores)


@functools.cache
def _can_run(
    device: torch.device, dtype: torch.dtype, n_classes: int, n_features: int, has_bias: bool, ignores: bool
) -> bool:
    """Try both kernels on a tile of voxels."""

    def try_both() -> None:
        features = torch.zeros(1, n_features, 1, 1, DIFFERENTIATING, device=device, dtype=dtype)
        weight, bias = (torch.zeros(n_classes, n, device=device) for n in (n_features, 1))
        label = torch.zeros(1, DIFFERENTIATING, device=device, dtype=torch.uint8)
        ignored = 0 if ignores else None
        batch = SlabBatch(features, weight, bias[:, 0] if has_bias else None, label, ignored, None, None)
        inverses = torch.empty(label.shape, device=device)
        sum_up(batch, inverses)
        differentiate(batch, inverses, Coefficients(*torch.zeros(3, n_classes, device=device)), features)

    return gpu_kernels.runs(try_both, f"the loss's kernels do not run for {n_classes} classes of {n_features} features")


def sum_up(batch: SlabBatch, inverses: Float[Tensor, "B N"]) -> tuple[Float[Tensor, "3 C"], Int[Tensor, ""]]:
    """Return the sums of `dice_ce._Sums`, float64, and the number of correct voxels; write 1 / Σ exp of each voxel, 0
    where it is ignored.

    Args:
        batch: One that `can_take` takes.
        inverses: float32, contiguous.
    """
    walk = _Walk(batch, SUMMING)
    sums = torch.empty(*walk.grid, 3, batch.n_classes, device=inverses.device)
    n_correct = torch.empty(walk.grid, dtype=torch.int32, device=inverses.device)
    with torch.cuda.device_of(inverses):
        _sum_up[walk.grid](*walk.inputs, inverses, sums, n_correct, *walk.sizes, **walk.constants)
    return sums.sum((0, 1), dtype=torch.float64), n_correct.sum()


def differentiate(
    batch: SlabBatch,
    inverses: Float[Tensor, "B N"],
    coefficients: Coefficients,
    into_features: Float[Tensor, "B F *grid"] | None,
) -> tuple[Float[Tensor, "C F"], Float[Tensor, " C"]]:
    """Write the gradient for the features; return those for weight and bias, float64.

    Args:
        batch: One that `can_take` takes.
        inverses: What `sum_up` wrote.
        coefficients: float32.
        into_features: Contiguous or channels-last; None where that gradient is not asked for.
    """
    walk = _Walk(batch, DIFFERENTIATING)
    target = walk.inputs[0] if into_features is None else into_features.flatten(2)
    into_weight = torch.empty(*walk.grid, batch.n_classes, batch.features.shape[1], device=inverses.device)
    into_bias = torch.empty(*walk.grid, batch.n_classes, device=inverses.device)
    with torch.cuda.device_of(inverses):
        _differentiate[walk.grid](
            *walk.inputs,
            inverses,
            torch.stack([*coefficients]),
            target,
            into_weight,
            into_bias,
            *walk.sizes,
            *target.stride(),
            **walk.constants,
            WRITES=into_features is not None,
        )
    return into_weight.sum((0, 1), dtype=torch.float64), into_bias.sum((0, 1), dtype=torch.float64)


def _blocks(*sizes: int) -> list[int]:
    """Round sizes up to what a product on tensor cores takes."""
    return [max(16, triton.next_power_of_2(n)) for n in sizes]


class _Walk:
    """What both kernels are given: the inputs, their sizes and how the voxels are shared out to programs."""

    def __init__(self, batch: SlabBatch, voxels: int) -> None:
        features, matrix, ignore_index = batch.features.flatten(2), batch.matrix, batch.ignore_index
        assert matrix is not None  # can_take has said so
        n_samples, n_features, n_voxels = features.shape
        block_c, block_f = _blocks(*matrix.shape)
        tiles = triton.cdiv(n_voxels, voxels)
        per_program = triton.cdiv(tiles, max(1, MOST_PROGRAMS // n_samples)) * voxels
        self.grid = (triton.cdiv(n_voxels, per_program), n_samples)
        parts = parts_of(matrix)
        self.inputs = (
            features,
            parts,
            parts if batch.shift is None else batch.shift[:, 0].contiguous(),
            batch.label.contiguous(),
        )
        self.sizes = (n_voxels, n_features, batch.n_classes, per_program, ignore_index or 0, *features.stride())
        self.constants: dict[str, Any] = {
            "IGNORES": ignore_index is not None,
            "HAS_BIAS": batch.shift is not None,
            "SPLIT": torch.finfo(features.dtype).eps < torch.finfo(PART).eps,
            "BLOCK_N": voxels,
            "BLOCK_F": block_f,
            "BLOCK_C": block_c,
        }


def parts_of(weight: Float[Tensor, "C F"]) -> Float[Tensor, "3 C F"]:
    """Split float32 numbers into three bfloat16 ones, of which they are the sum."""
    parts, rest = [], weight
    for _ in range(3):
        parts.append(rest.to(PART))
        rest = rest - parts[-1].float()
    return torch.stack(parts)


@triton.jit
def _part_of_head(weight, number: tl.constexpr, n_features, n_classes, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr):
    """One of the three parts of the head's matrix, transposed."""
    c, f = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_F)
    there = (f < n_features)[:, None] & (c < n_classes)[None, :]
    place = (number * n_classes + c)[None, :] * n_features + f[:, None]
    return tl.load(weight + place, mask=there, other=0)


@triton.jit
def _head(weight, bias, n_features, n_classes, HAS_BIAS: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr):
    """The three parts of the head's matrix, transposed, and its bias; −∞ for what is no class."""
    c = tl.arange(0, BLOCK_C)
    if HAS_BIAS:
        shift = tl.load(bias + c, mask=c < n_classes, other=float("-inf"))
    else:
        shift = tl.where(c < n_classes, 0.0, float("-inf"))
    head0 = _part_of_head(weight, 0, n_features, n_classes, BLOCK_F, BLOCK_C)
    head1 = _part_of_head(weight, 1, n_features, n_classes, BLOCK_F, BLOCK_C)
    head2 = _part_of_head(weight, 2, n_features, n_classes, BLOCK_F, BLOCK_C)
    return head0, head1, head2, shift


@triton.jit
def _split(values, part):
    """The two bfloat16 numbers whose sum is nearest to float32 ones."""
    high = values.to(part)
    return high, (values - high.to(tl.float32)).to(part)


@triton.jit
def _tile(
    features, label, head0, head1, head2, shift, start, n_voxels, n_features, ignored, step_b, step_f, step_n,
    IGNORES: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile's voxels, which of them there are and which count, their features in two parts, classes, logits, highest
    logit, exp(logits − highest), and where the own class is."""
    n, f, c = start + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_C)
    inside = n < n_voxels
    place = tl.program_id(1).to(tl.int64) * step_b + n.to(tl.int64)[:, None] * step_n + f.to(tl.int64)[None, :] * step_f
    x = tl.load(features + place, mask=inside[:, None] & (f < n_features)[None, :], other=0)
    y = tl.load(label + tl.program_id(1).to(tl.int64) * n_voxels + n, mask=inside, other=0).to(tl.int32)
    counts = inside & (y != ignored) if IGNORES else inside
    if SPLIT:
        high, low = _split(x.to(tl.float32), head0.dtype)
        logits = tl.dot(low, head1)
        logits = tl.dot(low, head0, logits)
        logits = tl.dot(high, head2, logits)
    else:
        high = x.to(head0.dtype)
        low = high
        logits = tl.dot(high, head2)
    logits = tl.dot(high, head1, logits)
    logits = tl.dot(high, head0, logits) + shift[None, :]
    top = tl.max(logits, 1)
    return n, inside, counts, high, low, y, logits, top, tl.exp(logits - top[:, None]), c[None, :] == y[:, None]


@triton.jit
def _sum_up(
    features, weight, bias, label, inverses, sums, n_correct,
    n_voxels, n_features, n_classes, per_program, ignored, step_b, step_f, step_n,
    IGNORES: tl.constexpr, HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    head0, head1, head2, shift = _head(weight, bias, n_features, n_classes, HAS_BIAS, BLOCK_F, BLOCK_C)
    overlap = tl.zeros((BLOCK_C,), tl.float32)
    prediction = tl.zeros((BLOCK_C,), tl.float32)
    log_likelihood = tl.zeros((BLOCK_C,), tl.float32)
    correct = tl.zeros((BLOCK_N,), tl.int32)
    first = tl.program_id(0) * per_program
    for start in range(first, min(first + per_program, n_voxels), BLOCK_N):
        n, inside, counts, _, _, _, logits, top, exps, is_own = _tile(
            features, label, head0, head1, head2, shift, start, n_voxels, n_features, ignored, step_b, step_f, step_n,
            IGNORES, SPLIT, BLOCK_N, BLOCK_F, BLOCK_C,
        )  # fmt: skip
        total = tl.sum(exps, 1)
        inverse = tl.where(counts, 1 / total, 0.0)
        own = tl.sum(tl.where(is_own, logits, 0.0), 1)
        own_log = own - top - tl.log(total)
        counted_own = is_own & counts[:, None]
        overlap += tl.sum(tl.where(counted_own, tl.exp(own_log)[:, None], 0.0), 0)
        log_likelihood += tl.sum(tl.where(counted_own, own_log[:, None], 0.0), 0)
        prediction += tl.sum(exps * inverse[:, None], 0)
        # tl.max leaves NaN out, which the sum does not
        correct += (counts & (own >= top) & (total > 0)).to(tl.int32)
        tl.store(inverses + tl.program_id(1).to(tl.int64) * n_voxels + n, inverse, mask=inside)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    c = tl.arange(0, BLOCK_C)
    row = sums + program * 3 * n_classes + c
    tl.store(row, overlap, mask=c < n_classes)
    tl.store(row + n_classes, prediction, mask=c < n_classes)
    tl.store(row + 2 * n_classes, log_likelihood, mask=c < n_classes)
    tl.store(n_correct + program, tl.sum(correct, 0))


@triton.jit
def _differentiate(
    features, weight, bias, label, inverses, coefficients, target, into_weight, into_bias,
    n_voxels, n_features, n_classes, per_program, ignored, step_b, step_f, step_n, target_b, target_f, target_n,
    IGNORES: tl.constexpr, HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr, WRITES: tl.constexpr,
):  # fmt: skip
    """The formulas are those of `slab_softmax.differentiate`."""
    head0, head1, head2, shift = _head(weight, bias, n_features, n_classes, HAS_BIAS, BLOCK_F, BLOCK_C)
    c, f = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_F)
    anywhere = tl.load(coefficients + n_classes + c, mask=c < n_classes, other=0)
    of_weight = tl.zeros((BLOCK_C, BLOCK_F), tl.float32)
    of_bias = tl.zeros((BLOCK_C,), tl.float32)
    first = tl.program_id(0) * per_program
    for start in range(first, min(first + per_program, n_voxels), BLOCK_N):
        n, inside, counts, x_high, x_low, y, _, _, exps, is_own = _tile(
            features, label, head0, head1, head2, shift, start, n_voxels, n_features, ignored, step_b, step_f, step_n,
            IGNORES, SPLIT, BLOCK_N, BLOCK_F, BLOCK_C,
        )  # fmt: skip
        inverse = tl.load(inverses + tl.program_id(1).to(tl.int64) * n_voxels + n, mask=inside, other=0)
        own = tl.sum(tl.where(is_own, exps, 0.0), 1) * inverse
        has_class = counts & (y >= 0) & (y < n_classes)  # other labels are looked for afterwards
        gain = tl.load(coefficients + y, mask=has_class, other=0) * own
        gain -= tl.load(coefficients + 2 * n_classes + y, mask=has_class, other=0)
        mean = (tl.sum(exps * anywhere[None, :], 1) * inverse + gain) * inverse
        gradient = exps * (anywhere[None, :] * inverse[:, None] - mean[:, None])
        gradient += tl.where(is_own, gain[:, None], 0.0)
        high, low = _split(gradient, head0.dtype)
        if WRITES:
            of_features = tl.dot(low, tl.trans(head0))
            of_features = tl.dot(high, tl.trans(head1), of_features)
            of_features = tl.dot(high, tl.trans(head0), of_features)
            place = tl.program_id(1).to(tl.int64) * target_b + n.to(tl.int64)[:, None] * target_n
            place += f.to(tl.int64)[None, :] * target_f
            there = inside[:, None] & (f < n_features)[None, :]
            tl.store(target + place, of_features.to(target.dtype.element_ty), mask=there)
        of_weight = tl.dot(tl.trans(low), x_high, of_weight)
        of_weight = tl.dot(tl.trans(high), x_high, of_weight)
        if SPLIT:
            of_weight = tl.dot(tl.trans(high), x_low, of_weight)
        of_bias += tl.sum(gradient, 0)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    place = (program * n_classes + c)[:, None] * n_features + f[None, :]
    tl.store(into_weight + place, of_weight, mask=(c < n_classes)[:, None] & (f < n_features)[None, :])
    tl.store(into_bias + program * n_classes + c, of_bias, mask=c < n_classes)
