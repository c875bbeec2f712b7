"""Convolve small volumes in float32 on a CPU, where oneDNN's half-precision gradients are wrong.

For a 3D convolution in bfloat16 with a kernel wider than one voxel, oneDNN's gradient of the weights (jit_bf16,
avx512_core_bf16; oneDNN 3.12 in torch 2.13) is uninitialised memory when an edge of the volume is hardly longer than
the kernel: for 3×3×3 kernels where the first edge is 2 voxels, for instance, so at the bottom of every U-Net on small
volumes; and for wide kernels it writes beyond its buffer. Default layout and channels-last are alike. Such volumes are
a few hundred voxels, so float32 costs nothing. This module can go when tests/networks/test_onednn_workaround.py passes
with plain nn.Conv3d.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


def needs_float32(x: Float[Tensor, "B C I J K"], kernel_size: Sequence[int], stride: Sequence[int]) -> bool:
    """Return whether a convolution of x, if in half precision, must not be left to oneDNN.

    The bound was found by trying: edges of stride·(kernel + 1) and above were right for kernels of 3, 5 and 7 voxels,
    strides 1 and 2, and every combination of edges just above it.

    Args:
        x: Input of the convolution.
        kernel_size: Voxels along I, J, K.
        stride: Steps along I, J, K.
    """
    if x.device.type != "cpu" or max(kernel_size) == 1:
        return False
    return any(n < s * (k + 1) for n, k, s in zip(x.shape[2:], kernel_size, stride, strict=True))


class SafeConv3d(nn.Conv3d):
    """nn.Conv3d that computes in float32 where half precision goes wrong, and returns the dtype that was asked for."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.ndim != 5 or not needs_float32(x, self.kernel_size, self.stride):
            return super()._conv_forward(x, weight, bias)
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        if dtype not in HALF:
            return super()._conv_forward(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            single = None if bias is None else bias.float()
            return super()._conv_forward(x.float(), weight.float(), single).to(dtype)


def use_safe_convolutions(network: nn.Module) -> nn.Module:
    """Turn the plain 3D convolutions of a network into `SafeConv3d`, in place; parameters and their names stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d and max(module.kernel_size) > 1:
            module.__class__ = SafeConv3d
    return network
