"""Values and gradients on a GPU against a CPU's, for every operation that is ours; skipped where there is no GPU."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from networks.body_net import BodyNet
from networks.norm_act import norm_act, norm_act_conv
from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.metrics.slab_argmax import segment_in_slabs
from transforms.augment import RandomAugmentd, Strengths
from transforms.restore import FeatureMap, restore

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _exact_float32():
    """Without TF32: its ten bits of mantissa would hide what the tests are after."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def leaves(*tensors, device):
    return [t.to(device).detach().requires_grad_(t.is_floating_point()) for t in tensors]


def on(device, operation, *tensors):
    """The operation's result and the gradients for its inputs, brought to the CPU."""
    inputs = leaves(*tensors, device=device)
    result = operation(*inputs)
    weight = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape).to(device)
    gradients = torch.autograd.grad((result * weight).sum(), inputs)
    return [value.detach().cpu() for value in (result, *gradients)]


def inputs_of_norm_act(layout):
    x = (3 * torch.randn(2, 8, 9, 12, 7, dtype=torch.float64) + 5).contiguous(memory_format=layout)
    return x, torch.rand(8, dtype=torch.float64) + 0.5, torch.randn(8, dtype=torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm_act_has_the_cpus_values_and_gradients(layout):
    tensors = inputs_of_norm_act(layout)
    for found, expected in zip(on("cuda", norm_act, *tensors), on("cpu", norm_act, *tensors), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm_act_conv_has_the_cpus_values_and_gradients(layout, stride):
    tensors = (*inputs_of_norm_act(layout), torch.randn(4, 8, 3, 3, 3, dtype=torch.float64))

    def operation(*inputs):
        return norm_act_conv(*inputs, stride)

    for found, expected in zip(on("cuda", operation, *tensors), on("cpu", operation, *tensors), strict=True):
        torch.testing.assert_close(found, expected)


def features_and_gradients(network, x, dtype):
    network.zero_grad()
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(x.device.type, dtype)
    with autocast:
        features = network.features(x)
    features.float().square().mean().backward()
    gradients = [p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None]
    return features.detach().float().cpu(), torch.cat(gradients)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_body_net_has_the_cpus_values_and_gradients(dtype, channels_last, checkpointing):
    network = BodyNet(base_channels=8, checkpointing=checkpointing, channels_last=channels_last)
    x = torch.rand(2, 1, 40, 48, 33)
    # Reference: the CPU in float32. Half precision is held to what its mantissa leaves after thirty layers.
    expected = features_and_gradients(network, x, torch.float32)
    found = features_and_gradients(copy.deepcopy(network).cuda(), x.cuda(), dtype)
    rest = 1e-3 if dtype == torch.float32 else 0.05
    assert (found[0] - expected[0]).norm() < rest * expected[0].norm()
    assert (found[1] - expected[1]).norm() < 4 * rest * expected[1].norm()
    assert F.cosine_similarity(found[1], expected[1], dim=0) > 1 - rest


@pytest.mark.parametrize("ignore_index", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slab_loss_has_the_cpus_value_gradients_and_counts(dtype, ignore_index):
    features, weight, bias = torch.randn(2, 6, 11, 9, 13), torch.randn(5, 6), torch.randn(5)
    label = torch.randint(0, 5, (2, 1, 11, 9, 13), dtype=torch.uint8)

    def computed(device):
        head = torch.nn.Conv3d(6, 5, 1).to(device, dtype)
        head.weight.data, head.bias.data = weight.view(5, 6, 1, 1, 1).to(device, dtype), bias.to(device, dtype)
        leaf = features.to(device, dtype).requires_grad_()
        loss = SlabDiceCELoss([1, 2, 3, 4, 5], ignore_index=ignore_index, memory_budget_mb=0.02).to(device)
        found = loss(leaf, head, label.to(device))
        found.loss.backward()
        values = (found.loss, found.n_correct, found.n_voxels, leaf.grad, head.weight.grad, head.bias.grad)
        return [value.detach().cpu() for value in values]

    for found, expected in zip(computed("cuda"), computed("cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_argmax_in_slabs_is_the_cpus():
    features, head = torch.randn(2, 6, 11, 9, 13), torch.nn.Conv3d(6, 71, 1)
    expected = segment_in_slabs(features, head)
    found = segment_in_slabs(features.cuda(), copy.deepcopy(head).cuda()).cpu()
    assert (found != expected).float().mean() < 1e-3  # ties in rounding alone


def test_restoring_from_features_of_a_gpu_gives_the_cpus_segmentation():
    features, affine = torch.randn(6, 10, 12, 9), np.diag([2.0, 2, 2, 1])
    weight, bias = torch.randn(71, 6), torch.randn(71)
    source = np.diag([0.9, 1.1, 2.5, 1])
    expected = restore([FeatureMap(features, affine, weight, bias)], (20, 19, 7), source)
    on_gpu = [value.cuda() for value in (features, weight, bias)]
    found = restore([FeatureMap(on_gpu[0], affine, *on_gpu[1:])], (20, 19, 7), source)
    assert np.mean(found.segmentation != expected.segmentation) < 1e-3


def test_augmentation_on_the_device_is_the_cpus_but_for_the_noise():
    size = (20, 24, 18)
    augment = RandomAugmentd(
        size,
        Strengths(spatial_probability=1, intensity_probability=1, noise=0),
        class_names=["background", "kidney_left", "kidney_right"],
        flips=(0, 1, 2),
        on_device=True,
    )
    augment.set_random_state(5)
    case = {"image": torch.rand(1, *size), "label": torch.randint(0, 3, (1, *size), dtype=torch.uint8)}
    drawn = [augment(case)["draw"] for _ in range(4)]
    batch = {key: torch.stack([value] * 4) for key, value in case.items()}
    expected = augment.apply_to_batch({**{key: value.clone() for key, value in batch.items()}, "draw": drawn})
    found = augment.apply_to_batch({**{key: value.cuda() for key, value in batch.items()}, "draw": drawn})
    torch.testing.assert_close(found["image"].cpu(), expected["image"], rtol=1e-3, atol=1e-4)
    assert (found["label"].cpu() != expected["label"]).float().mean() < 1e-3
