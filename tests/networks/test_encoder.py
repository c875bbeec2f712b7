"""Which weights belong to an encoder: what the networks' own documentation calls so."""

from __future__ import annotations

import pytest
import torch

from networks.encoder import encoder_weights
from networks.errors import NetworkError
from networks.registry import build_network
from tests.support.monai_networks import DYN, SMALL


def parts(spec, size=(32, 32, 32), depth=1):
    network = build_network(spec, n_classes=2, base_channels=2, target_size=size)
    names = encoder_weights(network, 1, size)
    others = network.state_dict().keys() - names
    return tuple({".".join(name.split(".")[:depth]) for name in each} for each in (names, others))


@pytest.mark.parametrize(
    ("spec", "encoder", "rest"),
    [
        (None, {"stem", "encoder"}, {"decoder", "last", "head"}),
        (
            "BasicUNet",
            {"conv_0", "down_1", "down_2", "down_3", "down_4"},
            {"final_conv", *(f"upcat_{n}" for n in (1, 2, 3, 4))},
        ),
        (SMALL["SegResNetDS"], {"encoder"}, {"up_layers"}),
        (
            SMALL["UNETR"],
            {"vit"},
            {"encoder1", "encoder2", "encoder3", "encoder4", "out", *(f"decoder{n}" for n in (2, 3, 4, 5))},
        ),
    ],
)
def test_the_encoder_is_what_is_computed_until_the_coarsest_level_is_done(spec, encoder, rest):
    found, others = parts(spec)
    assert (found, others - found) == (encoder, rest)  # of MONAI's ViT some weights take no part


def test_a_weight_with_two_names_has_both():
    network = build_network({"_target_": "DynUNet", **DYN}, n_classes=2, target_size=(32, 32, 32))
    names = encoder_weights(network, 1, (32, 32, 32))
    assert {"input_block.conv1.conv.weight", "skip_layers.downsample.conv1.conv.weight"} <= names
    assert not any("upsample" in name or "output" in name for name in names)


def test_buffers_of_batch_normalisations_belong_to_it():
    network = build_network(SMALL["AttentionUnet"], n_classes=2, target_size=(16, 16, 16))
    names = encoder_weights(network, 1, (16, 16, 16))
    assert "model.0.conv.0.adn.N.running_mean" in names
    assert not any("attention" in name for name in names)


def test_a_network_of_one_resolution_has_none():
    network = build_network(SMALL["HighResNet"], n_classes=2, target_size=(16, 16, 16))
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(NetworkError, match="HighResNet has no encoder"):
        encoder_weights(network, 1, (16, 16, 16))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
