"""The loss of samples that annotate a part of the classes, against classes merged by hand and MONAI's loss of these."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from monai.losses import DiceCELoss

from networks.deep_supervision import Level
from pipeline.losses.deep_supervision import deep_supervision_loss
from pipeline.losses.dice_ce import SlabDiceCELoss, VolumeDiceCE
from pipeline.losses.partial_labels import merge_into_background, merged_classes, spread_gradient
from tests.support.loss_inputs import BUDGET_MB, GRID, LargestTensor, assert_same, gradients, make

N_CLASSES = 7
SETS = [(2, 5), (1, 2, 3, 4, 5, 6), (6,), (1, 2, 3, 5, 6)]
"""What four samples annotate; class 4 only the second."""


def partly_labelled(sets, n_features=8, n_classes=N_CLASSES, dtype=torch.float64, grid=GRID, scale=3.0):
    features, head, label = make(len(sets), n_features, n_classes, grid, dtype, scale)
    for sample, shown in zip(label, sets, strict=True):
        sample[~torch.isin(sample, torch.tensor([0, *shown]))] = 0
    return features, head, label


def merged_by_hand(logits, label, sets, weights=None, ignore_index=None):
    """Dice + cross entropy of probabilities whose classes outside each sample's set were added to the background."""
    n_classes = logits.shape[1]
    weights = torch.ones(n_classes, dtype=logits.dtype) if weights is None else weights.to(logits.dtype)
    overlap, predicted, labelled = torch.zeros(3, n_classes, dtype=logits.dtype)
    likelihoods, voxel_weights = [], []
    for scores, classes, shown in zip(logits, label[:, 0].long(), sets, strict=True):
        counts = torch.ones_like(classes, dtype=bool) if ignore_index is None else classes != ignore_index
        p, y = scores.softmax(0)[:, counts], classes[counts]
        hidden = [c for c in range(1, n_classes) if c not in shown]
        p = torch.cat([p[:1] + p[hidden].sum(0, keepdim=True), p[1:]])
        one = torch.eye(n_classes, dtype=logits.dtype)
        for c in (0, *shown):
            overlap = overlap + one[c] * p[c][y == c].sum()
            predicted = predicted + one[c] * p[c].sum()
            labelled = labelled + one[c] * (y == c).sum()
        likelihoods.append(p.gather(0, y[None])[0])
        voxel_weights.append(weights[y])
    seen = [c for c in range(n_classes) if c == 0 or any(c in shown for shown in sets)]
    dice = (weights * (1 - (2 * overlap + 1e-5) / (predicted + labelled + 1e-5)))[seen].mean()
    w = torch.cat(voxel_weights)
    return dice - (w * torch.cat(likelihoods).log()).sum() / w.sum()


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_head", [True, False])
def test_value_and_all_gradients_are_those_of_classes_merged_by_hand(with_head, weighted, ignore_index):
    features, head, label = partly_labelled(SETS, 8 if with_head else N_CLASSES)
    if ignore_index is not None:
        label[torch.rand(label.shape) < 0.3] = ignore_index
    weights = torch.linspace(0.25, 2, N_CLASSES) if weighted else None
    inputs = (features, head.weight, head.bias) if with_head else (features,)
    loss = SlabDiceCELoss(weights, ignore_index, memory_budget_mb=BUDGET_MB)
    ours = loss(features, head if with_head else None, label, annotated=SETS).loss
    theirs = merged_by_hand(head(features) if with_head else features, label, SETS, weights, ignore_index)
    assert_same([ours], [theirs], relative=1e-12)
    assert_same(gradients(ours, *inputs), gradients(theirs, *inputs), relative=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_samples_of_one_set_have_monais_loss_of_the_merged_logits(weighted):
    shown = (2, 5)
    features, head, label = partly_labelled([shown] * 3)
    weights = torch.rand(N_CLASSES) if weighted else None
    logits = head(features)
    merged = torch.cat([logits[:, [0, 1, 3, 4, 6]].logsumexp(1, keepdim=True), logits[:, list(shown)]], 1)
    renumbered = torch.where(label == 2, 1, torch.where(label == 5, 2, 0))
    kept = None if weights is None else weights[[0, *shown]].double()
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, weight=kept)(merged, renumbered)
    ours = SlabDiceCELoss(weights, memory_budget_mb=BUDGET_MB)(features, head, label, annotated=[shown] * 3)
    inputs = features, head.weight, head.bias
    assert_same([ours.loss, *gradients(ours.loss, *inputs)], [theirs, *gradients(theirs, *inputs)], relative=1e-10)
    assert int(ours.n_correct) == int((merged.argmax(1, keepdim=True) == renumbered).sum())
    assert int(ours.n_voxels) == label.numel()


def test_the_gradient_is_the_derivative():
    sets = [(2,), (1, 2, 3), ()]
    features, head, label = partly_labelled(sets, 2, 4, grid=(2, 2, 2), scale=1.0)
    label[0, 0, 0, 0] = 9
    loss = SlabDiceCELoss([0.5, 1.0, 0.25, 2.0], ignore_index=9)

    def value(features, *_):  # the head has the parameters, which gradcheck changes in place
        return loss(features, head, label, annotated=sets).loss

    assert torch.autograd.gradcheck(value, (features, *head.parameters()))


@pytest.mark.parametrize("ignore_index", [None, 255])
def test_where_every_class_is_annotated_the_bits_are_those_without_sets(ignore_index):
    features, head, label = make(n_classes=9)
    label[0, 0, 0] = 0 if ignore_index is None else ignore_index
    inputs = features, head.weight, head.bias
    loss = SlabDiceCELoss(torch.rand(9), ignore_index, memory_budget_mb=BUDGET_MB)
    plain, said = loss(features, head, label), loss(features, head, label, annotated=[range(1, 9), range(9)])
    assert all(map(torch.equal, plain, said))
    assert all(map(torch.equal, gradients(plain.loss, *inputs), gradients(said.loss, *inputs)))


