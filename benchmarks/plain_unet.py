"""A U-Net as nnU-Net plans it, from torch alone, so that every program under comparison can load the same one."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class PlainUNet(nn.Module):
    """Two convolutions a level, instance normalisation, leaky ReLU, strided convolutions down, transposed ones up.

    Args:
        input_channels: Channels of the image.
        num_classes: Classes, background included.
        base_channels: Channels at full resolution, doubled at each level.
        n_levels: Levels of resolution.
        deep_supervision: nnU-Net says False where it predicts; there are no other outputs.
    """

    def __init__(
        self,
        input_channels: int = 1,
        num_classes: int = 71,
        base_channels: int = 24,
        n_levels: int = 5,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        widths = [base_channels * 2**level for level in range(n_levels)]
        self.encoder = nn.ModuleList(
            _convolutions(before, after, stride=2 if level else 1)
            for level, (before, after) in enumerate(pairwise([input_channels, *widths]))
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1]))
        self.decoder = nn.ModuleList(_convolutions(2 * width, width) for width in reversed(widths[:-1]))
        self.head = nn.Conv3d(base_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, I, J, K) -> logits (B, num_classes, I, J, K); the edges are multiples of 2 to the n_levels − 1."""
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        skips.pop()
        for up, level in zip(self.up, self.decoder, strict=True):
            x = level(torch.cat([up(x), skips.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits


def _convolutions(before: int, after: int, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, step in ((before, stride), (after, 1)):
        layers += [nn.Conv3d(n, after, 3, step, 1), nn.InstanceNorm3d(after, affine=True), nn.LeakyReLU(0.01, True)]
    return nn.Sequential(*layers)
