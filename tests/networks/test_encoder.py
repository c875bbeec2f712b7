"""Which weights belong to an encoder: what the networks' own documentation calls so."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNETR
from torch import nn

from networks.body_net import BodyNet
from networks.encoder import encoder_weights
from networks.errors import NetworkError
from networks.registry import build_network
from tests.support.monai_networks import DYN, SMALL

SIZE = (16, 16, 16)


@pytest.mark.parametrize(
    ("network", "encoder", "rest"),
    [
        (lambda: BodyNet(base_channels=2), {"stem", "encoder"}, {"decoder", "last", "head"}),
        (
            lambda: build_network({"_target_": "BasicUNet", "features": [2] * 6}, n_classes=2, target_size=SIZE),
            {"conv_0", "down_1", "down_2", "down_3", "down_4"},
            {"final_conv", "upcat_1", "upcat_2", "upcat_3", "upcat_4"},
        ),
        (
            lambda: UNETR(1, 2, SIZE, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=4),
            {"vit"},
            {"encoder1", "encoder2", "encoder3", "encoder4", "decoder2", "decoder3", "decoder4", "decoder5", "out"},
        ),
    ],
    ids=["BodyNet", "BasicUNet", "UNETR"],
)
def test_the_encoder_is_what_is_computed_until_the_coarsest_level_is_done(network, encoder, rest):
    built = network()
    names = encoder_weights(built, 1, SIZE)
    assert {name.partition(".")[0] for name in names} == encoder
    assert {name.partition(".")[0] for name in built.state_dict().keys() - names} == rest


def test_a_weight_with_two_names_has_both():
    network = build_network({"_target_": "DynUNet", **DYN}, n_classes=2, target_size=SIZE)
    names = encoder_weights(network, 1, SIZE)
    assert {"input_block.conv1.conv.weight", "skip_layers.downsample.conv1.conv.weight"} <= names
    assert not any("upsample" in name or "output" in name for name in names)


def test_buffers_of_batch_normalisations_belong_to_it():
    network = build_network(SMALL["AttentionUnet"], n_classes=2, target_size=SIZE)
    names = encoder_weights(network, 1, SIZE)
    assert "model.0.conv.0.adn.N.running_mean" in names
    assert not any("attention" in name for name in names)


def test_normalisations_without_weights_belong_to_it():
    down, norm, up = (
        nn.Conv3d(1, 2, 2, stride=2),
        nn.BatchNorm3d(2, affine=False),
        nn.ConvTranspose3d(2, 2, 2, stride=2),
    )
    network = nn.Sequential(down, norm, up, nn.BatchNorm3d(2, affine=False))
    found = encoder_weights(network, 1, SIZE)
    assert {name.partition(".")[0] for name in found} == {"0", "1"}
    assert "1.running_mean" in found


def test_a_network_of_one_resolution_has_none():
    network = build_network(SMALL["HighResNet"], n_classes=2, target_size=SIZE)
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(NetworkError, match="HighResNet has no encoder"):
        encoder_weights(network, 1, SIZE)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
