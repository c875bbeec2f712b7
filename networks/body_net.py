"""BodyNet, the whole-body segmentation network, and the light form of it. Knows no other network, no loss and no data.

Nearly all time and memory of a 3D U-Net go into its full-resolution stage, so that stage is kept thin (a stem, one
residual block, additive skips) and what a layer keeps for the backward pass is kept small: normalisation, activation
and convolution are one autograd function that saves the convolution's *un-normalised* input and recomputes the rest,
one tensor a convolution instead of two or three.
"""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from networks import registry
from networks.small_volumes import CarefulConv3d, needs_float32

NEGATIVE_SLOPE = 0.01
EPSILON = 1e-5
HALF = (torch.bfloat16, torch.float16)
# Channels at full, 1/2, … 1/32 resolution as multiples of base_channels, and residual blocks there on the way down; on
# the way up there is one a level. With base_channels 32 this makes 20.47 million parameters, most of them at 1/8 and
# 1/16, where they cost little time.
WIDTHS = (1.0, 2.0, 4.0, 6.0, 6.0, 6.5)
ENCODER_BLOCKS = (0, 1, 1, 2, 2, 1)


class BodyNet(nn.Module):
    """A residual encoder–decoder U-Net of six levels with pre-activation blocks.

    Pre-activation blocks and additive skips after Myronenko 2018 (arXiv:1810.11654), more blocks in the encoder than in
    the decoder after Isensee et al. 2024 (arXiv:2404.09556), instance normalisation and leaky ReLU as in nnU-Net.

    `forward(x) = head(features(x))`; a loss that works in slabs asks for `features` and uses `head`, so that logits of
    full size never exist. Any image size is taken: a level halves rounding up, and the way back is cropped to the
    skip's size.

    Args:
        in_channels: Channels of the image.
        n_classes: Classes, background included.
        base_channels: Channels at full resolution; F of `features`.
        light: Halve every width and leave out one convolution at full resolution: a quarter of the parameters, less
            than a quarter of the arithmetic; F = base_channels // 2.
        checkpointing: Recompute each level in the backward pass instead of keeping its inside; the same values,
            less memory, more time.
        channels_last: Memory layout of the convolutions. None: channels-last when they run in bfloat16 or float16
            (1.5–2 times faster on a CPU with AVX512-BF16, and what tensor cores want), the default layout in float32
            (1.3 times faster there).
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 71,
        base_channels: int = 32,
        light: bool = False,
        *,
        checkpointing: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__()
        arguments = {"in_channels": in_channels, "n_classes": n_classes, "base_channels": base_channels}
        for name, value in arguments.items():
            least = 2 if name == "base_channels" else 1  # the light form halves it
            if not isinstance(value, int) or value < least:
                raise registry.NetworkError(
                    f"BodyNet: {name} is {value!r}; expected a whole number of at least {least}"
                )
        self.settings = {"_target_": registry.BODY_NET, **arguments, "light": light}
        self.checkpointing = checkpointing
        self.channels_last = channels_last
        widths = [int(base_channels * factor) // (2 if light else 1) for factor in WIDTHS]
        self.stem = CarefulConv3d(in_channels, widths[0], 3, padding=1, bias=False)
        pairs = list(pairwise(widths))
        self.encoder = nn.ModuleList(
            EncoderLevel(fine, coarse, n) for (fine, coarse), n in zip(pairs, ENCODER_BLOCKS[1:], strict=True)
        )
        *coarser, finest = [(coarse, fine) for fine, coarse in reversed(pairs)]
        self.decoder = nn.ModuleList(DecoderLevel(*pair) for pair in coarser)
        self.decoder.append(DecoderLevel(*finest, n_convolutions=1 if light else 2))
        self.last = NormAct(widths[0])
        self.head = nn.Conv3d(widths[0], n_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)

    def features(self, x: Tensor) -> Tensor:
        """Everything but the head.

        Args:
            x: (B, C, I, J, K) image.

        Returns:
            (B, F, I, J, K), in the autocast dtype where autocast is on.
        """
        x = x.as_subclass(Tensor)  # a MONAI MetaTensor would do its bookkeeping in every operation
        x = self.stem(self._laid_out(x))
        skips = [x]
        for level in self.encoder:
            x = self._run(level, x)
            skips.append(x)
        skips.pop()
        for level in self.decoder:
            x = self._run(level, x, skips.pop())
        x = self.last(x)
        if not torch.is_grad_enabled():
            _kept.memory = None  # there is no backward pass to come
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes, I, J, K) of the image (B, C, I, J, K)."""
        return self.head(self.features(x))

    def _run(self, level: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(level, *inputs, use_reentrant=False, preserve_rng_state=False)
        return level(*inputs)

    def _laid_out(self, x: Tensor) -> Tensor:
        """The image in the dtype and the memory layout that the convolutions shall have; they all follow their
        input's."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        channels_last = x.dtype in HALF if self.channels_last is None else self.channels_last
        if not channels_last:
            return x.contiguous()
        # x.contiguous(memory_format=…) would return a one-channel image as it is, with strides that the convolution
        # reads as the default layout
        return torch.empty_like(x, memory_format=torch.channels_last_3d).copy_(x)

    @classmethod
    def load_from_checkpoint(
        cls, path: str | Path, map_location: str | torch.device = "cpu", *, trust: bool = False
    ) -> nn.Module:
        """The trained network of a run, from its best_model.ckpt.

        It is a BodyNet, unless the run's config named another network: then it is that one, with `features` and `head`
        all the same.

        Args:
            path: best_model.ckpt of a run folder.
            map_location: Where the weights shall lie.
            trust: Import a class outside the registry's allow-list, too.

        Raises:
            networks.registry.NetworkError: If the file is no such checkpoint.
        """
        return registry.load_network(path, map_location=map_location, trust=trust)


class EncoderLevel(nn.Module):
    """Halve the resolution, rounding up, then residual blocks: (B, fine, I, J, K) -> (B, coarse, ⌈I/2⌉, ⌈J/2⌉,
    ⌈K/2⌉)."""

    def __init__(self, fine: int, coarse: int, n_blocks: int) -> None:
        super().__init__()
        self.down = NormActConv(fine, coarse, stride=2)
        self.blocks = nn.Sequential(*(ResidualBlock(coarse) for _ in range(n_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.down(x))


class DecoderLevel(nn.Module):
    """Double the resolution, add the skip, then a residual block: (B, coarse, …), skip (B, fine, I, J, K) -> (B, fine,
    I, J, K)."""

    def __init__(self, coarse: int, fine: int, n_convolutions: int = 2) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(coarse, fine, 2, stride=2, bias=False)
        self.block = ResidualBlock(fine, n_convolutions)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        i, j, k = skip.shape[2:]
        x = self.up(x)
        # In place while nothing is cropped: at full resolution this tensor is the largest thing that the network holds
        return self.block(x.add_(skip) if x.shape == skip.shape else x[..., :i, :j, :k] + skip)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))) with 3×3×3 convolutions, (B, C, I, J, K) -> (B, C, I, J, K)."""

    def __init__(self, channels: int, n_convolutions: int = 2) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(NormActConv(channels, channels) for _ in range(n_convolutions)))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolutions(x).add_(x)


