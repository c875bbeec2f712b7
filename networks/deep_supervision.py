"""The levels of a network that a training compares with the label, and heads for those of them that have none.

Deep supervision (Lee et al. 2015, arXiv:1409.5185) trains the coarser levels of a decoder to segment, too. A trained
network needs their heads no more.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from networks.errors import NetworkError
from networks.norm_act import NEGATIVE_SLOPE, NormAct, Triple


class Level(NamedTuple):
    """One resolution of a network, and where it lies in the image."""

    features: Float[Tensor, "B F I J K"]
    """What the head is applied to."""
    head: nn.Module | None
    """A 1×1×1 convolution, or None: the features are the logits."""
    step: Triple = (1, 1, 1)
    """Voxels of the image along I, J, K that one voxel of the level covers."""
    first: Triple = (0, 0, 0)
    """The image's voxel at which the level's first one begins; below 0 where the network pads its images."""


class CoarseHeads(nn.Module):
    """A normalisation, an activation and a 1×1×1 convolution for each level of BodyNet's decoder but the finest, which
    has the network's own, and the coarsest, which nnU-Net leaves out, too.

    They are no part of the network: its parameters, state_dict and settings are those of one that is trained without.

    >>> import torch
    >>> from networks.body_net import BodyNet
    >>> network = BodyNet(n_classes=3, base_channels=8, strides=[[2, 2, 2]] * 4)
    >>> levels = CoarseHeads(network, n_classes=3)(network, torch.zeros(1, 1, 32, 32, 48))
    >>> [tuple(level.features.shape[1:]) for level in levels]
    [(8, 32, 32, 48), (16, 16, 16, 24), (32, 8, 8, 12)]

    Args:
        network: A BodyNet.
        n_classes: Classes, background included.

    Raises:
        NetworkError: If its decoder has no level between the finest and the coarsest.
    """

    def __init__(self, network: Any, n_classes: int) -> None:
        super().__init__()
        coarse = network.decoder_levels[1:-1]
        if not coarse:
            raise NetworkError(
                f"training.deep_supervision: expected a BodyNet of at least 3 strides, found {len(network.encoder)}, "
                "whose decoder has no level between the finest and the coarsest; switch it off"
            )
        self.steps = [step for _, step in coarse]
        self.norms = nn.ModuleList(NormAct(width) for width, _ in coarse)
        heads = [nn.Conv3d(width, n_classes, 1) for width, _ in coarse]
        for head in heads:
            nn.init.kaiming_normal_(head.weight, a=NEGATIVE_SLOPE)  # as BodyNet's own
        self.heads = nn.ModuleList(heads)

    def forward(self, network: Any, x: Float[Tensor, "B C I J K"]) -> list[Level]:
        """Return the supervised levels of the image, finest first."""
        finest, *coarse = network.decoded(x)
        levels = [Level(network.last(finest), network.head)]
        # Not strict: the coarsest level has no head
        for features, norm, head, step in zip(coarse, self.norms, self.heads, self.steps, strict=False):
            levels.append(Level(norm(features), head, step))
        return levels


def return_coarse_outputs(network: nn.Module) -> None:
    """Let MONAI's DynUNet return its coarser outputs in a list, as other networks do.

    Its own `forward` enlarges them all to full size and stacks them, (B, levels, classes, I, J, K), so that a training
    holds that many volumes of every class, and they cannot be separated once the head is taken out. It also keeps them
    until the next image.
    """
    from monai.networks.nets import DynUNet  # late: half a second that BodyNet does not need

    if isinstance(network, DynUNet) and network.deep_supervision:
        network.forward = MethodType(_outputs_of_dynunet, network)  # type: ignore[method-assign]


def _outputs_of_dynunet(network: Any, x: Tensor) -> Tensor | list[Tensor]:
    logits = network.output_block(network.skip_layers(x))
    coarse = list(network.heads)
    for level in range(len(coarse)):  # not another list: the layers fill this one
        network.heads[level] = x.new_empty(0)
    return [logits, *coarse] if network.training else logits


def supervised_levels(network: Any, coarse_heads: CoarseHeads | None, x: Float[Tensor, "B C I J K"]) -> list[Level]:
    """Return the levels of a network that a training supervises, finest first.

    Args:
        network: Has `features` and `head`; a BodyNet where there are coarse heads. Where it has `supervised_levels`,
            these are taken, else the finest alone.
        coarse_heads: Made for this network.
        x: The image.
    """
    if coarse_heads is not None:
        return coarse_heads(network, x)
    if hasattr(network, "supervised_levels"):
        return network.supervised_levels(x)
    return [Level(network.features(x), network.head)]
