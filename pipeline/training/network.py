"""Build the network that the settings describe, or check them before there are data."""

from __future__ import annotations

import torch
from torch import nn

from networks.errors import NetworkError
from networks.probe import Probe
from networks.registry import build_network, check_network
from pipeline.config.settings import Config
from pipeline.training.patch_schedule import PatchSchedule


def network_of_settings(config: Config, *, in_channels: int, n_classes: int, trust: bool = False) -> nn.Module:
    """Build the network, with weights drawn from torch's generator.

    Args:
        config: which network, and for which size of volumes or patches.
        in_channels: image channels.
        n_classes: classes, background included.
        trust: import network classes from outside the registry's allow-list. The caller decides, never the settings.

    Raises:
        NetworkError: the network is unknown, not allowed, or its arguments are wrong.
    """
    model = config.model
    return build_network(
        model.network,
        in_channels=in_channels,
        n_classes=n_classes,
        base_channels=model.base_channels,
        light=model.use_light_model,
        target_size=config.data.target_size,
        checkpointing=model.checkpointing,
        trust=trust,
    )


def check_settings(config: Config, *, trust: bool = False) -> None:
    """Check what can be checked before any data are read.

    Raises:
        NetworkError: as `network_of_settings`, or if there are no coarser levels for training.deep_supervision.
    """
    model = config.model
    check_network(
        model.network,
        base_channels=model.base_channels,
        light=model.use_light_model,
        deep_supervision=config.training.deep_supervision,
        trust=trust,
    )


def refuse_network(config: Config, *, in_channels: int, n_classes: int, trust: bool = False) -> None:
    """Build the network of a data set before its cases are prepared for hours, and try the patches of every epoch by
    their shapes alone. No random number changes.

    A network that cannot be tried without values passes, and so does BodyNet on one size: it takes any.

    Raises:
        NetworkError: as `network_of_settings`, or if the network cannot be trained on the patches of a stage.
    """
    patches = PatchSchedule.from_settings(config.data)
    if config.model.is_body_net and not patches.growth:
        return
    with torch.random.fork_rng(devices=[]):
        network = network_of_settings(config, in_channels=in_channels, n_classes=n_classes, trust=trust)
        probe, in_training = Probe(network, "", in_channels, n_classes), (True,)
        if probe.failure(patches.patch, modes=in_training, batch=patches.batch_size) is not None:
            return
        stages = ((patches.patch_of(n), patches.batch_of(n)) for n in range(config.training.max_epochs))
        for patch, batch in dict.fromkeys(stages):
            if reason := probe.failure(patch, modes=in_training, batch=batch):
                size = "×".join(map(str, patch))
                raise NetworkError(
                    f"data.patch_growth: expected patches that model.network can be trained on, found {size} voxels in "
                    f"batches of {batch} ({reason}); give that stage larger patches or batches, or remove it"
                )