class NormAct(nn.Module):
    """Instance normalisation and leaky ReLU, keeping only its input for the backward pass, in any memory layout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(x, self.weight, self.bias)


class NormActConv(nn.Module):
    """Instance normalisation, leaky ReLU and a 3×3×3 convolution, keeping only its input for the backward pass."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.norm = NormAct(in_channels)
        self.conv = nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv.weight.to(
            x.dtype
        )  # what autocast would do, and where the weight's gradient comes back in float32
        return norm_act_conv(x, self.norm.weight, self.norm.bias, kernel, self.conv.stride[0])


def norm_act(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """leaky_relu(instance_norm(x)), equal to torch's own, statistics in float32.

    Args:
        x: (B, C, I, J, K) in any floating dtype.
        weight: (C,) scale of the normalised values.
        bias: (C,) shift of the normalised values.
    """
    return _NormAct.apply(x, weight, bias)


def norm_act_conv(x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """conv3d(norm_act(x), kernel, stride, padding 1), keeping x alone for the backward pass.

    Args:
        x: (B, C, I, J, K) in any floating dtype.
        weight: (C,) scale of the normalised values.
        bias: (C,) shift of the normalised values.
        kernel: (D, C, 3, 3, 3) in x's dtype.
        stride: Step of the convolution, the same in the three directions.
    """
    return _NormActConv.apply(x, weight, bias, kernel, stride)


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
        activated = _activated_again(x, weight, bias, mean, rstd, out=_scratch(x))
        _activation_backward(_like(gradient, x), activated, out=activated)
        return _normalised_backward(activated, x, weight, mean, rstd)


class _NormActConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, stride: int) -> Tensor:
        x = _dense(x)
        activated, mean, rstd = _activated(x, weight, bias, out=_scratch(x))
        ctx.save_for_backward(x, weight, bias, kernel, mean, rstd)
        ctx.stride = stride
        return F.conv3d(activated, kernel, stride=stride, padding=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, weight, bias, kernel, mean, rstd = ctx.saved_tensors
        activated = _activated_again(x, weight, bias, mean, rstd, out=_scratch(x))
        gradient, kernel_gradient = _convolution_backward(gradient, activated, kernel, [ctx.stride] * 3)
        _activation_backward(gradient, activated, out=gradient)
        return *_normalised_backward(_like(gradient, x), x, weight, mean, rstd), kernel_gradient, None


# Instance normalisation is batch normalisation of one sample. torch's batch-norm kernels are used because they know the
# channels-last layout, forwards and backwards; its instance_norm is slow in that layout, and on a CPU its gradients
# there are wrong (torch 2.13, and test_body_net.py).


def _activated(x: Tensor, weight: Tensor, bias: Tensor, *, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """leaky_relu(instance_norm(x)) in x's layout, and the means and reciprocal standard deviations, both (B, C)."""
    mean, rstd = (weight.new_empty(x.shape[:2]) for _ in range(2))
    for b in range(len(x)):
        statistics = {"out": out[b : b + 1], "save_mean": mean[b], "save_invstd": rstd[b]}
        torch.ops.aten.native_batch_norm.out(x[b : b + 1], weight, bias, None, None, True, 0.0, EPSILON, **statistics)
    return F.leaky_relu_(out, NEGATIVE_SLOPE), mean, rstd


def _activated_again(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, *, out: Tensor) -> Tensor:
    """The same values from statistics that are known: one pass over x instead of two."""
    variance, nothing = rstd.pow(-2), weight.new_empty(0)
    for b in range(len(x)):
        known = (mean[b], variance[b], False, 0.0, 0.0)  # not training; and the variance holds EPSILON already
        results = {"out": out[b : b + 1], "save_mean": nothing, "save_invstd": nothing}
        torch.ops.aten.native_batch_norm.out(x[b : b + 1], weight, bias, *known, **results)
    return F.leaky_relu_(out, NEGATIVE_SLOPE)


def _scratch(x: Tensor) -> Tensor:
    """An unset tensor like x that is valid until the next call in this thread.

    On a CPU the memory is kept: fresh pages cost more time than the normalisation that fills them, and a hole where
    such a tensor was tears the heap apart. On a GPU the caching allocator sees to both,
    and compiled code to its own buffers.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty_like(x)
    kept = getattr(_kept, "memory", None)
    size = x.numel() * x.element_size()
    if kept is None or kept.numel() < size:
        kept = _kept.memory = torch.empty(size, dtype=torch.uint8)
    return kept[:size].view(x.dtype).as_strided(x.shape, x.stride())


_kept = threading.local()  # .memory: bytes, or None


def _activation_backward(gradient: Tensor, activated: Tensor, *, out: Tensor) -> None:
    """Write the gradient for leaky ReLU's input into `out`, which may be one of the other two."""
    # With a positive slope the activated value has the sign of its input, so it serves as well
    torch.ops.aten.leaky_relu_backward.grad_input(gradient, activated, NEGATIVE_SLOPE, True, grad_input=out)


def _convolution_backward(gradient: Tensor, x: Tensor, kernel: Tensor, stride: list[int]) -> tuple[Tensor, Tensor]:
    """Gradients for x and kernel from that for conv3d(x, kernel, stride, padding 1)."""
    convolution = (None, stride, [1] * 3, [1] * 3, False, [0] * 3, 1, [True, True, False])
    if x.dtype in HALF and needs_float32(x, kernel.shape[2:], stride):
        single = (gradient.float(), x.float(), kernel.float())
        x_gradient, kernel_gradient, _ = torch.ops.aten.convolution_backward(*single, *convolution)
        return x_gradient.to(x.dtype), kernel_gradient.to(kernel.dtype)
    return torch.ops.aten.convolution_backward(gradient, x, kernel, *convolution)[:2]


def _normalised_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x, weight and bias from that for the normalised values."""
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
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (None, None, mean, rstd, True, EPSILON, [True, True, True])
    return torch.ops.aten.native_batch_norm_backward(gradient, x, weight, *statistics)


def _dense(x: Tensor) -> Tensor:
    """x itself if it lies in one of the two layouts that the kernels know, else a copy in the default one."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last_3d):
        return x
    return x.contiguous()


def _like(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient in x's memory layout: the batch-norm kernels want both alike."""
    return gradient if gradient.stride() == x.stride() else torch.empty_like(x, dtype=gradient.dtype).copy_(gradient)
