"""Build the network that the settings describe."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from networks.registry import build_network
from pipeline.config.settings import ModelConfig


def network_of_settings(
    model: ModelConfig, *, in_channels: int, n_classes: int, target_size: Sequence[int], trust: bool = False
) -> nn.Module:
    """Build the network, with weights drawn from torch's generator.

    Args:
        model: which network.
        in_channels: image channels.
        n_classes: classes, background included.
        target_size: voxels (I, J, K) of the volumes.
        trust: import network classes from outside the registry's allow-list. The caller decides, never the settings.

    Raises:
        NetworkError: the network is unknown, not allowed, or its arguments are wrong.
    """
    return build_network(
        model.network,
        in_channels=in_channels,
        n_classes=n_classes,
        base_channels=model.base_channels,
        light=model.use_light_model,
        target_size=target_size,
        checkpointing=model.checkpointing,
        trust=trust,
    )
