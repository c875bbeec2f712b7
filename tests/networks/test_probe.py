"""What a network tells on the meta device: sizes, parameters that take no part."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from networks.parameter_limit import TABLE_NUMBERS
from networks.probe import Probe, freeze_unused_parameters
from networks.registry import KNOWN, build_network
from tests.support.monai_networks import DEEP, SMALL


class WithTable(nn.Module):
    """As a network that computes the coordinates of all voxels does."""

    def forward(self, x):
        return x + torch.zeros(TABLE_NUMBERS + 1, dtype=torch.uint8).sum()


def test_tables_are_limited_where_a_network_is_not_trusted():
    size = (16, 16, 16)
    assert Probe(WithTable(), "", 1, 1).failure(size) is None
    assert "tables of at most" in str(Probe(WithTable(), "", 1, 1, is_trusted=False).failure(size))


@pytest.mark.parametrize(("target", "divisor"), [("SegResNet", 8), ("BasicUNet", 1), ("MedNeXt", 16)])
def test_the_divisor_is_the_networks_own(target, divisor):
    arguments = {"MedNeXt": {"init_filters": 4, "kernel_size": 3}}.get(target, {})
    assert build_network({"_target_": target, **arguments}, target_size=(48, 64, 80)).divisor == divisor


def test_a_split_is_verified_on_the_least_volume_that_torch_trains_on():
    """Halved four times, 16³ voxels are one, of which torch refuses the mean and deviation; of two it takes them."""
    unet = UNet(3, 1, 2, channels=[2, 2, 2, 2, 2], strides=[2, 2, 2, 2])
    size = Probe(unet, "", 1, 2).smallest_size(16, (160, 160, 256))
    assert unet(torch.zeros(1, 1, *size)).shape[2:] == size == (32, 16, 16)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        unet(torch.zeros(1, 1, 16, 16, 16))


@pytest.fixture
def one_process(tmp_path):
    """A process group of one, in which DistributedDataParallel waits for gradients as it does in many."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_network_trains_two_steps_in_a_process_group(name, one_process):
    size = (32, 32, 64 if name == "SwinUNETR" else 32)
    network = build_network(SMALL[name], n_classes=2, base_channels=2, target_size=size)
    training = DistributedDataParallel(network)
    for _ in range(2):
        training.zero_grad()
        training(torch.rand(1, 1, *size)).square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in network.parameters())


class WithASpareHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv3d(1, 4, 3, padding=1)
        self.head, self.spare = nn.Conv3d(4, 2, 1), nn.Conv3d(4, 2, 1)

    def forward(self, x):
        return self.head(self.features(x))


@pytest.mark.parametrize("spec", DEEP, ids=lambda spec: spec["_target_"])
def test_every_level_of_a_deeply_supervised_network_is_trained_in_a_process_group(spec, one_process):
    class Training(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = build_network(spec, n_classes=2, target_size=(32, 32, 32))

        def forward(self, x):
            first, *coarse = self.network.supervised_levels(x)
            return sum(logits.square().mean() for logits in (first.head(first.features), *(c.features for c in coarse)))

    training = DistributedDataParallel(Training())
    for _ in range(2):
        training.zero_grad()
        training(torch.rand(2, 1, 32, 32, 32)).backward()
    assert all(p.requires_grad and p.grad is not None for p in training.parameters())


def test_parameters_that_take_no_part_are_frozen_and_named():
    network = WithASpareHead()
    assert freeze_unused_parameters(network, 1, (4, 4, 4)) == ["spare.weight", "spare.bias"]
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["features.weight", "features.bias", "head.weight", "head.bias"]


def test_a_network_that_computes_with_values_is_left_as_it_is():
    class Branching(WithASpareHead):
        def forward(self, x):
            return super().forward(x) if x.max() > 0 else x

    network = Branching()
    assert freeze_unused_parameters(network, 1, (4, 4, 4)) == []
    assert all(parameter.requires_grad for parameter in network.parameters())
