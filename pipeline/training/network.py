"""Build the network that the settings describe, or check them before there are data."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from networks.registry import build_network, check_network
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


def check_settings(model: ModelConfig, *, deep_supervision: bool, trust: bool = False) -> None:
    """Check what can be checked before any data are read.

    Raises:
        NetworkError: as `network_of_settings`, or if there are no coarser levels for `deep_supervision`.
    """
    check_network(
        model.network,
        base_channels=model.base_channels,
        light=model.use_light_model,
        deep_supervision=deep_supervision,
        trust=trust,
    )
