"""Levels that a training supervises: their grids, and that their heads are no part of the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks.body_net import BodyNet
from networks.deep_supervision import CoarseHeads, supervised_levels
from networks.errors import NetworkError

STRIDES = [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_levels_halve_as_the_decoder_does_and_the_finest_is_the_networks_own(checkpointing):
    network = BodyNet(n_classes=3, base_channels=4, strides=STRIDES, checkpointing=checkpointing)
    x = torch.rand(2, 1, 9, 33, 40)
    levels = supervised_levels(network, CoarseHeads(network, 3), x)
    assert [level.step for level in levels] == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    for level in levels:
        assert level.features.shape[2:] == tuple(-(-n // step) for n, step in zip(x.shape[2:], level.step, strict=True))
        assert level.head(level.features).shape[1] == 3
    assert torch.equal(levels[0].features, network.features(x))
    assert levels[0].head is network.head
    (alone,) = supervised_levels(network, None, x)
    assert torch.equal(alone.features, levels[0].features)


def test_a_coarse_level_sees_the_features_normalised_and_activated():
    network = BodyNet(n_classes=3, base_channels=4).double()
    x = torch.rand(1, 1, 32, 32, 48, dtype=torch.float64)
    level = CoarseHeads(network, 3).double()(network, x)[1]
    raw = network.decoded(x)[1]
    torch.testing.assert_close(level.features, nn.functional.leaky_relu(nn.functional.instance_norm(raw), 0.01))


def test_the_documented_network_is_supervised_down_to_an_eighth():
    network = BodyNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    heads = CoarseHeads(network, n_classes=71)
    assert heads.steps == [(2, 2, 2), (4, 4, 4), (8, 8, 8)]
    assert [head.in_channels for head in heads.heads] == [64, 128, 192]
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert 20.4e6 < sum(p.numel() for p in network.parameters()) < 20.6e6


def test_every_parameter_of_network_and_heads_is_trained():
    network = BodyNet(n_classes=2, base_channels=4)
    heads = CoarseHeads(network, 2)
    total = sum(level.head(level.features).square().mean() for level in heads(network, torch.rand(1, 1, 32, 32, 64)))
    total.backward()
    assert all(p.grad is not None and p.grad.any() for p in [*network.parameters(), *heads.parameters()])


def test_a_decoder_of_two_levels_has_nothing_to_supervise():
    with pytest.raises(NetworkError, match=r"deep_supervision: expected a BodyNet of at least 3 strides, found 2"):
        CoarseHeads(BodyNet(strides=STRIDES[:2]), 3)
