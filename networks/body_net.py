"""BodyNet, the whole-body segmentation network, and its light form.

Nearly all time and memory of a 3D U-Net go into its full-resolution stage, so that stage is kept thin (a stem, one
residual block, additive skips) and what a layer keeps for the backward pass is kept small (see `norm_act`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks import BODY_NET
from networks.checkpoint import load_network
from networks.errors import NetworkError
from networks.norm_act import NEGATIVE_SLOPE, NormAct, NormActConv, Triple, free_scratch, half_of
from networks.onednn_workaround import HALF, SafeConv3d

# Channels at full, 1/2, … 1/32 resolution as multiples of base_channels, and residual blocks there on the way down; on
# the way up there is one a level. With base_channels 32 this makes 20.47 million parameters, most of them at 1/8 and
# 1/16, where they cost little time.
WIDTHS = (1.0, 2.0, 4.0, 6.0, 6.0, 6.5)
ENCODER_BLOCKS = (0, 1, 1, 2, 2, 1)


class BodyNet(nn.Module):
    """A residual encoder–decoder U-Net with pre-activation blocks, of six levels unless `strides` says otherwise.

    Pre-activation blocks and additive skips after Myronenko 2018 (arXiv:1810.11654), more blocks in the encoder than in
    the decoder after Isensee et al. 2024 (arXiv:2404.09556), instance normalisation and leaky ReLU as in nnU-Net.

    `forward(x) = head(features(x))`; a loss that works in slabs asks for `features` and uses `head`, so that logits of
    full size never exist. Any image size is taken: a level halves rounding up, and on the way up volumes are cropped to
    the skip's size.

    >>> network = BodyNet(in_channels=1, n_classes=71, base_channels=8)
    >>> network.features(torch.zeros(1, 1, 33, 40, 48)).shape
    torch.Size([1, 8, 33, 40, 48])
    >>> network(torch.zeros(1, 1, 33, 40, 48)).shape
    torch.Size([1, 71, 33, 40, 48])

    Args:
        in_channels: Channels of the image.
        n_classes: Classes, background included.
        base_channels: Channels at full resolution; F of `features`.
        light: Halve every width and leave out one convolution at full resolution: a quarter of the parameters, less
            than a quarter of the arithmetic; F = base_channels // 2.
        strides: Of each step down, 1 or 2 along I, J, K, at most five steps; None halves all axes five times. Small or
            anisotropic patches need fewer steps or fewer axes, see `pipeline.planning.network_shape`.
        kernels: Sizes of the convolutions at each level, from full resolution down, 1 or 3 along I, J, K, one more than
            there are strides; None takes 3×3×3.
        checkpointing: Recompute each level in the backward pass instead of keeping its inside; the same values,
            less memory, more time.
        channels_last: Memory layout of the convolutions. None: channels-last when they run in bfloat16 or float16
            (1.5–2 times faster on a CPU with AVX512-BF16, and the layout of tensor cores), the default layout in
            float32 (1.3 times faster there).

    Raises:
        NetworkError: If a number of channels or classes is not a whole number large enough.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 71,
        base_channels: int = 32,
        light: bool = False,
        *,
        strides: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
        checkpointing: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__()
        arguments = {"in_channels": in_channels, "n_classes": n_classes, "base_channels": base_channels}
        for name, value in arguments.items():
            least = 2 if name == "base_channels" else 1  # the light form halves it
            if not isinstance(value, int) or value < least:
                raise NetworkError(f"BodyNet: {name} is {value!r}; expected a whole number of at least {least}")
        steps = _triples("strides", strides, ((2, 2, 2),) * (len(WIDTHS) - 1), (1, 2))
        sizes = _triples("kernels", kernels, ((3, 3, 3),) * (len(steps) + 1), (1, 3))
        if len(steps) >= len(WIDTHS) or len(sizes) != len(steps) + 1:
            raise NetworkError(
                f"BodyNet: found {len(steps)} strides and {len(sizes)} kernels; expected at most {len(WIDTHS) - 1} "
                "strides, and one kernel more"
            )
        self.settings = {"_target_": BODY_NET, **arguments, "light": light}
        for name, given, used in (("strides", strides, steps), ("kernels", kernels, sizes)):
            if given is not None:
                self.settings[name] = [list(triple) for triple in used]
        self.checkpointing = checkpointing
        self.channels_last = channels_last
        widths = [int(base_channels * factor) // (2 if light else 1) for factor in WIDTHS[: len(sizes)]]
        self.stem = SafeConv3d(in_channels, widths[0], sizes[0], padding=half_of(sizes[0]), bias=False)
        levels = list(zip(pairwise(widths), pairwise(sizes), steps, strict=True))
        self.decoder_levels = list(zip(widths, accumulate(steps, _product, initial=(1, 1, 1)), strict=True))[:-1]
        """Channels of each level of the decoder, finest first, and the voxels of the image from one of its voxels to
        the next."""
        self.encoder = nn.ModuleList(
            EncoderLevel(fine, coarse, n, stride, kernel)
            for ((fine, coarse), (_, kernel), stride), n in zip(levels, ENCODER_BLOCKS[1:], strict=False)
        )
        self.decoder = nn.ModuleList(
            DecoderLevel(coarse, fine, stride, kernel, n_convolutions=1 if light and level == 0 else 2)
            for level, ((fine, coarse), (kernel, _), stride) in reversed(list(enumerate(levels)))
        )
        self.last = NormAct(widths[0])
        self.head = nn.Conv3d(widths[0], n_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)

    def features(self, x: Float[Tensor, "B C I J K"]) -> Float[Tensor, "B F I J K"]:
        """Return what the head is applied to, a plain tensor in the autocast dtype where autocast is on."""
        x = self.last(self.decoded(x, finest_only=True)[0])
        if not torch.is_grad_enabled():
            free_scratch()  # there is no backward pass to come
        return x

    def decoded(self, x: Float[Tensor, "B C I J K"], *, finest_only: bool = False) -> list[Tensor]:
        """Return what each level of the decoder gives, finest first and not yet normalised, see `decoder_levels`.

        Args:
            x: The image.
            finest_only: Free the coarser levels, so that the list has one entry.
        """
        if hasattr(x, "as_tensor"):  # a MONAI MetaTensor would do its bookkeeping in every operation
            x = x.as_tensor()
        x = self.stem(self._laid_out(x))
        skips = [x]
        for level in self.encoder:
            x = self._run(level, x)
            skips.append(x)
        skips.pop()
        outputs: list[Tensor] = []
        for level in self.decoder:
            x = self._run(level, x, skips.pop())
            outputs = [x] if finest_only else [x, *outputs]
        return outputs or [x]

    def forward(self, x: Float[Tensor, "B C I J K"]) -> Float[Tensor, "B n_classes I J K"]:
        """Return the logits of the image. For a MONAI MetaTensor they are one with the same affine and history, which
        Invertd and SaveImaged look for."""
        logits = self.head(self.features(x))
        return logits.as_subclass(type(x)).copy_meta_from(x) if hasattr(x, "copy_meta_from") else logits

    def _run(self, level: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(level, *inputs, use_reentrant=False, preserve_rng_state=False)
        return level(*inputs)

    def _laid_out(self, x: Tensor) -> Tensor:
        """Bring the image into the convolutions' dtype and memory layout; every layer follows its input's."""
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):  # torch knows no autocast on meta
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
        """Load the trained network of a run from its best_model.ckpt.

        It is a BodyNet, unless the run's config named another network: then it is that one, with `features` and `head`
        all the same.

        Args:
            path: best_model.ckpt of a run folder.
            map_location: Device of the weights.
            trust: Import a class outside the registry's allow-list, too.

        Raises:
            NetworkError: If the file is not such a checkpoint.
        """
        return load_network(path, map_location=map_location, trust=trust)


class EncoderLevel(nn.Module):
    """One step down (I2 = ⌈I / stride⌉), then residual blocks."""

    def __init__(
        self, fine: int, coarse: int, n_blocks: int, stride: Triple = (2, 2, 2), kernel: Triple = (3, 3, 3)
    ) -> None:
        super().__init__()
        self.down = NormActConv(fine, coarse, stride, kernel)
        self.blocks = nn.Sequential(*(ResidualBlock(coarse, kernel=kernel) for _ in range(n_blocks)))

    def forward(self, x: Float[Tensor, "B fine I J K"]) -> Float[Tensor, "B coarse I2 J2 K2"]:
        return self.blocks(self.down(x))


class DecoderLevel(nn.Module):
    """One step up, add the skip, then a residual block."""

    def __init__(
        self,
        coarse: int,
        fine: int,
        stride: Triple = (2, 2, 2),
        kernel: Triple = (3, 3, 3),
        n_convolutions: int = 2,
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(coarse, fine, stride, stride=stride, bias=False)
        self.block = ResidualBlock(fine, n_convolutions, kernel)

    def forward(
        self, x: Float[Tensor, "B coarse I2 J2 K2"], skip: Float[Tensor, "B fine I J K"]
    ) -> Float[Tensor, "B fine I J K"]:
        i, j, k = skip.shape[2:]
        x = self.up(x)
        # In place while nothing is cropped: at full resolution this tensor is the largest thing that the network holds
        return self.block(x.add_(skip) if x.shape == skip.shape else x[..., :i, :j, :k] + skip)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))))))."""

    def __init__(self, channels: int, n_convolutions: int = 2, kernel: Triple = (3, 3, 3)) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(NormActConv(channels, channels, kernel=kernel) for _ in range(n_convolutions))
        )

    def forward(self, x: Float[Tensor, "B C I J K"]) -> Float[Tensor, "B C I J K"]:
        return self.convolutions(x).add_(x)


def _product(one: Triple, other: Triple) -> Triple:
    i, j, k = (m * n for m, n in zip(one, other, strict=True))
    return i, j, k


def _triples(
    name: str, given: Sequence[Sequence[int]] | None, default: Sequence[Triple], allowed: Sequence[int]
) -> list[Triple]:
    """Return the settings along I, J, K at each step or level. Raises NetworkError for other than `allowed` ones."""
    found = []
    for values in default if given is None else given:
        if isinstance(values, str) or len(values) != 3 or not set(values) <= set(allowed):
            raise NetworkError(f"BodyNet: {name} holds {values!r}; expected three numbers out of {tuple(allowed)}")
        i, j, k = values
        found.append((int(i), int(j), int(k)))
    return found