def test_a_sample_that_is_not_counted_takes_its_set_along():
    features, head, label = partly_labelled(SETS)
    loss = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)
    found = loss(features, head, label, counted=[True, False, True, True], annotated=SETS).loss
    kept = [0, 2, 3]
    assert_same([found], [merged_by_hand(head(features)[kept], label[kept], [SETS[n] for n in kept])], relative=1e-12)
    nothing = loss(features, head, label, counted=[False] * 4, annotated=SETS)
    assert float(nothing.loss.detach()) == 0


def test_float32_logits_of_ten_thousand_are_safe():
    logits, _, label = partly_labelled(SETS, N_CLASSES, dtype=torch.float32, scale=1e4)
    ours = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)(logits, None, label, annotated=SETS).loss
    exact = logits.detach().double().requires_grad_()
    theirs = SlabDiceCELoss()(exact, None, label, annotated=SETS).loss
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert_same(gradients(ours, logits), [g.float() for g in gradients(theirs, exact)])


def test_layouts_types_and_threads_do_not_matter():
    features, head, label = partly_labelled(SETS, dtype=torch.float32)
    loss = SlabDiceCELoss(memory_budget_mb=BUDGET_MB)
    expected = loss(features, head, label, annotated=SETS).loss
    before = gradients(expected, features, head.weight, head.bias)
    last = features.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    torch.set_num_threads(2)
    found = loss(last, head, label.to(torch.uint16), annotated=SETS).loss
    assert_same([found, *gradients(found, last, head.weight, head.bias)], [expected, *before])
    rounded = features.detach().to(torch.bfloat16).requires_grad_()
    (gradient,) = gradients(loss(rounded, head, label, annotated=SETS).loss, rounded)
    exact = rounded.detach().float().requires_grad_()
    (precise,) = gradients(loss(exact, head, label, annotated=SETS).loss, exact)
    assert gradient.dtype == torch.bfloat16
    assert_same([gradient.float()], [precise], relative=2**-8)


@pytest.mark.parametrize("n_classes", [3, 60])
def test_merging_takes_no_more_memory(n_classes):
    features, head, label = partly_labelled([(1,)], 4, n_classes, torch.float32, (16, 24, 24))
    inputs = features, head.weight, head.bias
    allowed = {t.nbytes for t in inputs}
    largest = []
    for annotated in (None, [(1,)]):
        with LargestTensor() as seen:
            loss = SlabDiceCELoss(memory_budget_mb=0.2)(features, head, label, annotated=annotated).loss
            gradients(loss, *inputs)
        largest.append(max(s for s in seen.sizes if s not in allowed))
    assert largest[1] <= largest[0]


def test_levels_of_deep_supervision_share_the_sets():
    features, head, label = partly_labelled(SETS, grid=(8, 8, 8))
    half = torch.randn(4, 8, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    levels = [Level(features, head, (1, 1, 1)), Level(half, head, (2, 2, 2))]
    criterion = partial(SlabDiceCELoss(memory_budget_mb=BUDGET_MB), annotated=SETS)
    ours = deep_supervision_loss(criterion, levels, label).loss
    small = label[:, :, 1::2, 1::2, 1::2]
    theirs = 2 / 3 * merged_by_hand(head(features), label, SETS) + 1 / 3 * merged_by_hand(head(half), small, SETS)
    assert_same([ours, *gradients(ours, half)], [theirs, *gradients(theirs, half)], relative=1e-10)


def test_a_volume_in_parts_has_the_loss_of_the_whole():
    features, head, label = partly_labelled(SETS[:1])
    parts = VolumeDiceCE(head, class_weights=torch.ones(N_CLASSES), annotated=SETS[0])
    for part in (slice(0, 4), slice(4, 11)):
        parts.add(features[0, ..., part].detach(), label[0, 0, ..., part])
    torch.testing.assert_close(parts.loss(), merged_by_hand(head(features), label, SETS[:1]), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("annotated", "message"),
    [
        ([(1, 2)] * 2, "annotated: expected every class that the label of sample 0 holds, found none of class 3"),
        ([(1, 2, 3, 7)] * 2, "annotated: expected classes 0 … 3, found 7"),
        ([(1, 2, 3)], "annotated: expected the classes of 2 samples, found 1"),
    ],
)
def test_sets_that_cannot_be_are_refused(annotated, message):
    features, head, label = make(2, 8, 4)
    with pytest.raises(ValueError, match=message):
        SlabDiceCELoss()(features, head, label, annotated=annotated)


def test_merged_logits_have_the_added_probability_and_its_gradient():
    logits = torch.randn(5, 20, dtype=torch.float64)
    merged = merged_classes({1, 4}, 5, torch.device("cpu"))
    leaf = logits.clone().requires_grad_()
    p = leaf.softmax(0)
    expected = torch.stack([p[1], p[4], p[0] + p[2] + p[3]]).log()
    factors = torch.randn(3, 20, dtype=torch.float64)
    (factors * expected).sum().backward()
    rows = logits[merged.order]
    own_share = merge_into_background(rows, merged.n_annotated)
    torch.testing.assert_close(rows[:3].log_softmax(0), expected.detach())
    rows[:3] = factors - factors.sum(0) * rows[:3].softmax(0)
    spread_gradient(rows, merged.n_annotated, own_share)
    torch.testing.assert_close(rows[merged.row_of], leaf.grad)


def test_nothing_is_merged_where_all_is_annotated():
    assert merged_classes(range(1, 5), 5, torch.device("cpu")) is None
