"""Scores of label maps: MONAI's Dice, HD95 and surface Dice against the joint histogram and surfaces in one pass."""

from __future__ import annotations

import torch
from monai.metrics import DiceMetric, compute_hausdorff_distance, compute_surface_dice
from monai.networks.utils import one_hot

from benchmarks.inputs import N_PHANTOM_CLASSES, read_label_pair
from benchmarks.measure import measure
from benchmarks.measurement import Measurement
from pipeline.metrics.overlap import dice_of, joint_histogram
from pipeline.metrics.surface_distance import surface_scores

TOLERANCE_MM = 2.0


def plain_dice(folder: str, n: int = 1) -> Measurement:
    """MONAI's DiceMetric on label maps."""
    reference, prediction = (torch.from_numpy(array)[None, None] for array in read_label_pair(folder)[:2])

    def work() -> list[float]:
        metric = DiceMetric(include_background=False, reduction="mean_batch", num_classes=N_PHANTOM_CLASSES)
        metric(prediction, reference)
        return torch.as_tensor(metric.aggregate()).tolist()

    return measure(work, n=n)


def our_dice(folder: str, n: int = 1) -> Measurement:
    """The same metric, fed with the joint histogram."""
    reference, prediction = (torch.from_numpy(array) for array in read_label_pair(folder)[:2])

    def work() -> list[float]:
        return dice_of(joint_histogram(reference, prediction, N_PHANTOM_CLASSES))[1:].nan_to_num(0).tolist()

    return measure(work, n=n)


def plain_surfaces(folder: str, n: int = 1) -> Measurement:
    """MONAI's two surface metrics, on the one-hot maps that they ask for; voxels that are no surface cost nothing."""
    reference, prediction, spacing = read_label_pair(folder)

    def work() -> list[float]:
        y_pred, y = (one_hot(torch.from_numpy(a)[None, None], N_PHANTOM_CLASSES) for a in (prediction, reference))
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=False, percentile=95, spacing=spacing)
        thresholds = [TOLERANCE_MM] * (N_PHANTOM_CLASSES - 1)
        dice = compute_surface_dice(y_pred, y, class_thresholds=thresholds, include_background=False, spacing=spacing)
        return _scores_where_both_are(hd95[0], dice[0], reference, prediction)

    return measure(work, n=n)


def our_surfaces(folder: str, n: int = 1) -> Measurement:
    """HD95 and surface Dice of all classes at once."""
    reference, prediction, spacing = read_label_pair(folder)

    def work() -> list[float]:
        scores = surface_scores(reference, prediction, spacing, N_PHANTOM_CLASSES, tolerance_mm=TOLERANCE_MM)
        hd95, dice = (torch.from_numpy(s[1:]) for s in scores)
        return _scores_where_both_are(hd95, dice, reference, prediction)

    return measure(work, n=n)


def _scores_where_both_are(hd95: torch.Tensor, dice: torch.Tensor, reference, prediction) -> list[float]:
    """Scores of the classes that both maps hold: for the others the libraries have different conventions."""
    counts = [
        torch.bincount(torch.from_numpy(m).flatten(), minlength=N_PHANTOM_CLASSES) for m in (reference, prediction)
    ]
    both = (counts[0][1:] > 0) & (counts[1][1:] > 0)
    return [*hd95[both].tolist(), *dice[both].tolist()]
