"""Instance normalisation and leaky ReLU on a GPU, each direction in as few passes over memory as it needs (Triton).

torch's batch-norm kernels, which `norm_act` uses elsewhere, take three to four times as long in the channels-last
layout (H100, torch 2.11), one sample at a time.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

Volume = Float[Tensor, "B C I J K"]
PerChannel = Float[Tensor, " C"]
PerSample = Float[Tensor, "B C"]

VALUES_AT_ONCE = 4096
"""Values that a program holds in registers."""
MOST_CHANNELS = 64
"""Channels that a program works on."""
MOST_SUMS = 512
"""Partial sums of a channel and sample: enough programs to fill a GPU, few enough to be added up quickly."""


def activated(x: Volume, weight: PerChannel, bias: PerChannel, epsilon: float, slope: float, *, out: Volume) -> tuple[
    Volume, PerSample, PerSample
]:  # fmt: skip
    """Write leaky_relu(instance_norm(x)) into `out`; return it, the means and the reciprocal standard deviations.

    Args:
        x: float32, bfloat16 or float16, contiguous or channels-last.
        weight: Scale of the normalised values.
        bias: Shift of the normalised values.
        epsilon: Added to the variance.
        slope: Of leaky ReLU, above 0.
        out: Like x, and in its layout.
    """
    layout = _Layout.of(x)
    weight, bias = weight.contiguous(), bias.contiguous()
    mean, rstd = torch.empty(2, len(x), x.shape[1], device=x.device)
    sums = layout.partial_sums(x)
    n_sums, channel_blocks, n_samples = layout.summing_grid
    with torch.cuda.device_of(x):
        _sum_moments[layout.summing_grid](x, sums, *layout.size, layout.per_program, **layout.tile)
        size = (*layout.size[:2], n_sums, layout.per_program, epsilon)
        _finish_moments[channel_blocks, n_samples](sums, mean, rstd, *size, BLOCK_P=64, BLOCK_C=layout.tile["BLOCK_C"])
        _activate[layout.grid](x, weight, bias, mean, rstd, out, *layout.size, slope, **layout.tile)
    return out, mean, rstd


def activated_again(
    x: Volume, weight: PerChannel, bias: PerChannel, mean: PerSample, rstd: PerSample, slope: float, *, out: Volume
) -> Volume:
    """Write the same values into `out`, from known statistics: one pass over x instead of two."""
    layout = _Layout.of(x)
    weight, bias = weight.contiguous(), bias.contiguous()
    with torch.cuda.device_of(x):
        _activate[layout.grid](x, weight, bias, mean, rstd, out, *layout.size, slope, **layout.tile)
    return out


def gradients(
    gradient: Volume,
    x: Volume,
    weight: PerChannel,
    bias: PerChannel,
    mean: PerSample,
    rstd: PerSample,
    slope: float,
    *,
    out: Volume,
) -> tuple[Volume, PerChannel, PerChannel]:
    """Return the gradients for x, which is written into `out`, weight and bias.

    Args:
        gradient: For the activated values, of x's dtype and in its layout.
        x: As for `activated`, and the other arguments.
        weight: See there.
        bias: See there.
        mean: What `activated` returned.
        rstd: What `activated` returned.
        slope: See there.
        out: Like x, and in its layout; may be `gradient`.
    """
    layout = _Layout.of(x)
    partial = layout.partial_sums(x)
    known = (gradient, x, weight.contiguous(), bias.contiguous(), mean, rstd)
    with torch.cuda.device_of(x):
        _sum_gradients[layout.summing_grid](*known, partial, *layout.size, slope, layout.per_program, **layout.tile)
        sums = partial.sum(1)  # (B, 2, C)
        _differentiate[layout.grid](*known, sums, out, *layout.size, slope, **layout.tile)
    of_bias, of_weight = sums.sum(0)
    return out, of_weight.to(weight.dtype), of_bias.to(bias.dtype)


class _Layout(NamedTuple):
    """Where a volume's values lie, and how they are shared out to programs."""

    size: tuple[int, int, int, int]
    """Voxels, channels, and steps in memory from one channel and from one voxel to the next."""
    tile: dict[str, int]
    """Voxels and channels of a program."""
    grid: tuple[int, int, int]
    """Tiles, blocks of channels, samples."""
    per_program: int
    """Voxels that a program adds up: whole tiles."""
    summing_grid: tuple[int, int, int]
    """As `grid`, but for programs that add up."""

    @classmethod
    def of(cls, x: Volume) -> _Layout:
        """Return the layout of a volume that is contiguous or channels-last."""
        return _layout(x.shape, x.is_contiguous())

    def partial_sums(self, x: Volume) -> Float[Tensor, "B sums 2 C"]:
        """Return unset memory for two numbers of each program that adds up, channel and sample."""
        return torch.empty(len(x), self.summing_grid[0], 2, x.shape[1], device=x.device)


