"""Instance normalisation, leaky ReLU and a convolution as one step that keeps a single tensor for the backward pass.

The convolution's *un-normalised* input is kept and the rest recomputed: one tensor a convolution instead of two or
three.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from networks import gpu_kernels
from networks.onednn_workaround import HALF, needs_float32

NEGATIVE_SLOPE = 0.01
"""Of leaky ReLU, as in nnU-Net."""
EPSILON = 1e-5
"""Added to the variance, as torch's instance_norm does."""

Volume = Float[Tensor, "B C I J K"]
PerChannel = Float[Tensor, " C"]
Kernel = Float[Tensor, "D C i j k"]
Triple = tuple[int, int, int]


def half_of(kernel: Sequence[int]) -> Triple:
    """Return the padding of a convolution that keeps the size at stride 1, for odd kernel sizes along I, J, K."""
    i, j, k = kernel
    return i // 2, j // 2, k // 2


class NormAct(nn.Module):
    """Instance normalisation and leaky ReLU, keeping only its input for the backward pass, in any memory layout.

    >>> NormAct(8)(torch.zeros(2, 8, 4, 4, 6)).shape
    torch.Size([2, 8, 4, 4, 6])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Volume) -> Volume:
        return norm_act(x, self.weight, self.bias)


class NormActConv(nn.Module):
    """Instance normalisation, leaky ReLU and a convolution, keeping only its input for the backward pass.

    >>> NormActConv(8, 16, stride=(1, 2, 2))(torch.zeros(2, 8, 4, 5, 6)).shape
    torch.Size([2, 16, 4, 3, 3])

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        stride: Steps along I, J, K, 1 or 2.
        kernel: Voxels along I, J, K, odd; the convolution is padded by half of it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Triple = (1, 1, 1), kernel: Triple = (3, 3, 3)
    ) -> None:
        super().__init__()
        self.norm = NormAct(in_channels)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=half_of(kernel), bias=False)

    def forward(self, x: Volume) -> Float[Tensor, "B D I2 J2 K2"]:
        # What autocast would do, and where the weight's gradient comes back in float32
        kernel = self.conv.weight.to(x.dtype)
        if _is_exporting():  # padding and stride as numbers: a traced kernel's sizes are none
            return F.conv3d(self.norm(x), kernel, stride=self.conv.stride, padding=self.conv.padding)
        return norm_act_conv(x, self.norm.weight, self.norm.bias, kernel, self.conv.stride)


def norm_act(x: Volume, weight: PerChannel, bias: PerChannel) -> Volume:
    """Return leaky_relu(instance_norm(x)), equal to torch's own, statistics in float32 (float64 for float64).

    Args:
        x: In any floating dtype.
        weight: Scale of the normalised values.
        bias: Shift of the normalised values.
    """
    if _is_exporting():
        # Not functional.instance_norm, which refuses what the deepest level of a small image has: a single voxel
        normalised = torch.instance_norm(x, weight, bias, None, None, True, 0.0, EPSILON, False)
        return F.leaky_relu(normalised, NEGATIVE_SLOPE)
    return _NormAct.apply(x, weight, bias)


def norm_act_conv(
    x: Volume, weight: PerChannel, bias: PerChannel, kernel: Kernel, stride: Sequence[int] = (1, 1, 1)
) -> Float[Tensor, "B D I2 J2 K2"]:
    """Return conv3d(norm_act(x), kernel, stride, padding half the kernel), keeping x alone for the backward pass.

    Args:
        x: In any floating dtype.
        weight: Scale of the normalised values.
        bias: Shift of the normalised values.
        kernel: In x's dtype, of odd sizes.
        stride: Steps of the convolution along I, J, K; I2 = ⌈I / step⌉.
    """
    return _NormActConv.apply(x, weight, bias, kernel, tuple(stride))


def _is_exporting() -> bool:
    """Return whether torch.export or torch.jit.trace (and so torch.onnx, either way) is looking: their graphs hold
    torch's own layers, and no memory is to be saved in them. (torch.compiler.is_exporting is newer than the oldest
    torch that is supported.)"""
    return getattr(torch.compiler, "is_exporting", bool)() or torch.jit.is_tracing()


