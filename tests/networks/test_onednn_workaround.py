"""Half-precision convolutions of small volumes on a CPU, against the same in float32."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from networks.onednn_workaround import SafeConv3d, needs_float32, use_safe_convolutions


def weight_gradient(convolution, x, precision):
    convolution.zero_grad()
    leave_garbage = [torch.full_like(convolution.weight, torch.nan) for _ in range(4)]
    del leave_garbage  # so that memory that is read before it is written shows
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        convolution(x).float().square().sum().backward()
    return convolution.weight.grad.clone()


def is_close(found, expected):
    return bool(torch.isfinite(found).all()) and bool((found - expected).norm() < 0.02 * expected.norm())


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_weight_gradients_are_right_for_every_small_volume(kernel, stride, layout):
    for size in itertools.product((1, 2, 3, 4, 9), repeat=3):
        convolution = SafeConv3d(16, 32, kernel, stride=stride, padding=kernel // 2)
        x = torch.randn(1, 16, *size).contiguous(memory_format=layout)
        expected = weight_gradient(convolution, x, "float32")
        assert is_close(weight_gradient(convolution, x, "bfloat16"), expected), size


def test_the_result_has_the_dtype_of_autocast():
    convolution, x = SafeConv3d(1, 4, 3, padding=1), torch.rand(1, 1, 2, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(x).dtype == torch.bfloat16
    assert convolution(x).dtype == torch.float32
    assert convolution.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_large_volumes_and_pointwise_kernels_stay_in_half_precision():
    assert needs_float32(torch.empty(1, 1, 2, 9, 9), (3, 3, 3), (1, 1, 1))
    assert not needs_float32(torch.empty(1, 1, 4, 4, 4), (3, 3, 3), (1, 1, 1))
    assert not needs_float32(torch.empty(1, 1, 2, 2, 2), (1, 1, 1), (2, 2, 2))


def test_making_a_network_careful_changes_neither_its_weights_nor_its_values():
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding="same"), nn.ReLU(), nn.Conv3d(4, 2, 1))
    x, keys = torch.rand(1, 1, 3, 4, 5), list(network.state_dict())
    expected = network(x)
    assert torch.equal(use_safe_convolutions(network)(x), expected)
    assert list(network.state_dict()) == keys
    assert [type(m) for m in network] == [SafeConv3d, nn.ReLU, nn.Conv3d]
