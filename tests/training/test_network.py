"""The network of the settings is the registry's."""

from __future__ import annotations

import torch

from networks.registry import build_network, network_settings
from pipeline.config.settings import ModelConfig
from pipeline.training.network import network_of_settings


def test_settings_and_weights_are_those_of_the_registry():
    sizes = {"in_channels": 2, "n_classes": 3, "target_size": (16, 16, 16)}
    networks = []
    for build in (
        lambda: network_of_settings(ModelConfig(base_channels=4, use_light_model=True, checkpointing=True), **sizes),
        lambda: build_network(None, base_channels=4, light=True, checkpointing=True, **sizes),
    ):
        torch.manual_seed(1)
        networks.append(build())
    ours, theirs = networks
    assert network_settings(ours) == network_settings(theirs)
    assert ours.checkpointing
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
