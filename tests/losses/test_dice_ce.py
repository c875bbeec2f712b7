"""The slab loss against MONAI's DiceCELoss, its closed forms and numerical differentiation."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.losses.dice_ce import SlabDiceCELoss, VolumeDiceCE
from tests.support.loss_inputs import BUDGET_MB, GRID, LargestTensor, assert_same, gradients, make


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_classes", [2, 7, 71])
@pytest.mark.parametrize("n_samples", [1, 3])
def test_value_and_all_gradients_equal_monai(n_samples, n_classes, weighted):
    features, head, label = make(n_samples, 8, n_classes, scale=3, n_labels=max(2, n_classes - 2))
    weights = torch.rand(n_classes) if weighted else None
    if weighted:
        weights[0] = 0
    inputs = features, head.weight, head.bias
    ours = SlabDiceCELoss(weights, memory_budget_mb=BUDGET_MB)(features, head, label)
    logits = head(features)
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, weight=weights)(logits, label)
    assert_same([ours.loss], [theirs])
    assert_same(gradients(ours.loss, *inputs), gradients(theirs, *inputs))
    assert int(ours.n_correct) == int((logits.argmax(1, keepdim=True) == label).sum())
    assert int(ours.n_voxels) == label.numel()


@pytest.mark.parametrize("label_type", [torch.uint8, torch.uint16, torch.int16, torch.int64])
def test_any_integer_label_with_or_without_channel_gives_the_same(label_type):
    features, head, label = make()
    expected = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)(head(features), label)
    loss = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)
    assert_same([loss(features, head, label.to(label_type)).loss], [expected])
    assert_same([loss(features, head, label[:, 0].to(label_type)).loss], [expected])


def test_features_without_a_head_are_logits():
    logits, _, label = make(n_features=7)
    ours = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)(logits, None, label).loss
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)(logits, label)
    assert_same([ours, *gradients(ours, logits)], [theirs, *gradients(theirs, logits)])


@pytest.mark.parametrize("ignore_index", [255, 3, 0])
def test_ignored_voxels_count_as_if_they_were_not_there(ignore_index):
    features, head, label = make()
    label[torch.rand(label.shape) < 0.3] = ignore_index
    weights = torch.rand(7)
    kept = label[:, 0] != ignore_index
    subset = features.movedim(1, -1)[kept].T[None, :, :, None, None]
    logits, kept_label = head(subset), label[:, 0][kept][None, None, :, None, None]
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, weight=weights)(logits, kept_label)
    ours = SlabDiceCELoss(weights, ignore_index=ignore_index, memory_budget_mb=BUDGET_MB)(features, head, label)
    inputs = features, head.weight, head.bias
    assert_same([ours.loss, *gradients(ours.loss, *inputs)], [theirs, *gradients(theirs, *inputs)])
    assert int(ours.n_voxels) == int(kept.sum())
    assert int(ours.n_correct) == int((logits.argmax(1, keepdim=True) == kept_label).sum())


@pytest.mark.parametrize("counted", [(True, False, True), (False, False, False)])
def test_a_sample_that_is_not_counted_is_as_if_it_were_not_there(counted):
    features, head, label = make(n_samples=3)
    inputs, kept = (features, head.weight, head.bias), torch.tensor(counted)
    loss = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)
    expected = loss(features[kept], head, label[kept])
    label = label.to(torch.uint16)  # as labels of more than 255 classes are
    found = loss(features, head, label, counted=counted)
    assert_same([found.loss, *gradients(found.loss, *inputs)], [expected.loss, *gradients(expected.loss, *inputs)])
    assert not gradients(loss(features, head, label, counted=counted).loss, features)[0][~kept].any()
    assert (found.n_correct, found.n_voxels) == (expected.n_correct, expected.n_voxels)


@pytest.mark.parametrize("label_type", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64])
@pytest.mark.parametrize("fortran_order", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_features_label_and_head_are_left_as_they_are(label_type, fortran_order, layout):
    features, head, label = make(n_classes=5)
    label[torch.rand(label.shape) < 0.3] = 7
    label = label.movedim((2, 3, 4), (4, 3, 2)).contiguous().movedim((4, 3, 2), (2, 3, 4)) if fortran_order else label
    label, features = label.to(label_type), features.detach().contiguous(memory_format=layout).requires_grad_()
    tensors = (features, head.weight, head.bias, label)
    before = [tensor.detach().clone() for tensor in tensors]
    loss = SlabDiceCELoss(ignore_index=7, memory_budget_mb=BUDGET_MB)
    first, second = (loss(features, head, label) for _ in range(2))
    (gradient,) = gradients(first.loss, features)
    assert all(map(torch.equal, tensors, before))
    assert torch.equal(first.loss, second.loss)
    assert not gradient.movedim(1, -1)[label[:, 0].int() == 7].any()


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [0.3, 0.0, 2.0, 1.0]])
def test_a_batch_without_any_counted_voxel_costs_nothing(weights):
    features, head, label = make(n_classes=4)
    loss = SlabDiceCELoss(weights, ignore_index=255)(features, head, torch.full_like(label, 255))
    assert float(loss.loss.detach()) == pytest.approx(0, abs=1e-12)
    assert all(not g.any() for g in gradients(loss.loss, features, head.weight, head.bias))


@pytest.mark.parametrize("with_head", [True, False])
def test_the_gradient_is_the_derivative(with_head):
    features, head, label = make(2, 3, 3, grid=(3, 2, 4), dtype=torch.float64, n_labels=2)
    label[0, 0, 0, 0, :2] = 9
    loss = SlabDiceCELoss([0.5, 1.0, 0.25], ignore_index=9)

    def value(features, *parameters):  # those of the head, which gradcheck changes in place
        return loss(features, head if parameters else None, label).loss

    assert torch.autograd.gradcheck(value, (features, *(head.parameters() if with_head else ())))


def test_logits_of_ten_thousand_are_safe():
    logits, _, label = make(n_features=7, scale=1e4)
    ours = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)(logits, None, label).loss
    exact = logits.detach().double().requires_grad_()
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)(exact, label)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert_same(gradients(ours, logits), [g.float() for g in gradients(theirs, exact)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_only_the_features_are_rounded(dtype):
    features, head, label = make()
    rounded = features.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)(rounded, head, label).loss
        ours_gradients = gradients(ours * 1024, rounded, head.weight, head.bias)
    exact = rounded.detach().float().requires_grad_()
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)(head(exact), label)
    theirs_gradients = gradients(theirs * 1024, exact, head.weight, head.bias)
    assert_same([ours, *ours_gradients[1:]], [theirs, *theirs_gradients[1:]])
    assert ours_gradients[0].dtype == dtype
    assert_same([ours_gradients[0].float()], [theirs_gradients[0]], relative=2**-8)


def test_layout_of_the_features_does_not_matter_and_is_kept():
    features, head, label = make()
    expected = SlabDiceCELoss()(features, head, label).loss
    (expected_gradient,) = gradients(expected, features)
    last = features.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    turned = features.detach().movedim(-1, 2).contiguous().movedim(2, -1).requires_grad_()
    for other in (last, turned):
        loss = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)(other, head, label).loss
        (gradient,) = gradients(loss, other)
        assert_same([loss, gradient], [expected, expected_gradient])
    (gradient,) = gradients(SlabDiceCELoss()(last, head, label).loss, last)
    assert gradient.is_contiguous(memory_format=torch.channels_last_3d)


def test_slices_and_heads_without_bias_work():
    features, label = torch.randn(2, 5, 8, 9, requires_grad=True), torch.randint(0, 3, (2, 1, 8, 9))
    head = nn.Conv2d(5, 3, 1, bias=False)
    ours = SlabDiceCELoss()(features, head, label).loss
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)(head(features), label)
    assert_same([ours, *gradients(ours, head.weight)], [theirs, *gradients(theirs, head.weight)])


@pytest.mark.parametrize("n_classes", [2, 200])
def test_nothing_but_the_features_gradient_grows_beyond_the_budget(n_classes):
    features, head, label = make(1, 4, n_classes, grid=(32, 32, 32))
    inputs = features, head.weight, head.bias
    allowed = {t.nbytes for t in inputs}
    with LargestTensor() as seen:
        gradients(SlabDiceCELoss(memory_budget_mb=0.5)(features, head, label).loss, *inputs)
    # Besides the slabs, one float a voxel is kept for the way back.
    assert max(s for s in seen.sizes if s not in allowed) <= max(2**19, 4 * 32**3)


def test_the_same_input_gives_the_same_bits():
    features, head, label = make(n_classes=71)
    inputs = features, head.weight, head.bias
    loss = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)
    first, second = (loss(features, head, label).loss for _ in range(2))
    assert torch.equal(first, second)
    assert all(map(torch.equal, gradients(first, *inputs), gradients(second, *inputs)))


@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_share_the_work_without_changing_the_result(n_threads):
    features, head, label = make(n_classes=71)
    inputs = features, head.weight, head.bias
    alone = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)(features, head, label)
    alone_gradients = gradients(alone.loss, *inputs)
    torch.set_num_threads(n_threads)
    first, second = (SlabDiceCELoss(memory_budget_mb=BUDGET_MB)(features, head, label) for _ in range(2))
    first_gradients, second_gradients = (gradients(r.loss, *inputs) for r in (first, second))
    assert torch.get_num_threads() == n_threads
    assert torch.equal(first.loss, second.loss)
    assert all(map(torch.equal, first_gradients, second_gradients))
    assert_same([first.loss, *first_gradients], [alone.loss, *alone_gradients])
    assert first.n_correct == alone.n_correct
    with torch.inference_mode():
        assert torch.equal(SlabDiceCELoss(memory_budget_mb=BUDGET_MB)(features, head, label).loss, first.loss)


def test_what_needs_no_gradient_gets_none():
    features, head, label = make()
    head.requires_grad_(False)
    loss = SlabDiceCELoss()(features, head, label).loss
    loss.backward()
    assert features.grad is not None
    assert head.weight.grad is None


def test_gradients_reach_a_distributed_network(tmp_path):
    class Training(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.loss = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 7, 1), SlabDiceCELoss()

        def forward(self, image, label):
            return self.loss(self.body(image), self.head, label).loss

    plain, image, label = Training(), torch.randn(2, 1, *GRID), make()[2]
    plain(image, label).backward()
    expected = [p.grad.clone() for p in plain.parameters()]
    plain.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        DistributedDataParallel(plain)(image, label).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_same([p.grad for p in plain.parameters()], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": torch.full((2, 1, *GRID), 93)}, r"label: expected classes 0 … 6 .*found 93; remap"),
        ({"label": torch.full((2, 1, *GRID), -1)}, r"label: .*found -1"),
        ({"label": torch.zeros(2, 1, 9, 10, 10, dtype=torch.uint8)}, r"label: expected \(2, 9, 10, 11\).*9, 10, 10"),
        ({"head": nn.Conv3d(8, 7, 3)}, "head: expected a 1×1×1 convolution"),
        ({"head": nn.Conv3d(5, 7, 1)}, "head: expected 8 input channels, as the features have, found 5"),
        ({"weights": [1.0, 2.0]}, "class_weights: expected 7 numbers, one a class, found 2"),
        ({"weights": [-1.0] * 7}, "class_weights: expected numbers of 0 and above"),
    ],
)
def test_wrong_input_is_refused_by_name(change, message):
    features, head, label = make()
    with pytest.raises(ValueError, match=message):
        SlabDiceCELoss(change.get("weights"))(features, change.get("head", head), change.get("label", label))


@pytest.mark.parametrize("ignore_index", [None, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_volume_in_parts_has_the_loss_of_the_whole(weighted, ignore_index):
    features, head, label = make(1)
    weights = torch.rand(7) if weighted else None
    whole = SlabDiceCELoss(weights, ignore_index)(features, head, label).loss
    if ignore_index is None:
        monai = DiceCELoss(to_onehot_y=True, softmax=True, batch=True, weight=weights)(head(features), label)
        torch.testing.assert_close(whole, monai)
    parts = VolumeDiceCE(head, class_weights=weights, ignore_index=ignore_index)
    for part in (slice(0, 4), slice(4, 5), slice(5, 11)):
        parts.add(features[0, ..., part], label[0, 0, ..., part])
    torch.testing.assert_close(parts.loss(), whole.double(), rtol=1e-5, atol=0)


def test_a_volume_without_parts_has_no_loss():
    with pytest.raises(ValueError, match="at least one part"):
        VolumeDiceCE(None).loss()
