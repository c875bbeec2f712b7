"""Trained weights in networks with other classes and channels: what they predict, not where they are stored."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet

from networks.growing_axes import growing_axes
from networks.registry import build_network, network_settings, read_specification
from networks.transfer import count_of, fit, named_alike, transfer
from tests.support.monai_networks import DEEP, LEVELS, SMALL

SIZE = (16, 16, 16)
NETWORKS = {
    "BodyNet": None,
    "UNet": SMALL["UNet"],  # several layers know the classes, and the last takes them in, too
    "MedNeXt": {"_target_": "MedNeXt", "init_filters": 4, "kernel_size": 3},  # its head is transposed
    "DynUNet": DEEP[0],  # several heads
}


def build(spec, *, n_classes=3, in_channels=1, seed=0):
    torch.manual_seed(seed)
    size = (32, 32, 32) if isinstance(spec, dict) and spec.get("deep_supervision") else SIZE
    return build_network(spec, n_classes=n_classes, in_channels=in_channels, base_channels=4, target_size=size).eval()


def taken(new, old, *, classes, channels=(0,)):
    growing = growing_axes(read_specification(network_settings(new)))
    result = transfer(new.state_dict(), old.state_dict(), growing, {"class": classes, "channel": channels})
    new.load_state_dict(result.weights)
    return result


def predictions(network, image):
    with torch.no_grad():
        return network(image)


@pytest.mark.parametrize("name", NETWORKS)
def test_permuted_classes_give_permuted_logits_exactly(name):
    old, new = build(NETWORKS[name]), build(NETWORKS[name], seed=1)
    result = taken(new, old, classes=(2, 0, 1))
    assert not result.in_part + result.initialised + result.dropped
    image = torch.rand(1, 1, *SIZE)
    found, expected = predictions(new, image), predictions(old, image)[:, [2, 0, 1]]
    if name == "UNet":  # its last layer adds the classes up, in another order
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["BodyNet", "UNet"])
def test_the_first_prediction_with_another_channel_is_the_old_networks(name):
    old, new = build(NETWORKS[name], in_channels=2), build(NETWORKS[name], in_channels=3, seed=1)
    result = taken(new, old, classes=(0, 1, 2), channels=(1, None, 0))
    assert result.in_part
    assert not result.initialised
    image = torch.rand(1, 3, *SIZE)
    torch.testing.assert_close(predictions(new, image), predictions(old, image[:, [2, 0]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["BodyNet", "UNet"])
def test_known_classes_keep_their_logits_beside_new_ones_and_without_lost_ones(name):
    old, new = build(NETWORKS[name]), build(NETWORKS[name], n_classes=4, seed=1)
    drawn = {key: value.clone() for key, value in new.state_dict().items()}
    result = taken(new, old, classes=(0, None, 1, 2))
    image = torch.rand(1, 1, *SIZE)
    found, expected = predictions(new, image), predictions(old, image)
    torch.testing.assert_close(found[:, [0, 2, 3]], expected, rtol=1e-5, atol=1e-5)
    if name != "UNet":  # there the classes take each other in
        fewer = build(NETWORKS[name], n_classes=2, seed=2)
        assert taken(fewer, old, classes=(0, 2)).in_part == ()
        assert torch.equal(predictions(fewer, image), expected[:, [0, 2]])
        (bias,) = (key for key in result.in_part if key.endswith("bias"))
        assert torch.equal(new.state_dict()[bias][1], drawn[bias][1])  # as it was drawn


def test_lost_channels_are_left_out_and_a_network_without_any_known_one_initialises_its_first_convolution():
    old = build(None, in_channels=2)
    new = build(None, in_channels=1, seed=1)
    taken(new, old, classes=(0, 1, 2), channels=(1,))
    assert torch.equal(new.state_dict()["stem.weight"], old.state_dict()["stem.weight"][:, 1:])
    other = build(None, in_channels=1, seed=1)
    drawn = other.state_dict()["stem.weight"].clone()
    assert taken(other, old, classes=(0, 1, 2), channels=(None,)).initialised == ("stem.weight",)
    assert torch.equal(other.state_dict()["stem.weight"], drawn)


def test_a_monai_unets_plain_state_dict_gives_the_features_of_the_network_itself():
    torch.manual_seed(3)
    plain = UNet(spatial_dims=3, in_channels=1, out_channels=2, **LEVELS).eval()
    new = build({"_target_": "UNet", **LEVELS}, n_classes=2, seed=1)
    growing = growing_axes(read_specification(network_settings(new)))
    saved = {f"module.{key}": value for key, value in plain.state_dict().items()}  # as DataParallel has them
    old = named_alike(saved, growing)
    assert (fit(old, growing).of_old, fit(old, growing).of_new) == (1, 1)
    assert (count_of(old, growing, "class"), count_of(old, growing, "channel")) == (2, 1)
    result = transfer(new.state_dict(), old, growing, {"class": (0, 1), "channel": (0,)})
    new.load_state_dict(result.weights)
    image = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        assert torch.equal(new.features(image), plain(image))  # its logits are its features: it has no 1×1×1 head


def test_how_much_fits_leaves_out_what_depends_on_classes_and_channels():
    growing = growing_axes(read_specification(network_settings(build(None))))
    assert fit(build(None, n_classes=7, in_channels=2).state_dict(), growing).of_old == 1
    wide = {key: value for key, value in build(None).state_dict().items() if "decoder" not in key}
    found = fit(wide, growing)
    assert found.of_old == 1
    assert 0.5 < found.of_new < 0.95
    torch.manual_seed(0)
    other = build_network(None, n_classes=3, base_channels=8, target_size=SIZE)
    assert fit(other.state_dict(), growing).of_old == 0


def test_the_old_weights_become_of_the_new_ones_type_and_the_drawn_ones_are_left_alone():
    old, new = build(None), build(None, seed=1)
    half = {key: value.half() for key, value in old.state_dict().items()}
    growing = growing_axes(read_specification(network_settings(new)))
    fresh = new.state_dict()
    before = {key: value.clone() for key, value in fresh.items()}
    result = transfer(fresh, half, growing, {"class": (0, 1, 2), "channel": (0,)})
    assert all(torch.equal(value, before[key]) for key, value in fresh.items())
    assert all(value.dtype == torch.float32 for value in result.weights.values())
    assert torch.equal(result.weights["head.weight"], half["head.weight"].float())