@functools.lru_cache(maxsize=256)
def _layout(shape: torch.Size, contiguous: bool) -> _Layout:
    n_samples, n_channels, *edges = shape
    n_voxels = math.prod(edges)
    channels = 1 if contiguous else min(MOST_CHANNELS, triton.next_power_of_2(n_channels))
    voxels = min(VALUES_AT_ONCE // channels, max(16, triton.next_power_of_2(n_voxels)))
    n_tiles, channel_blocks = triton.cdiv(n_voxels, voxels), triton.cdiv(n_channels, channels)
    per_program = triton.cdiv(n_tiles, MOST_SUMS) * voxels
    steps = (n_voxels, 1) if contiguous else (1, n_channels)
    return _Layout(
        size=(n_voxels, n_channels, *steps),
        tile={"BLOCK_N": voxels, "BLOCK_C": channels},
        grid=(n_tiles, channel_blocks, n_samples),
        per_program=per_program,
        summing_grid=(triton.cdiv(n_voxels, per_program), channel_blocks, n_samples),
    )


@triton.jit
def _channels(n_channels, BLOCK_C: tl.constexpr):
    """The program's channels, and which of them there are."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return c, c < n_channels


@triton.jit
def _places(start, c, is_channel, n_voxels, n_channels, step_c, step_n, BLOCK_N: tl.constexpr):
    """Places in memory of a tile's values in this program's sample, and which of them there are."""
    n = start + tl.arange(0, BLOCK_N)
    sample = tl.program_id(2).to(tl.int64) * n_voxels * n_channels
    place = sample + n.to(tl.int64)[:, None] * step_n + c.to(tl.int64)[None, :] * step_c
    return place, (n < n_voxels)[:, None] & is_channel[None, :]


@triton.jit
def _per_channel(values, c, is_channel, n_channels):
    """A sample's values of each channel."""
    return tl.load(values + tl.program_id(2) * n_channels + c, mask=is_channel, other=0)


@triton.jit
def _store_pair(sums, first, second, c, is_channel, n_channels):
    """Store what the program found for each of its channels."""
    row = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(sums + row * n_channels + c, first, mask=is_channel)
    tl.store(sums + (row + 1) * n_channels + c, second, mask=is_channel)


@triton.jit
def _sum_moments(
    x, sums, n_voxels, n_channels, step_c, step_n, per_program, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write the mean of the program's values and the sum of their squared distances from it.

    Distances from the first tile's mean are added up: squares of the values lose their digits where the mean is large.
    """
    c, is_channel = _channels(n_channels, BLOCK_C)
    start = tl.program_id(0) * per_program
    place, inside = _places(start, c, is_channel, n_voxels, n_channels, step_c, step_n, BLOCK_N)
    value = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    near = tl.sum(value, 0) / tl.minimum(BLOCK_N, n_voxels - start)
    first = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    second = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for tile in range(start, min(start + per_program, n_voxels), BLOCK_N):
        place, inside = _places(tile, c, is_channel, n_voxels, n_channels, step_c, step_n, BLOCK_N)
        value = tl.load(x + place, mask=inside, other=0).to(tl.float32)
        distance = tl.where(inside, value - near[None, :], 0)
        first += distance
        second += distance * distance
    off = tl.sum(first, 0) / tl.minimum(per_program, n_voxels - start)
    squares = tl.maximum(tl.sum(second, 0) - off * tl.sum(first, 0), 0)
    _store_pair(sums, near + off, squares, c, is_channel, n_channels)


@triton.jit
def _finish_moments(
    sums, mean, rstd, n_voxels, n_channels, n_sums, per_program, epsilon, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Put together what the programs found of a sample, and write its means and reciprocal standard deviations."""
    sample = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = c < n_channels
    total = tl.zeros((BLOCK_C,), tl.float64)
    squares = tl.zeros((BLOCK_C,), tl.float64)
    for start in range(0, n_sums, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        n = tl.minimum(per_program, n_voxels - p * per_program).to(tl.float64)[:, None]
        row = sums + (sample * n_sums + p)[:, None] * 2 * n_channels + c[None, :]
        there = (p < n_sums)[:, None] & is_channel[None, :]
        means = tl.load(row, mask=there, other=0).to(tl.float64)
        around = tl.load(row + n_channels, mask=there, other=0).to(tl.float64)
        total += tl.sum(n * means, 0)
        squares += tl.sum(around + n * means * means, 0)
    centre = total / n_voxels
    variance = tl.maximum(squares / n_voxels - centre * centre, 0.0)
    out = sample * n_channels + c
    tl.store(mean + out, centre.to(tl.float32), mask=is_channel)
    tl.store(rstd + out, (1 / tl.sqrt(variance + epsilon)).to(tl.float32), mask=is_channel)


@triton.jit
def _normalised(x, weight, bias, mean, rstd, place, inside, c, is_channel, n_channels):
    """A tile's normalised values, the same scaled and shifted, and the channels' scale times 1 / deviation."""
    w = tl.load(weight + c, mask=is_channel, other=0).to(tl.float32)
    b = tl.load(bias + c, mask=is_channel, other=0).to(tl.float32)
    centre = _per_channel(mean, c, is_channel, n_channels)
    r = _per_channel(rstd, c, is_channel, n_channels)
    value = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    normalised = (value - centre[None, :]) * r[None, :]
    return normalised, normalised * w[None, :] + b[None, :], w * r


@triton.jit
def _activate(
    x, weight, bias, mean, rstd, out, n_voxels, n_channels, step_c, step_n, slope, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    c, is_channel = _channels(n_channels, BLOCK_C)
    start = tl.program_id(0) * BLOCK_N
    place, inside = _places(start, c, is_channel, n_voxels, n_channels, step_c, step_n, BLOCK_N)
    _, shifted, _ = _normalised(x, weight, bias, mean, rstd, place, inside, c, is_channel, n_channels)
    result = tl.where(shifted > 0, shifted, shifted * slope)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _of_shifted(gradient, shifted, place, inside, slope):
    """The gradient for the scaled and shifted values, from that for the activated ones."""
    g = tl.load(gradient + place, mask=inside, other=0).to(tl.float32)
    return tl.where(shifted > 0, g, g * slope)


@triton.jit
def _sum_gradients(
    gradient, x, weight, bias, mean, rstd, sums, n_voxels, n_channels, step_c, step_n, slope, per_program,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add up the gradient for the scaled and shifted values, and that times the normalised values."""
    c, is_channel = _channels(n_channels, BLOCK_C)
    first = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    second = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    start = tl.program_id(0) * per_program
    for tile in range(start, min(start + per_program, n_voxels), BLOCK_N):
        place, inside = _places(tile, c, is_channel, n_voxels, n_channels, step_c, step_n, BLOCK_N)
        normalised, shifted, _ = _normalised(x, weight, bias, mean, rstd, place, inside, c, is_channel, n_channels)
        g = _of_shifted(gradient, shifted, place, inside, slope)
        first += g
        second += g * normalised
    _store_pair(sums, tl.sum(first, 0), tl.sum(second, 0), c, is_channel, n_channels)


@triton.jit
def _differentiate(
    gradient, x, weight, bias, mean, rstd, sums, out, n_voxels, n_channels, step_c, step_n, slope,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradient for x: scale / deviation · (g − mean of g − normalised · mean of g · normalised)."""
    c, is_channel = _channels(n_channels, BLOCK_C)
    start = tl.program_id(0) * BLOCK_N
    place, inside = _places(start, c, is_channel, n_voxels, n_channels, step_c, step_n, BLOCK_N)
    normalised, shifted, factor = _normalised(x, weight, bias, mean, rstd, place, inside, c, is_channel, n_channels)
    g = _of_shifted(gradient, shifted, place, inside, slope)
    row = sums + tl.program_id(2) * 2 * n_channels + c
    first = tl.load(row, mask=is_channel, other=0) / n_voxels
    second = tl.load(row + n_channels, mask=is_channel, other=0) / n_voxels
    result = factor[None, :] * (g - first[None, :] - normalised * second[None, :])
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
