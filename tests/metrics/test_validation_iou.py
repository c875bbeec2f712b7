"""The val_mIoU of an epoch against MONAI's Dice, alone and across processes."""

from __future__ import annotations

import math

import pytest
import torch
from monai.metrics import DiceMetric
from torch import multiprocessing

from pipeline.metrics.overlap import joint_histogram, mean_iou
from pipeline.metrics.validation_iou import ValidationIoU
from tests.support.label_maps import N_CLASSES, cases, histograms


def monais(n_cases: int = 5) -> tuple[float, torch.Tensor]:
    """Mean IoU and IoU of each class, from the Dice of MONAI's own metric on the label maps."""
    reference, prediction = cases(n_cases)
    metric = DiceMetric(include_background=False, reduction="none", num_classes=N_CLASSES)
    return mean_iou(torch.as_tensor(metric(prediction, reference)))


def test_an_epoch_has_the_iou_that_follows_from_monais_dice():
    metric = ValidationIoU()
    for epoch in range(2):  # the second one forgets the first
        for histogram in histograms(*cases(5 if epoch else 3)):
            metric.update(histogram)
        mean, per_class = metric.compute()
        metric.reset()
    expected_mean, expected = monais()
    assert mean.item() == pytest.approx(expected_mean, abs=1e-6)
    assert torch.allclose(per_class, expected, 0, 1e-6, equal_nan=True)
    assert metric.state_dict() == {}  # a checkpoint does not hold it


def test_a_case_without_any_voxel_counts_for_nothing():
    metric = ValidationIoU()
    for histogram in (*histograms(*cases(5)), torch.zeros(N_CLASSES, N_CLASSES, dtype=torch.int64)):
        metric.update(histogram)
    assert metric.compute()[0].item() == pytest.approx(monais()[0], abs=1e-6)
    empty = ValidationIoU()
    empty.update(torch.zeros(3, 3, dtype=torch.int64))
    assert math.isnan(empty.compute()[0])


def _evaluate_on_one_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metric = ValidationIoU()
    # Five cases do not divide by two processes: the first one gets three.
    for histogram in histograms(*cases(5))[rank::2]:
        metric.update(histogram)
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_together_find_what_one_finds(tmp_path):
    multiprocessing.start_processes(_evaluate_on_one_of_two, (str(tmp_path),), 2, start_method="forkserver")
    expected_mean, expected = monais()
    for rank in range(2):
        mean, per_class = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert mean.item() == pytest.approx(expected_mean, abs=1e-6)
        assert torch.allclose(per_class, expected, 0, 1e-6, equal_nan=True)


def test_what_a_label_does_not_annotate_is_neither_right_nor_wrong():
    """The label shows class 1 alone; class 2 is predicted beside it, and once in its place."""
    label = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    alone, both = ValidationIoU(), ValidationIoU()
    alone.update(joint_histogram(label, torch.tensor([0, 0, 0, 1, 1, 1, 0]), 3))
    both.update(joint_histogram(label, torch.tensor([2, 2, 0, 1, 1, 1, 2]), 3))
    (mean, per_class), (expected, _) = both.compute(), alone.compute()
    assert float(mean) == float(expected) == pytest.approx(3 / 4)
    assert math.isnan(per_class[1])
