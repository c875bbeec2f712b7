"""Normalise, activate, convolve against torch's own layers, with the kernels' behaviour on a CPU and on CUDA."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from networks.norm_act import norm_act, norm_act_conv
from tests.support.like_cuda import LikeCuda

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def double(*shape, layout=torch.contiguous_format):
    return torch.randn(*shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()


def reference(x, weight, bias, kernel=None, stride=1):
    activated = F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias), 0.01)
    return activated if kernel is None else F.conv3d(activated, kernel, stride=stride, padding=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm_act_equals_torch_instance_norm_and_leaky_relu(layout):
    # The reference always sees the default layout: in the other one torch's instance_norm has wrong gradients on a CPU
    x, weight, bias = double(2, 3, 4, 5, 3, layout=layout), double(3), double(3)
    ours, plain = norm_act(x, weight, bias), reference(x, weight, bias)
    torch.testing.assert_close(ours, plain)
    gradient = torch.randn(plain.shape, dtype=plain.dtype)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, weight, bias), gradient.contiguous(memory_format=layout)),
        torch.autograd.grad(plain, (x, weight, bias), gradient),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
def test_norm_act_conv_equals_torch_layers(layout, stride):
    x, weight, bias, kernel = double(2, 3, 4, 5, 3, layout=layout), double(3), double(3), double(2, 3, 3, 3, 3)
    ours, plain = norm_act_conv(x, weight, bias, kernel, stride), reference(x, weight, bias, kernel, stride)
    torch.testing.assert_close(ours, plain)
    gradient = torch.randn(plain.shape, dtype=plain.dtype)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, weight, bias, kernel), gradient),
        torch.autograd.grad(plain, (x, weight, bias, kernel), gradient),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_pass_gradcheck(layout):
    x, weight, bias, kernel = double(2, 2, 2, 3, 2, layout=layout), double(2), double(2), double(2, 2, 3, 3, 3)
    assert torch.autograd.gradcheck(norm_act, (x, weight, bias))
    assert torch.autograd.gradcheck(norm_act_conv, (x, weight, bias, kernel))
    assert torch.autograd.gradcheck(norm_act_conv, (x, weight, bias, kernel, (2, 2, 2)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_pass_gradcheck_where_batch_norm_works_as_on_cuda(layout):
    # With one tensor for both saved statistics every gradient was wrong on CUDA, while a CPU ignored the two
    x, weight, bias, kernel = double(2, 2, 2, 3, 2, layout=layout), double(2), double(2), double(2, 2, 3, 3, 3)
    with LikeCuda() as cuda:
        assert torch.autograd.gradcheck(norm_act, (x + 3, weight, bias))
        assert torch.autograd.gradcheck(norm_act_conv, (x + 3, weight, bias, kernel))
        assert torch.autograd.gradcheck(norm_act_conv, (x + 3, weight, bias, kernel, (2, 1, 2)))
    assert cuda.n_normalised > 0


def test_a_sliced_image_in_neither_layout_is_taken():
    x, weight, bias = double(1, 3, 4, 5, 6), double(3), double(3)
    torch.testing.assert_close(norm_act(x[..., ::2], weight, bias), reference(x[..., ::2].contiguous(), weight, bias))


def test_one_tensor_for_two_outputs_is_noticed():
    x, weight, both = torch.rand(1, 2, 2, 2, 2), torch.ones(2), torch.empty(2)
    known = (weight, weight, weight, weight, False, 0.0, 0.0)
    with LikeCuda(), pytest.raises(AssertionError, match="save_mean and save_invstd are one tensor"):
        torch.ops.aten.native_batch_norm.out(x, *known, out=torch.empty_like(x), save_mean=both, save_invstd=both)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", [norm_act, norm_act_conv])
def test_inputs_and_the_incoming_gradient_are_left_as_they_are(operation, layout):
    tensors = [double(2, 3, 4, 5, 3, layout=layout), double(3), double(3)]
    tensors += [double(3, 3, 3, 3, 3)] if operation is norm_act_conv else []
    result = operation(*tensors)
    gradient = torch.randn(result.shape, dtype=result.dtype).contiguous(memory_format=layout)
    before = [tensor.detach().clone() for tensor in (*tensors, gradient)]
    torch.autograd.grad(result, tensors, gradient)
    assert all(map(torch.equal, (*tensors, gradient), before))
