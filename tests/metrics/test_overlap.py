"""Overlap metrics against MONAI's, SimpleITK's and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.metrics import DiceMetric, compute_iou
from monai.networks import one_hot
from torch import multiprocessing, nn

from pipeline.metrics.overlap import (
    HistogramDiceMetric,
    class_scores,
    dice_of,
    joint_histogram,
    mean_iou,
    segment_in_slabs,
)

N_CLASSES = 6
REDUCTIONS = ["none", "mean", "sum", "mean_batch", "sum_batch", "mean_channel", "sum_channel"]


def cases(n_cases=4, grid=(9, 8, 7), seed=0):
    """Make label maps and predictions (cases, 1, *grid) with empty, absent and falsely predicted classes."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randint(0, N_CLASSES, (n_cases, 1, *grid), generator=generator)
    prediction = torch.where(torch.rand(reference.shape, generator=generator) < 0.6, reference, 1)
    reference[0][reference[0] == 2] = 0  # falsely predicted
    prediction[1][prediction[1] == 3] = 0  # missed
    reference[2] = prediction[2] = 0  # nothing there
    reference[reference == 5], prediction[prediction == 5] = 0, 0  # in no case
    return reference, prediction


def histograms(reference, prediction, ignore_index=None):
    return torch.stack(
        [joint_histogram(r, p, N_CLASSES, ignore_index) for r, p in zip(reference, prediction, strict=True)]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n_classes", [2, 71, 300])
def test_segmentation_in_slabs_is_the_argmax_of_the_logits(n_classes, dtype):
    features = torch.randn(2, 4, 9, 10, 11, dtype=dtype)
    head = nn.Conv3d(4, n_classes, 1, dtype=torch.float64)
    expected = head(features.double()).argmax(1)
    segmentation = segment_in_slabs(features, head, memory_budget_mb=0.01)
    assert segmentation.dtype == (torch.uint8 if n_classes <= 255 else torch.uint16)
    # In float32 two classes may come so close that rounding decides.
    assert (segmentation.long() == expected).double().mean() > 0.999
    last = features.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(segment_in_slabs(last, head).long(), segmentation.long())


def test_threads_find_the_same_segmentation_also_in_inference_mode():
    features, head = torch.randn(2, 4, 9, 10, 11), nn.Conv3d(4, 7, 1)
    alone = segment_in_slabs(features, head)
    torch.set_num_threads(2)
    with torch.inference_mode():
        assert torch.equal(segment_in_slabs(features, head, memory_budget_mb=0.01), alone)


def test_among_equal_logits_the_lowest_class_wins():
    logits = torch.randint(0, 3, (1, 5, 6, 7, 8)).float()
    expected = torch.from_numpy(logits.numpy().argmax(1))
    assert torch.equal(segment_in_slabs(logits, None).long(), expected)


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


@pytest.mark.parametrize("ignore_index", [None, 0, 2, 255])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("ignore_empty", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_dice_from_histograms_is_monais(reduction, ignore_empty, include_background, ignore_index):
    arguments = {
        "reduction": reduction,
        "ignore_empty": ignore_empty,
        "include_background": include_background,
        "ignore_index": ignore_index,
        "num_classes": N_CLASSES,
        "get_not_nans": True,
    }
    ours, theirs = HistogramDiceMetric(**arguments), DiceMetric(**arguments)
    for seed in range(3):
        reference, prediction = cases(seed=seed)
        if ignore_index == 255:
            reference[torch.rand(reference.shape) < 0.3] = 255
        values = theirs(prediction, reference)
        assert torch.allclose(ours(histograms(reference, prediction, ignore_index)), values, 0, 1e-6, equal_nan=True)
    for a, b in zip(ours.aggregate(), theirs.aggregate(), strict=True):
        assert torch.allclose(a, b, 0, 1e-6, equal_nan=True)
    assert torch.allclose(ours.get_buffer(), theirs.get_buffer(), 0, 1e-6, equal_nan=True)
    ours.reset()
    assert len(ours) == 0


def test_a_list_of_histograms_and_names_work_as_in_monai():
    reference, prediction = cases()
    names = [f"organ_{i}" for i in range(N_CLASSES)]
    ours, theirs = (
        kind(reduction="mean_batch", return_with_label=names, num_classes=N_CLASSES)
        for kind in (HistogramDiceMetric, DiceMetric)
    )
    ours(list(histograms(reference, prediction)))
    theirs(prediction, reference)
    assert ours.aggregate() == theirs.aggregate()


def test_what_is_no_histogram_is_refused():
    with pytest.raises(ValueError, match=r"histogram: expected one tensor \(cases, 6, 6\), found \(4, 1, 9, 8, 7\)"):
        HistogramDiceMetric(num_classes=N_CLASSES)(cases()[0])
    with pytest.raises(ValueError, match="per_component"):
        HistogramDiceMetric(per_component=True)(torch.zeros(1, 2, 2, dtype=torch.int64))


def _evaluate_on_one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metric = HistogramDiceMetric(reduction="mean_batch")
    # Five cases do not divide by two processes: the first one gets three.
    metric(histograms(*cases(5))[rank::2])
    torch.save(metric.aggregate(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_together_find_what_one_finds(tmp_path):
    multiprocessing.spawn(_evaluate_on_one_of_two, (str(tmp_path),), nprocs=2)
    alone = DiceMetric(reduction="mean_batch", num_classes=N_CLASSES)
    alone(*reversed(cases(5)))
    for rank in range(2):
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone.aggregate(), 0, 1e-6)


def test_mean_iou_averages_monais_iou_over_cases_and_then_over_classes():
    reference, prediction = cases()
    dice = HistogramDiceMetric(include_background=False)(histograms(reference, prediction))
    maps = (one_hot(v, N_CLASSES) for v in (prediction, reference))
    iou = compute_iou(*maps, include_background=False).double()
    mean, per_class = mean_iou(dice)
    expected = [[v for v in column if not math.isnan(v)] for column in iou.T.tolist()]
    expected = [sum(c) / len(c) if c else math.nan for c in expected]
    assert per_class.tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert math.isnan(expected[4])
    assert mean == pytest.approx(sum(expected[:4]) / 4, abs=1e-6)


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
        assert 1 - float(scores.recall[c]) == pytest.approx(overlap.GetFalseNegativeError(c))
        assert 1 - float(scores.precision[c]) == pytest.approx(overlap.GetFalseDiscoveryRate(c))


def test_a_ball_of_10_mm_has_4_19_ml_and_half_of_it_a_dice_of_two_thirds():
    spacing = (0.5, 0.4, 0.25)
    grids = torch.meshgrid(*[(torch.arange(round(22 / s)) + 0.5) * s - 11 for s in spacing], indexing="ij")
    ball = (sum(g**2 for g in grids) <= 100).byte()
    half = ball * (grids[0] > 0)
    scores = class_scores(joint_histogram(ball, half, 2), math.prod(spacing) / 1000)
    assert float(scores.reference_ml[1]) == pytest.approx(4 / 3 * math.pi, rel=1e-3)
    assert float(scores.prediction_ml[1]) == pytest.approx(2 / 3 * math.pi, rel=1e-3)
    assert [float(v[1]) for v in scores[:4]] == pytest.approx([2 / 3, 1 / 2, 1, 1 / 2])
    assert int(scores.false_positives[1]) == 0
    assert int(scores.true_positives[1]) == int(scores.false_negatives[1]) == int(half.sum())


def test_an_absent_class_is_left_out_or_scored():
    histogram = torch.tensor([[5, 0, 2], [0, 0, 0], [0, 0, 0]])
    assert dice_of(histogram, "left_out")[1:].isnan().all()
    assert dice_of(histogram, "scored")[1:].tolist() == [1, 0]
