"""BodyNet, the whole-body segmentation network, and the light form of it. Knows no other network, no loss and no data.

Nearly all time and memory of a 3D U-Net go into its full-resolution stage, so that stage is kept thin (a stem, one
residual block, additive skips) and what a layer keeps for the backward pass is kept small (see `norm_act`).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks.checkpoint import load_network
from networks.errors import NetworkError
from networks.norm_act import NEGATIVE_SLOPE, NormAct, NormActConv, forget_scratch
from networks.onednn_workaround import HALF, SafeConv3d
from networks.registry import BODY_NET

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
                raise NetworkError(f"BodyNet: {name} is {value!r}; expected a whole number of at least {least}")
        self.settings = {"_target_": BODY_NET, **arguments, "light": light}
        self.checkpointing = checkpointing
        self.channels_last = channels_last
        widths = [int(base_channels * factor) // (2 if light else 1) for factor in WIDTHS]
        self.stem = SafeConv3d(in_channels, widths[0], 3, padding=1, bias=False)
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
            forget_scratch()  # there is no backward pass to come
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
            networks.errors.NetworkError: If the file is no such checkpoint.
        """
        return load_network(path, map_location=map_location, trust=trust)


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
