"""Networks taken apart into features and head, against MONAI's own in one piece."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks import nets
from torch import nn

from networks.errors import NetworkError
from networks.registry import build_network, network_settings
from tests.support.monai_networks import DEEP, LEVELS, MONAI, SMALL, plain, small_segresnet


def logits_of(network, x):
    out = network(x)
    return out[0] if isinstance(out, list) else out


@pytest.mark.parametrize(
    ("spec", "head_name"), MONAI, ids=lambda value: value["_target_"] if value and "_target_" in value else ""
)
def test_a_split_network_equals_the_plain_one_and_keeps_its_keys(spec, head_name):
    network = build_network(spec, in_channels=2, n_classes=4, target_size=(16, 16, 32)).eval()
    x = torch.rand(1, 2, 16, 16, 32)
    with torch.no_grad():
        features, logits = network.features(x), network(x)
        torch.testing.assert_close(logits, logits_of(plain(network), x), rtol=1e-4, atol=1e-5)
    if head_name is None:
        assert network.head is None
        assert torch.equal(features, logits)
    else:
        assert network.head_name == head_name
        assert torch.equal(network.head(features), logits)
        assert network.head.kernel_size == (1, 1, 1)


@pytest.mark.parametrize("spec", DEEP, ids=lambda spec: spec["_target_"])
def test_several_levels_are_the_plain_networks_in_training_and_one_in_evaluation(spec):
    network, x = build_network(spec, in_channels=2, n_classes=4, target_size=(16, 16, 32)), torch.rand(2, 2, 16, 16, 32)
    twin = plain(network).train()
    assert network.head is not None
    with torch.no_grad():
        finest, *coarse = network.train().supervised_levels(x)
        theirs = twin(x)
        theirs = theirs.unbind(1) if isinstance(theirs, torch.Tensor) else theirs  # DynUNet stacks them
        assert len(theirs) == 1 + len(coarse) == {"DynUNet": 3, "SegResNetDS": 3, "MedNeXt": 5}[spec["_target_"]]
        torch.testing.assert_close(network.head(finest.features), theirs[0], rtol=1e-4, atol=1e-5)
        for number, (level, expected) in enumerate(zip(coarse, theirs[1:], strict=True), start=1):
            assert level.features.shape[2:] == tuple(n // 2**number for n in x.shape[2:])
            assert (level.head, level.step, level.first) == (None, (2**number,) * 3, (0, 0, 0))
            found = torch.nn.functional.interpolate(level.features, expected.shape[2:])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        (alone,) = network.eval().supervised_levels(x)
        torch.testing.assert_close(network.head(alone.features), twin.eval()(x), rtol=1e-4, atol=1e-5)


def test_coarse_levels_of_a_padded_image_begin_before_it():
    spec = {"_target_": "SegResNetDS", "init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2}
    network = build_network(spec, n_classes=2, target_size=(17, 20, 30))
    finest, coarse = network.supervised_levels(torch.rand(1, 1, 17, 20, 30))
    assert finest.features.shape[2:] == (17, 20, 30)
    assert coarse.features.shape[2:] == (10, 10, 16)
    assert (coarse.step, coarse.first) == ((2, 2, 2), (-1, 0, -1))


def test_a_deeply_supervised_network_can_be_copied_between_two_steps():
    network = build_network(DEEP[0], n_classes=2, target_size=(32, 32, 32))
    network.supervised_levels(torch.rand(1, 1, 32, 32, 32))
    copied, x = copy.deepcopy(network), torch.rand(1, 1, 32, 32, 32)
    network.get_parameter("head.weight").data.zero_()
    assert copied(x).std() > 0
    levels, copies = network.supervised_levels(x), copied.supervised_levels(x)
    assert all(torch.equal(a.features, b.features) for a, b in zip(levels, copies, strict=True))


def test_a_size_between_the_strides_is_padded_with_the_edge_and_cropped():
    network = build_network({"_target_": "UNet", **LEVELS}, n_classes=2, target_size=(17, 20, 31)).eval()
    x = torch.rand(1, 1, 17, 20, 31)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 0, 1, 2), mode="replicate")
    with torch.no_grad():
        assert torch.equal(network(x), plain(network)(padded)[..., 1:18, :, :31])


def test_a_volume_that_leaves_one_voxel_to_normalise_is_padded_to_two_along_each_axis():
    network = build_network({"_target_": "UNet", **LEVELS}, n_classes=2, target_size=(16, 16, 16))
    monai, x = plain(network), torch.rand(1, 1, 8, 4, 3)
    small = x[:, :, :4]
    with torch.no_grad():
        with pytest.raises(ValueError, match="more than 1 spatial element"):
            monai(torch.rand(1, 1, 4, 4, 4))
        padded = torch.nn.functional.pad(small, (2, 3, 2, 2, 2, 2), mode="replicate")
        assert torch.equal(network(small), monai(padded)[..., 2:6, 2:6, 2:5])
        two_are_left = torch.nn.functional.pad(x, (0, 1, 0, 0, 0, 0), mode="replicate")
        assert torch.equal(network(x), monai(two_are_left)[..., :3])


@pytest.mark.parametrize("name", ["AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "SegResNet", "UNet"])
def test_the_smallest_patches_of_a_plan_and_those_between_are_taken(name):
    network = build_network(SMALL[name], n_classes=2, target_size=(32, 32, 32)).train()
    for size in ((4, 8, 4), (20, 24, 20)):
        assert network(torch.rand(2, 1, *size)).shape == (2, 2, *size)


def test_training_reaches_every_parameter_through_features_and_head():
    network = small_segresnet()
    network.head(network.features(torch.rand(1, 1, 12, 13, 14))).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.training


def test_building_leaves_the_weights_that_the_seed_gives():
    torch.manual_seed(7)
    ours = small_segresnet().state_dict()
    after = torch.rand(1)
    torch.manual_seed(7)
    theirs = nets.SegResNet(out_channels=3, blocks_down=[1, 1], blocks_up=[1]).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(torch.rand(1), after)


def test_inside_another_module_the_keys_keep_their_prefix():
    holder, other = nn.ModuleDict({"network": small_segresnet()}), nn.ModuleDict({"network": small_segresnet()})
    state = holder.state_dict()
    assert "network.conv_final.2.conv.weight" in state
    other.load_state_dict(state)
    x = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(other["network"](x), holder["network"](x))


@pytest.mark.parametrize("edge", [32, 48])  # one and three times 32 and 16, which no other multiple must pass for
def test_a_network_for_one_size_pads_smaller_volumes_and_refuses_larger_ones_by_number(edge):
    network, x = build_network(SMALL["UNETR"], n_classes=2, target_size=(edge,) * 3).eval(), torch.rand(1, 1, 30, 29, 9)
    assert network_settings(network)["img_size"] == [edge] * 3
    before = [(edge - n) // 2 for n in x.shape[2:]]
    padding = [end for b, n in zip(before[::-1], (9, 29, 30), strict=True) for end in (b, edge - n - b)]
    with torch.no_grad():
        padded = plain(network)(torch.nn.functional.pad(x, padding, mode="replicate"))
        i, j, k = (slice(b, b + n) for b, n in zip(before, x.shape[2:], strict=True))
        torch.testing.assert_close(network(x), padded[..., i, j, k], rtol=1e-4, atol=1e-5)
    with pytest.raises(NetworkError, match=rf"built for volumes of \({edge}, .* voxels; found \(64, 32, 32\)"):
        network.features(torch.rand(1, 1, 64, 32, 32))


@pytest.mark.parametrize("spec", ["BodyNet", SMALL["UNet"], SMALL["BasicUNet"]])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_network_leaves_its_image_as_it_is(spec, layout):
    network = build_network(spec, in_channels=2, n_classes=3, base_channels=4, target_size=(32, 32, 32))
    x = torch.rand(1, 2, 32, 31, 32).contiguous(memory_format=layout)
    before = x.clone()
    network(x).square().mean().backward()
    assert torch.equal(x, before)
