"""Overlap metrics against MONAI's, SimpleITK's and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.metrics import DiceMetric, compute_iou
from monai.networks import one_hot

from pipeline.metrics.overlap import class_scores, dice_of, joint_histogram, mean_iou
from tests.support.label_maps import N_CLASSES, cases, histograms


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64])
def test_joint_histogram_is_numpys(dtype):
    reference, prediction = (v[0] for v in cases())
    expected = np.histogram2d(reference.flatten(), prediction.flatten(), np.arange(N_CLASSES + 1) - 0.5)[0]
    histogram = joint_histogram(reference.to(dtype), prediction.to(dtype), N_CLASSES)
    assert np.array_equal(histogram.numpy(), expected)


def test_ignored_voxels_are_not_counted_whatever_was_predicted_there():
    reference, prediction = (v[0].byte() for v in cases())
    ignored = torch.rand(reference.shape) < 0.4
    histogram = joint_histogram(reference.masked_fill(ignored, 255), prediction, N_CLASSES, ignore_index=255)
    assert torch.equal(histogram, joint_histogram(reference[~ignored], prediction[~ignored], N_CLASSES))


@pytest.mark.parametrize(
    ("reference", "prediction", "message"),
    [
        ([0, 7], [0, 0], "reference: expected classes 0 … 5, found 7; remap"),
        ([0, 1], [0, -2], "prediction: expected classes 0 … 5, found -2"),
    ],
)
def test_a_value_that_is_no_class_is_refused(reference, prediction, message):
    with pytest.raises(ValueError, match=message):
        joint_histogram(torch.tensor(reference), torch.tensor(prediction), N_CLASSES)


@pytest.mark.parametrize("ignore_index", [None, 255])
def test_dice_from_histograms_is_monais(ignore_index):
    for seed in range(3):
        reference, prediction = cases(seed=seed)
        if ignore_index is not None:
            reference[torch.rand(reference.shape) < 0.3] = ignore_index
        theirs = DiceMetric(reduction="none", num_classes=N_CLASSES, ignore_index=ignore_index)(prediction, reference)
        ours = dice_of(histograms(reference, prediction, ignore_index))
        assert torch.allclose(ours, torch.as_tensor(theirs, dtype=torch.float64), 0, 1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_label_maps_stay_as_they_are_in_every_type_and_memory_order(dtype, order):
    reference, prediction = (v[0, 0] for v in cases())
    reference[0] = 200  # ignored
    given = [v.to(dtype) if order == "C" else v.to(dtype).permute(2, 1, 0).contiguous().permute(2, 1, 0)
             for v in (reference, prediction)]  # fmt: skip
    before = [v.clone() for v in given]
    histogram = joint_histogram(*given, N_CLASSES, ignore_index=200)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))
    assert torch.equal(histogram, joint_histogram(reference, prediction, N_CLASSES, ignore_index=200))
    kept = histogram.clone()
    class_scores(histogram, 0.001)
    assert torch.equal(histogram, kept)


def test_a_value_beyond_32_bits_is_not_taken_for_a_class():
    with pytest.raises(ValueError, match="reference: expected classes 0 … 5, found 4294967296"):
        joint_histogram(torch.tensor([0, 2**32]), torch.tensor([0, 1]), N_CLASSES)


def test_mean_iou_averages_monais_iou_over_cases_and_then_over_classes():
    reference, prediction = cases()
    dice = dice_of(histograms(reference, prediction))[:, 1:]
    maps = (one_hot(v, N_CLASSES) for v in (prediction, reference))
    iou = compute_iou(*maps, include_background=False).double()
    mean, per_class = mean_iou(dice)
    expected = [[v for v in column if not math.isnan(v)] for column in iou.T.tolist()]
    expected = [sum(c) / len(c) if c else math.nan for c in expected]
    assert per_class.tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert math.isnan(expected[4])
    assert mean == pytest.approx(sum(expected[:4]) / 4, abs=1e-6)


def test_small_structures_have_the_dice_of_their_counts_to_the_last_bit():
    """Else 0.8 − 0.7 and 0.7 − 0.6 would be unequal differences, and tests for paired cases see what is not there."""
    for both in range(1, 11):
        histogram = torch.tensor([[90, 0], [10 - both, both]])
        assert dice_of(histogram)[1].item() == 2 * both / (10 + both)
        assert class_scores(histogram, 1.0).iou[1].item() == pytest.approx(both / 10, abs=1e-15)


def test_mean_iou_of_nothing_is_undefined():
    mean, per_class = mean_iou(torch.full((3, 2), torch.nan))
    assert math.isnan(mean)
    assert per_class.isnan().all()


def test_overlap_scores_are_those_of_simpleitk():
    reference, prediction = (v[0, 0].byte() for v in cases())
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(v.numpy()) for v in (prediction, reference)))
    scores = class_scores(joint_histogram(reference, prediction, N_CLASSES), 0.001)
    for c in (1, 3, 4):
        assert float(scores.dice[c]) == pytest.approx(overlap.GetDiceCoefficient(c))
        assert float(scores.iou[c]) == pytest.approx(overlap.GetJaccardCoefficient(c))
        found = int(scores.true_positives[c])
        missed, wrong = int(scores.false_negatives[c]), int(scores.false_positives[c])
        assert missed / (found + missed) == pytest.approx(overlap.GetFalseNegativeError(c))
        assert wrong / (found + wrong) == pytest.approx(overlap.GetFalseDiscoveryRate(c))


def test_a_ball_of_10_mm_has_4_19_ml_and_half_of_it_a_dice_of_two_thirds():
    spacing = (0.5, 0.4, 0.25)
    grids = torch.meshgrid(*[(torch.arange(round(22 / s)) + 0.5) * s - 11 for s in spacing], indexing="ij")
    ball = (sum(g**2 for g in grids) <= 100).byte()
    half = ball * (grids[0] > 0)
    scores = class_scores(joint_histogram(ball, half, 2), math.prod(spacing) / 1000)
    assert float(scores.reference_ml[1]) == pytest.approx(4 / 3 * math.pi, rel=1e-3)
    assert float(scores.prediction_ml[1]) == pytest.approx(2 / 3 * math.pi, rel=1e-3)
    assert [float(v[1]) for v in scores[:2]] == pytest.approx([2 / 3, 1 / 2])
    assert int(scores.false_positives[1]) == 0
    assert int(scores.true_positives[1]) == int(scores.false_negatives[1]) == int(half.sum())
