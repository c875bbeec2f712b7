"""The network of the settings is the registry's."""

from __future__ import annotations

import pytest
import torch

from networks.errors import NetworkError
from networks.registry import build_network, network_settings
from pipeline.config.settings import Config, DataConfig, ModelConfig
from pipeline.training.network import check_settings, network_of_settings


def test_settings_and_weights_are_those_of_the_registry():
    sizes, size = {"in_channels": 2, "n_classes": 3}, (16, 16, 16)
    model = ModelConfig(base_channels=4, use_light_model=True, checkpointing=True)
    config = Config(data=DataConfig("scans", target_size=size), model=model)
    networks = []
    for build in (
        lambda: network_of_settings(config, **sizes),
        lambda: build_network(None, base_channels=4, light=True, checkpointing=True, target_size=size, **sizes),
    ):
        torch.manual_seed(1)
        networks.append(build())
    ours, theirs = networks
    assert network_settings(ours) == network_settings(theirs)
    assert ours.checkpointing
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"strides": [[2, 2, 2], [1, 2, 2]]}, "deep_supervision: expected a BodyNet of at least 3 strides, found 2"),
        ({"strides": [[3, 2, 2]]}, "strides"),
        ({"base_channels": 8}, "base_channels is 8 in model.network, but 32 by the data and the config"),
    ],
)
def test_what_needs_no_data_is_refused_before_they_are_read(network, words):
    model = ModelConfig(network={"_target_": "networks.body_net.BodyNet", **network})
    with pytest.raises(NetworkError, match=words):
        check_settings(model, deep_supervision=True)


def test_a_network_that_fits_passes():
    strides = [[2, 2, 2]] * 3
    check_settings(ModelConfig(network={"_target_": "BodyNet", "strides": strides}), deep_supervision=True)
    check_settings(ModelConfig(network={"_target_": "SegResNet", "init_filters": 8}), deep_supervision=False)