def _gpu_kernels_for(x: Volume) -> ModuleType | None:
    """Return `norm_act_gpu` where it takes x."""
    if not gpu_kernels.run_on(x):
        return None
    from networks import norm_act_gpu  # needs Triton

    return norm_act_gpu


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = _dense(x)
        activated, mean, rstd = _activated(x, weight, bias, out=torch.empty_like(x))
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return activated

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        gradient = _like(gradient, x)
        if kernels := _gpu_kernels_for(x):
            known = (x, weight, bias, mean, rstd)
            return kernels.gradients(gradient, *known, NEGATIVE_SLOPE, out=torch.empty_like(x))
        activated = _activated_again(x, weight, bias, mean, rstd, out=_scratch(x))
        _activation_backward(gradient, activated, out=activated)
        return _normalised_backward(activated, x, weight, mean, rstd)


class _NormActConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, stride: Triple) -> Tensor:
        x = _dense(x)
        activated, mean, rstd = _activated(x, weight, bias, out=_scratch(x))
        ctx.save_for_backward(x, weight, bias, kernel, mean, rstd)
        ctx.stride = stride
        return F.conv3d(activated, kernel, stride=stride, padding=half_of(kernel.shape[2:]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, weight, bias, kernel, mean, rstd = ctx.saved_tensors
        activated = _activated_again(x, weight, bias, mean, rstd, out=_scratch(x))
        gradient, kernel_gradient = _convolution_backward(gradient, activated, kernel, list(ctx.stride))
        if kernels := _gpu_kernels_for(x):
            gradient, known = _like(gradient, x), (x, weight, bias, mean, rstd)
            return *kernels.gradients(gradient, *known, NEGATIVE_SLOPE, out=gradient), kernel_gradient, None
        _activation_backward(gradient, activated, out=gradient)
        return *_normalised_backward(_like(gradient, x), x, weight, mean, rstd), kernel_gradient, None


# On a GPU that they run on, kernels of our own do all of this. Elsewhere instance normalisation is batch normalisation
# of one sample. torch's batch-norm kernels are used because they know the channels-last layout, forwards and backwards;
# its instance_norm is slow in that layout, and on a CPU its gradients there are wrong (torch 2.13, and
# test_body_net.py).


def _activated(
    x: Volume, weight: PerChannel, bias: PerChannel, *, out: Volume
) -> tuple[Volume, Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Write leaky_relu(instance_norm(x)) into `out`; return it, the means and the reciprocal standard deviations."""
    if kernels := _gpu_kernels_for(x):
        return kernels.activated(x, weight, bias, EPSILON, NEGATIVE_SLOPE, out=out)
    mean, rstd = (weight.new_empty(x.shape[:2]) for _ in range(2))
    for b in range(len(x)):
        statistics = {"out": out[b : b + 1], "save_mean": mean[b], "save_invstd": rstd[b]}
        torch.ops.aten.native_batch_norm.out(x[b : b + 1], weight, bias, None, None, True, 0.0, EPSILON, **statistics)
    return F.leaky_relu_(out, NEGATIVE_SLOPE), mean, rstd


def _activated_again(
    x: Volume,
    weight: PerChannel,
    bias: PerChannel,
    mean: Float[Tensor, "B C"],
    rstd: Float[Tensor, "B C"],
    *,
    out: Volume,
) -> Volume:
    """Write the same values into `out`, from known statistics: one pass over x instead of two."""
    if kernels := _gpu_kernels_for(x):
        return kernels.activated_again(x, weight, bias, mean, rstd, NEGATIVE_SLOPE, out=out)
    variance = rstd.pow(-2)
    # Two tensors: a CPU leaves both alone, CUDA copies the statistics into them and normalises with what it finds there
    used_mean, used_rstd = torch.empty_like(mean[0]), torch.empty_like(rstd[0])
    for b in range(len(x)):
        known = (mean[b], variance[b], False, 0.0, 0.0)  # not training; and the variance holds EPSILON already
        results = {"out": out[b : b + 1], "save_mean": used_mean, "save_invstd": used_rstd}
        torch.ops.aten.native_batch_norm.out(x[b : b + 1], weight, bias, *known, **results)
    return F.leaky_relu_(out, NEGATIVE_SLOPE)


def _scratch(x: Volume) -> Volume:
    """Return an unset tensor like x that is valid until the next call in this thread.

    On a CPU the memory is kept: fresh pages cost more time than the normalisation that fills them, and a hole where
    such a tensor was tears the heap apart. A GPU's caching allocator needs no such help, and compiled code plans its
    own buffers.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty_like(x)
    kept = getattr(_kept, "memory", None)
    size = x.numel() * x.element_size()
    if kept is None or kept.numel() < size:
        kept = _kept.memory = torch.empty(size, dtype=torch.uint8)
    return kept[:size].view(x.dtype).as_strided(x.shape, x.stride())


_kept = threading.local()  # .memory: bytes, or None


def free_scratch() -> None:
    """Free this thread's scratch memory."""
    if not torch.compiler.is_compiling():  # compiled code has none
        _kept.memory = None


def _activation_backward(gradient: Volume, activated: Volume, *, out: Volume) -> None:
    """Write the gradient for leaky ReLU's input into `out`, which may be one of the other two."""
    # With a positive slope the activated value has the sign of its input, so it serves as well
    torch.ops.aten.leaky_relu_backward.grad_input(gradient, activated, NEGATIVE_SLOPE, True, grad_input=out)


def _convolution_backward(
    gradient: Float[Tensor, "B D I2 J2 K2"], x: Volume, kernel: Kernel, stride: Sequence[int]
) -> tuple[Volume, Kernel]:
    """Return the gradients for x and kernel from that for conv3d(x, kernel, stride, padding half the kernel)."""
    convolution = (None, stride, list(half_of(kernel.shape[2:])), [1] * 3, False, [0] * 3, 1, [True, True, False])
    if x.dtype in HALF and needs_float32(x, kernel.shape[2:], stride):
        single = (gradient.float(), x.float(), kernel.float())
        x_gradient, kernel_gradient, _ = torch.ops.aten.convolution_backward(*single, *convolution)
        return x_gradient.to(x.dtype), kernel_gradient.to(kernel.dtype)
    return torch.ops.aten.convolution_backward(gradient, x, kernel, *convolution)[:2]


def _normalised_backward(
    gradient: Volume, x: Volume, weight: PerChannel, mean: Float[Tensor, "B C"], rstd: Float[Tensor, "B C"]
) -> tuple[Volume, PerChannel, PerChannel]:
    """Return the gradients for x, weight and bias from that for the normalised values."""
    if len(x) == 1:
        return _normalised_backward_of_one(gradient, x, weight, mean[0], rstd[0])
    into_x, into_weight, into_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    for b in range(len(x)):
        one = slice(b, b + 1)
        of_one = _normalised_backward_of_one(gradient[one], x[one], weight, mean[b], rstd[b])
        into_x[one] = of_one[0]
        into_weight += of_one[1]
        into_bias += of_one[2]
    return into_x, into_weight, into_bias


def _normalised_backward_of_one(
    gradient: Volume, x: Volume, weight: PerChannel, mean: PerChannel, rstd: PerChannel
) -> tuple[Volume, PerChannel, PerChannel]:
    statistics = (None, None, mean, rstd, True, EPSILON, [True, True, True])
    return torch.ops.aten.native_batch_norm_backward(gradient, x, weight, *statistics)


def _dense(x: Volume) -> Volume:
    """Return x itself if it lies in one of the two layouts that the kernels know, else a copy in the default one."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last_3d):
        return x
    return x.contiguous()


def _like(gradient: Volume, x: Volume) -> Volume:
    """Return the gradient in x's memory layout: the batch-norm kernels expect both alike."""
    return gradient if gradient.stride() == x.stride() else torch.empty_like(x, dtype=gradient.dtype).copy_(gradient)
