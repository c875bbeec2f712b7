"""The loss's kernels on a CPU, by Triton's interpreter, held to MONAI; on a GPU `test_cuda.py` holds them, too."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from pipeline.losses import dice_ce
from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.losses.label_counts import refuse_unknown_labels
from tests.support.interpreted import interpreted

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.fixture
def kernels(monkeypatch):
    module = interpreted("pipeline.losses.dice_ce_gpu")
    monkeypatch.setattr(module, "PART", torch.float32)  # the interpreter multiplies no bfloat16
    monkeypatch.setattr(dice_ce, "gpu_kernels_for", lambda batch: module if module.can_take(batch) else None)
    taken = []
    differentiate = module.differentiate

    def noted(batch, *given):
        if batch.features.any():  # not the trial of a new head
            taken.append(batch)
        return differentiate(batch, *given)

    monkeypatch.setattr(module, "differentiate", noted)
    return taken


def loss_and_gradients(criterion, features, head, label):
    leaf = features.clone(memory_format=torch.preserve_format).requires_grad_()
    head.zero_grad()
    found = criterion(leaf, head, label)
    found.backward()
    return [value.detach().double() for value in (found, leaf.grad, *(p.grad for p in head.parameters()))]


@pytest.mark.parametrize(("n_features", "n_classes"), [(6, 5), (32, 71), (60, 40), (3, 100)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradients_are_monais(kernels, n_features, n_classes, layout, dtype, with_bias):
    features = torch.randn(2, n_features, 5, 7, 6).to(dtype).contiguous(memory_format=layout)
    head = torch.nn.Conv3d(n_features, n_classes, 1, bias=with_bias)
    label = torch.randint(0, n_classes, (2, 1, 5, 7, 6)).to(torch.uint8)
    monais = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    expected = loss_and_gradients(lambda x, head, y: monais(head(x), y), features.float(), head, label)
    found = loss_and_gradients(lambda *given: SlabDiceCELoss()(*given).loss, features, head, label)
    assert len(kernels) == 1
    for value, right in zip(found, expected, strict=True):
        rest = 1e-5 if value.ndim in (0, 1) or len(value) == n_classes else torch.finfo(dtype).eps
        torch.testing.assert_close(value, right, rtol=rest, atol=rest * float(right.abs().max()))


@pytest.mark.parametrize("ignore_index", [255, 3])
def test_ignored_voxels_and_counts_are_those_of_slabs(kernels, ignore_index):
    features, head = torch.randn(1, 8, 6, 7, 9), torch.nn.Conv3d(8, 5, 1)
    label = torch.randint(0, 5, (1, 6, 7, 9))
    label[torch.rand(label.shape) < 0.3] = ignore_index
    criterion = SlabDiceCELoss([1, 2, 3, 4, 5], ignore_index=ignore_index)
    half = features.bfloat16()
    found, expected = criterion(half, head, label.to(torch.uint8)), criterion(half.float(), head, label)
    torch.testing.assert_close(found.loss, expected.loss)
    assert (int(found.n_correct), int(found.n_voxels)) == (int(expected.n_correct), int(expected.n_voxels))
    assert int(found.n_voxels) == int((label != ignore_index).sum())


def test_a_bias_need_not_be_contiguous(kernels):
    features, label = torch.randn(1, 8, 4, 5, 6).bfloat16(), torch.randint(0, 6, (1, 4, 5, 6))
    head = torch.nn.Conv3d(8, 6, 1)
    head.bias = torch.nn.Parameter(torch.randn(12)[::2])
    found = SlabDiceCELoss()(features, head, label).loss
    monais = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    torch.testing.assert_close(found, monais(head(features.float()), label[:, None]))


def test_no_voxel_is_correct_whose_logits_hold_nan(kernels):
    features, head = torch.randn(1, 8, 4, 5, 6).bfloat16(), torch.nn.Conv3d(8, 6, 1)
    with torch.no_grad():
        head.bias[2] = torch.nan
    label = torch.randint(0, 6, (1, 4, 5, 6))
    found, expected = (SlabDiceCELoss()(x, head, label) for x in (features, features.float()))
    assert found.loss.isnan()
    assert int(found.n_correct) == int(expected.n_correct) == 0


def test_what_the_kernels_are_not_made_for_goes_through_slabs(kernels):
    label = torch.randint(0, 5, (1, 4, 4, 4))
    half = torch.randn(1, 8, 4, 4, 4).bfloat16().requires_grad_()
    SlabDiceCELoss(ignore_index=2**32)(half, torch.nn.Conv3d(8, 5, 1), label).loss.backward()
    for features, head, more in (
        (torch.randn(1, 8, 4, 4, 4), torch.nn.Conv3d(8, 5, 1), {}),  # float32
        (torch.randn(1, 5, 4, 4, 4).bfloat16(), None, {}),  # logits
        (torch.randn(1, 200, 4, 4, 4).bfloat16(), torch.nn.Conv3d(200, 5, 1), {}),  # a long head
        (torch.randn(1, 64, 4, 4, 4).bfloat16(), torch.nn.Conv3d(64, 70, 1), {}),  # a large one
        (torch.randn(1, 8, 4, 4, 4).bfloat16(), torch.nn.Conv3d(8, 6, 1), {"annotated": [[1, 2, 3, 4]]}),
        (torch.randn(1, 8, 4, 4, 4).bfloat16(), torch.nn.Conv3d(8, 5, 1), {"counted": [False]}),  # no sample is left
    ):
        SlabDiceCELoss()(features.requires_grad_(), head, label, **more).loss.backward()
    assert not kernels


def test_a_float32_number_is_the_sum_of_its_parts():
    module = interpreted("pipeline.losses.dice_ce_gpu")
    numbers = torch.randn(40, 8) * 10.0 ** torch.randint(-6, 6, (40, 8))
    parts = module.parts_of(numbers)
    assert parts.dtype == torch.bfloat16
    assert torch.equal(parts.float().sum(0), numbers)


@pytest.mark.parametrize("unknown", [5, 200, -3])
def test_an_unknown_label_makes_the_loss_nan_where_labels_are_not_waited_for(kernels, unknown):
    features, head = torch.randn(2, 8, 6, 7, 9).bfloat16().requires_grad_(), torch.nn.Conv3d(8, 5, 1)
    label = torch.randint(0, 5, (2, 1, 6, 7, 9))
    label[0, 0, :2] = 255
    criterion = SlabDiceCELoss(ignore_index=255)
    checked = criterion(features, head, label)
    criterion.checks_labels = False
    for found, right in zip(criterion(features, head, label), checked, strict=True):
        assert torch.equal(found, right)
    refuse_unknown_labels(label, 5, 255)
    label[1, 0, 3, 4, 5] = unknown
    found = criterion(features, head, label)
    assert found.loss.isnan()
    found.loss.backward()  # reads nothing beyond the classes' coefficients
    assert len(kernels) == 1
    assert features.grad[0].isfinite().all()
    with pytest.raises(ValueError, match=rf"label: expected classes 0 … 4 or ignore_index 255, found {unknown}; remap"):
        refuse_unknown_labels(label, 5, 255)


def test_the_slabs_refuse_an_unknown_label_at_once():
    criterion = SlabDiceCELoss()
    criterion.checks_labels = False
    label = torch.full((1, 1, 4, 4, 4), 7)
    with pytest.raises(ValueError, match="found 7"):
        criterion(torch.randn(1, 8, 4, 4, 4), torch.nn.Conv3d(8, 5, 1), label)


@pytest.mark.parametrize("failing", ["sum_up", "differentiate"])
def test_kernels_that_do_not_fit_a_gpu_are_said_and_left_to_the_slabs(kernels, failing, monkeypatch, caplog):
    module = interpreted("pipeline.losses.dice_ce_gpu")

    def fail(*_):
        raise RuntimeError("out of resource: shared memory\nand more")

    monkeypatch.setattr(module, failing, fail)
    n_classes = {"sum_up": 11, "differentiate": 13}[failing]  # heads that no other test has
    features, head = torch.randn(1, 9, 3, 4, 5).bfloat16(), torch.nn.Conv3d(9, n_classes, 1)
    label = torch.randint(0, n_classes, (1, 1, 3, 4, 5))
    found = [SlabDiceCELoss()(features, head, label).loss for _ in range(2)]
    expected = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)(head(features.float()), label)
    torch.testing.assert_close(found, [expected] * 2)
    (warning,) = caplog.messages
    assert f"kernels do not run for {n_classes} classes of 9 features (out of resource: shared memory)" in warning
