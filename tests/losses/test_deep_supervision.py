"""The loss at several resolutions against MONAI's losses at each level, torch's interpolation and differentiation."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import nn
from torch.nn import functional as F

from networks.body_net import BodyNet
from networks.deep_supervision import CoarseHeads, Level, supervised_levels
from networks.registry import build_network
from pipeline.losses.deep_supervision import deep_supervision_loss, label_at_level, level_weights
from pipeline.losses.dice_ce import SlabDiceCELoss
from tests.support.monai_networks import DEEP, plain

GRID = (8, 12, 16)
STEPS = [(1, 1, 1), (1, 2, 2), (2, 4, 4)]


def make(n_classes=5, dtype=torch.float64, grid=GRID, n_features=6):
    label = torch.randint(0, n_classes, (2, 1, *grid), dtype=torch.uint8)
    levels = []
    for step in STEPS:
        size = [n // s for n, s in zip(grid, step, strict=True)]
        features = torch.randn(2, n_features, *size, dtype=dtype, requires_grad=True)
        levels.append(Level(features, nn.Conv3d(n_features, n_classes, 1, dtype=dtype), step))
    return levels, label


def inputs(levels):
    return [t for level in levels for t in (level.features, level.head.weight, level.head.bias)]


@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradients_equal_monais_loss_at_each_level(weighted):
    levels, label = make()
    weights = torch.tensor([0.5, 1.0, 0.0, 2.0, 1.0]) if weighted else None
    plain = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, weight=None if weights is None else weights.double())
    theirs = 0.0
    for level, share in zip(levels, (4 / 7, 2 / 7, 1 / 7), strict=True):
        small = F.interpolate(label.double(), size=level.features.shape[2:], mode="nearest-exact")
        theirs = theirs + share * plain(level.head(level.features), small)
    ours = deep_supervision_loss(SlabDiceCELoss(weights, memory_budget_mb=0.01), levels, label)
    torch.testing.assert_close(ours.loss, theirs, rtol=1e-10, atol=0)
    found, expected = (torch.autograd.grad(loss, inputs(levels)) for loss in (ours.loss, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    assert int(ours.n_correct) == int((levels[0].head(levels[0].features).argmax(1, keepdim=True) == label).sum())
    assert int(ours.n_voxels) == label.numel()


def test_a_deeply_supervised_body_net_has_monais_deep_supervision_loss():
    network = BodyNet(n_classes=3, base_channels=2, strides=[[2, 2, 2]] * 4)
    heads, x = CoarseHeads(network, 3), torch.rand(2, 1, 16, 32, 16)
    label = (x * 3).to(torch.uint8)
    levels = supervised_levels(network, heads, x)
    theirs = DeepSupervisionLoss(
        DiceCELoss(softmax=True, to_onehot_y=True, batch=True), weights=level_weights(len(levels))
    )([level.head(level.features) for level in levels], label.float())
    ours = deep_supervision_loss(SlabDiceCELoss(), levels, label).loss
    parameters = [*network.parameters(), *heads.parameters()]
    found, expected = (torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True) for v in (ours, theirs))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_segresnet_ds_has_monais_deep_supervision_loss_of_the_plain_network():
    network = build_network(DEEP[1], n_classes=3, target_size=(16, 32, 16))
    twin, x = plain(network).train(), torch.rand(2, 1, 16, 32, 16)
    label = (x * 3).to(torch.uint8)
    plain_loss = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)
    theirs = DeepSupervisionLoss(plain_loss, weights=level_weights(3))(twin(x), label.float())
    ours = deep_supervision_loss(SlabDiceCELoss(), supervised_levels(network, None, x), label).loss
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    expected = dict(twin.named_parameters())
    for name, parameter in network.body.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5)


def test_the_gradient_is_the_derivative():
    levels, label = make(3, grid=(2, 4, 4), n_features=2)
    label[0, 0, 0, 0, :2] = 9

    def value(*tensors):
        given = [level._replace(features=features) for level, features in zip(levels, tensors, strict=True)]
        return deep_supervision_loss(SlabDiceCELoss(ignore_index=9), given, label).loss

    assert torch.autograd.gradcheck(value, [level.features for level in levels], fast_mode=True)


def test_one_level_is_the_loss_itself():
    (level, *_), label = make()
    ours = deep_supervision_loss(SlabDiceCELoss(), [level], label)
    theirs = SlabDiceCELoss()(level.features, level.head, label)
    assert all(map(torch.equal, ours, theirs))


def test_weights_are_nnunets_powers_of_a_half_with_a_sum_of_one():
    assert level_weights(4) == [8 / 15, 4 / 15, 2 / 15, 1 / 15]


def at(size, step, first=(0, 0, 0)):
    return Level(torch.empty(1, 1, *size), None, step, first)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64])
def test_labels_are_torchs_nearest_where_the_step_divides_them(dtype):
    label = torch.randint(0, 60_000 if dtype != torch.uint8 else 255, (2, 1, *GRID)).to(dtype)
    found = label_at_level(label, at((8, 6, 4), (1, 2, 4)))
    expected = F.interpolate(label.double(), size=(8, 6, 4), mode="nearest-exact")
    assert found.dtype == dtype
    assert torch.equal(found.double(), expected)


def test_where_the_network_pads_its_image_labels_are_padded_with_it():
    label = torch.randint(0, 9, (1, 1, 13, 8, 10))
    padded = F.pad(label.double(), (3, 3, 0, 0, 1, 2), mode="replicate")
    expected = F.interpolate(padded, size=(4, 2, 4), mode="nearest-exact")
    assert torch.equal(label_at_level(label, at((4, 2, 4), (4, 4, 4), (-1, 0, -3))).double(), expected)


def test_a_voxel_that_reaches_beyond_the_image_has_the_class_of_its_edge():
    label = torch.arange(9).view(1, 1, 9, 1, 1)
    assert label_at_level(label, at((3, 1, 1), (4, 1, 1))).flatten().tolist() == [2, 6, 8]


@pytest.mark.parametrize("n_classes", [2, 200])
def test_nothing_that_is_kept_for_the_way_back_grows_with_the_classes(n_classes):
    levels, label = make(n_classes, dtype=torch.float32, grid=(16, 32, 32), n_features=4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        deep_supervision_loss(SlabDiceCELoss(), levels, label)
    assert max(kept) == levels[0].features.nbytes
