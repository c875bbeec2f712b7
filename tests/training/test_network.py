"""The network of the settings is the registry's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from networks.errors import NetworkError
from networks.registry import build_network, network_settings
from pipeline.check import check
from pipeline.config.settings import Config, DataConfig, ModelConfig, TrainingConfig
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.training.network import check_settings, network_of_settings
from tests.support.volumes import configured


def settings(model, *, deep_supervision):
    return Config(data=DataConfig("scans"), model=model, training=TrainingConfig(deep_supervision=deep_supervision))


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
        check_settings(settings(model, deep_supervision=True))


def test_a_network_that_fits_passes():
    strides = [[2, 2, 2]] * 3
    check_settings(settings(ModelConfig(network={"_target_": "BodyNet", "strides": strides}), deep_supervision=True))
    check_settings(settings(ModelConfig(network={"_target_": "SegResNet", "init_filters": 8}), deep_supervision=False))


UNET = {"_target_": "UNet", "channels": [2, 4, 8, 8], "strides": [2, 2, 2], "norm": "batch"}


@pytest.mark.parametrize(
    ("network", "growth", "words"),
    [
        ({"_target_": "SegResNet", "init_filter": 8}, (), "SegResNet has no argument init_filter"),
        ({"_target_": "BodyNet", "strides": [[3, 2, 2]]}, (), "strides"),
        ({"_target_": "DynUNet", "kernel_size": [3, 3]}, (), "network DynUNet needs the argument strides"),
        (UNET, ((8, 8, 8, 1, 1),), "data.patch_growth: expected patches that model.network can be trained on"),
    ],
)
def test_a_check_without_trial_steps_says_what_a_training_refuses(tmp_path, network, growth, words):
    write_dataset(tmp_path / "bodies", n_cases=4, voxel_mm=24)
    data = {"mode": "patch", "target_size": (32, 32, 32), "spacing_mm": (24, 24, 24), "patch_growth": growth}
    config = configured(tmp_path / "bodies", data=data)
    config = replace(config, model=ModelConfig(network=network, base_channels=4))
    found = [finding for finding in check(config, measure=False, workers=1).findings if finding.severity == "error"]
    assert [finding.kind for finding in found] == ["network"]
    assert words in found[0].found
