"""Axes of classes and channels, found by building networks again."""

from __future__ import annotations

import pytest
import torch

from networks.errors import NetworkError
from networks.growing_axes import Axis, growing_axes
from networks.parameter_limit import ParameterLimitError
from networks.registry import read_specification
from tests.support.monai_networks import LEVELS

OUT = Axis(0, "class", False)


def specification(name, **arguments):
    return read_specification({"_target_": name, **arguments})


def test_a_transposed_convolution_has_its_classes_second_and_a_last_convolution_of_classes_to_classes_both():
    unet = specification("UNet", spatial_dims=3, in_channels=2, out_channels=3, **LEVELS, num_res_units=2)
    before = torch.get_rng_state()
    found = growing_axes(unet)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.axes == {
        "model.0.conv.unit0.conv.weight": (Axis(1, "channel", True),),
        "model.0.residual.weight": (Axis(1, "channel", True),),
        "model.2.0.conv.weight": (Axis(1, "class", False),),
        "model.2.0.conv.bias": (OUT,),
        "model.2.1.conv.unit0.conv.weight": (OUT, Axis(1, "class", True)),
        "model.2.1.conv.unit0.conv.bias": (OUT,),
    }
    network = unet.network_class(**unet.arguments)
    assert found.shapes == {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert found.otherwise == frozenset()
    assert found.fixed.keys() == found.shapes.keys() - found.axes.keys()


def test_a_network_that_takes_some_numbers_of_channels_only_is_built_for_such_a_number():
    vnet = specification("VNet", in_channels=2, out_channels=2)  # 16 % in_channels must be 0
    assert growing_axes(vnet).axes["in_tr.conv_block.conv.weight"] == (Axis(1, "channel", True),)


def test_a_network_that_cannot_be_built_or_is_far_too_large_is_refused():
    with pytest.raises(NetworkError, match="UNet: ValueError"):
        growing_axes(specification("UNet", spatial_dims=3, in_channels=1, out_channels=2, channels=[4], strides=[2]))
    swin = specification("SwinUNETR", in_channels=1, out_channels=2, feature_size=12)  # computes with its weights
    with pytest.raises(ParameterLimitError, match="numbers or more, found 10"):
        growing_axes(swin, most_parameters=10)
