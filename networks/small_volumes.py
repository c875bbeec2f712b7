"""Half-precision convolutions of small volumes on a CPU, which oneDNN gets wrong. Knows no network.

For a 3D convolution in bfloat16 with a kernel wider than one voxel, oneDNN's gradient of the weights (jit_bf16,
avx512_core_bf16; oneDNN 3.12 in torch 2.13) is uninitialised memory when a side is hardly longer than the kernel: for
3×3×3 kernels where the first side is 2, for instance, so at the bottom of every U-Net on small volumes; and for wide
kernels it writes beyond its buffer. Default layout and channels-last are alike. Such volumes are a few hundred voxels,
so they are convolved in float32. The room can go when tests/test_small_volumes.py passes with plain nn.Conv3d.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def needs_float32(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a convolution of x, if in half precision, must not be left to oneDNN.

    The bound was found by trying: sides of stride·(kernel + 1) and above were right for kernels of 3, 5 and 7 voxels,
    strides 1 and 2, and every combination of sides just above it.

    Args:
        x: (B, C, I, J, K) input of the convolution.
        kernel_size: Voxels along I, J, K.
        stride: Steps along I, J, K.
    """
    if x.device.type != "cpu" or max(kernel_size) == 1:
        return False
    return any(n < s * (k + 1) for n, k, s in zip(x.shape[2:], kernel_size, stride, strict=True))


class CarefulConv3d(nn.Conv3d):
    """A convolution that computes in float32 where half precision goes wrong, and returns the dtype asked for."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        if dtype == torch.float32 or x.ndim != 5 or not needs_float32(x, self.kernel_size, self.stride):
            return super()._conv_forward(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            single = None if bias is None else bias.float()
            return super()._conv_forward(x.float(), weight.float(), single).to(dtype)


def make_careful(network: nn.Module) -> nn.Module:
    """Turn the plain 3D convolutions of a network into careful ones, in place; parameters and their names stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d and max(module.kernel_size) > 1:
            module.__class__ = CarefulConv3d
    return network
