"""Kernels of normalisation on a CPU, by Triton's interpreter; on a GPU `test_cuda.py` holds them to the CPU, too."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from networks import gpu_kernels
from networks.norm_act import norm_act, norm_act_conv
from tests.support.interpreted import interpreted

EPSILON, SLOPE = 1e-5, 0.01
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.fixture
def kernels():
    return interpreted("networks.norm_act_gpu")


def by_torch(x, weight, bias, gradient):
    """The activated values and the gradients for x, weight and bias, in float64."""
    leaves = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    normalised = torch.instance_norm(*leaves, None, None, True, 0.0, EPSILON, False)
    activated = F.leaky_relu(normalised, SLOPE)
    activated.backward(gradient.double())
    return [activated.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("shape", [(2, 8, 9, 12, 7), (1, 70, 5, 6, 7), (3, 3, 1, 1, 1), (2, 1, 4, 5, 6)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "rest"), [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_values_and_gradients_are_torchs(kernels, shape, layout, dtype, rest):
    x = (3 * torch.randn(shape) + 5).to(dtype).contiguous(memory_format=layout)
    gradient = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    activated, mean, rstd = kernels.activated(x, weight, bias, EPSILON, SLOPE, out=torch.empty_like(x))
    again = kernels.activated_again(x, weight, bias, mean, rstd, SLOPE, out=torch.empty_like(x))
    assert torch.equal(again, activated)
    found = kernels.gradients(gradient, x, weight, bias, mean, rstd, SLOPE, out=torch.empty_like(x))
    for value, right in zip((activated, *found), by_torch(x, weight, bias, gradient), strict=True):
        torch.testing.assert_close(value.double(), right, rtol=0, atol=rest * max(1.0, float(right.abs().max())))


def test_the_gradient_may_be_overwritten(kernels):
    x, gradient = torch.randn(2, 1, 2, 8, 5, 6, 7)
    weight, bias = torch.ones(8), torch.zeros(8)
    _, mean, rstd = kernels.activated(x, weight, bias, EPSILON, SLOPE, out=torch.empty_like(x))
    expected = kernels.gradients(gradient, x, weight, bias, mean, rstd, SLOPE, out=torch.empty_like(x))[0]
    found = kernels.gradients(gradient, x, weight, bias, mean, rstd, SLOPE, out=gradient)[0]
    assert torch.equal(found, expected)
    assert found.data_ptr() == gradient.data_ptr()


def test_scale_and_shift_need_not_be_contiguous(kernels):
    x, weight, bias = torch.randn(1, 4, 5, 5, 5), torch.rand(8)[::2], torch.ones(1).expand(4)
    out = torch.empty_like(x)
    activated, mean, rstd = kernels.activated(x, weight, bias, EPSILON, SLOPE, out=out)
    gradient = torch.randn_like(x)
    found = kernels.gradients(gradient, x, weight, bias, mean, rstd, SLOPE, out=torch.empty_like(x))
    for value, right in zip((activated, *found), by_torch(x, weight, bias, gradient), strict=True):
        torch.testing.assert_close(value.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [100.0, -3000.0])
def test_a_small_deviation_beside_a_large_mean_is_kept(kernels, first):
    # Squares of such values, added up in float32, would leave no digit of the deviation.
    x = 100 + 0.01 * torch.randn(1, 4, 30, 40, 50)
    x[..., 0] = first  # as padding is: the first voxels are far from the others
    _, mean, rstd = kernels.activated(x, torch.ones(4), torch.zeros(4), EPSILON, SLOPE, out=torch.empty_like(x))
    flat = x.double().flatten(2)
    torch.testing.assert_close(mean.double(), flat.mean(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(rstd.double(), (flat.var(-1, correction=0) + EPSILON).rsqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)])
def test_layers_give_with_them_what_they_give_without(kernels, monkeypatch, layout, stride):
    x = torch.randn(2, 8, 9, 6, 7).contiguous(memory_format=layout)
    kernel, (weight, bias) = torch.randn(4, 8, 3, 3, 3), torch.rand(2, 8)

    def results():
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias, kernel)]
        activated = norm_act(*leaves[:3])
        convolved = norm_act_conv(activated, *leaves[1:], stride)
        gradients = torch.autograd.grad((convolved * torch.linspace(-1, 1, convolved.shape[-1])).sum(), leaves)
        return [activated.detach(), convolved.detach(), *gradients]

    expected = results()
    monkeypatch.setattr(gpu_kernels, "run_on", lambda x: True)
    used = []
    gradients = kernels.gradients
    monkeypatch.setattr(kernels, "gradients", lambda *a, **k: used.append(1) or gradients(*a, **k))
    for found, right in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))
    assert len(used) == 2
