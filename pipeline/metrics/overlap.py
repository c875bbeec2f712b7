"""Overlap of two label maps: joint histogram, Dice, IoU, volumes and mIoU. Opens no file.

One pass counts the joint histogram of reference and prediction; every overlap measure is read off that table. A class
that the reference lacks has no Dice and no IoU (NaN), as with ignore_empty=True in monai.metrics, and averages leave
it out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from transforms.slabs import counting_slabs


def joint_histogram(
    reference: Integer[Tensor, "*grid"],
    prediction: Integer[Tensor, "*grid"],
    n_classes: int,
    ignore_index: int | None = None,
) -> Int[Tensor, "C C"]:
    """Count the voxels of each class of the reference (row) and class of the prediction (column), int64.

    Args:
        reference, prediction: class indices on the same grid, of any integer type; they are not changed.
        n_classes: C, with the background.
        ignore_index: voxels with this value in the *reference* are not counted.

    Raises:
        ValueError: any other value of either map is not a class 0 … n_classes − 1.

    >>> joint_histogram(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1]), n_classes=2).tolist()
    [[1, 0], [1, 2]]
    """
    rows, columns = (t.detach().as_subclass(Tensor).flatten() for t in (reference, prediction))
    # The last bin takes the ignored voxels.
    bins = torch.zeros(n_classes**2 + 1, dtype=torch.int64, device=rows.device)
    for voxels in counting_slabs(len(rows), rows.device):
        row, column = _signed(rows[voxels]), _signed(columns[voxels])
        ignored = None if ignore_index is None else row == ignore_index
        if ignored is not None:
            row = row.masked_fill(ignored, 0)
        _check_classes("reference", row, n_classes, ignore_index)
        _check_classes("prediction", column, n_classes, None)
        codes = row * n_classes + column
        if ignored is not None:
            codes.masked_fill_(ignored, n_classes**2)
        bins += torch.bincount(codes, minlength=n_classes**2 + 1)
    return bins[:-1].view(n_classes, n_classes)


def _signed(values: Integer[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The same values as int32 where that holds them, else as int64: torch computes little with unsigned integers."""
    return values.to(torch.int32 if values.dtype.itemsize < 4 or values.dtype == torch.int32 else torch.int64)


def _check_classes(name: str, classes: Int[Tensor, " n"], n_classes: int, ignore_index: int | None) -> None:
    lowest, highest = (int(v) for v in classes.aminmax())
    if lowest < 0 or highest >= n_classes:
        raise ValueError(
            f"{name}: expected classes 0 … {n_classes - 1}"
            + ("" if ignore_index is None else f" or ignore_index {ignore_index}")
            + f", found {lowest if lowest < 0 else highest}; remap the label map or set the class count to fit"
        )


def dice_of(histogram: Int[Tensor, "*cases C C"]) -> Float[Tensor, "*cases C"]:
    """Return the Dice (1945) of each class from joint histograms: 2 TP / (reference voxels + predicted voxels).

    float64, background included; NaN where the reference lacks the class.

    >>> dice_of(torch.tensor([[1, 0, 0], [1, 2, 0], [0, 0, 0]]))  # class 2 is in neither map
    tensor([0.6667, 0.8000,    nan], dtype=torch.float64)
    """
    overlap = histogram.diagonal(dim1=-2, dim2=-1).double()
    reference, prediction = histogram.sum(-1).double(), histogram.sum(-2).double()
    # Where the reference holds the class, the denominator is at least 1.
    dice = 2 * overlap / (reference + prediction).clamp(min=1)
    return torch.where(reference > 0, dice, torch.nan)


def mean_iou(dice: Float[Tensor, "cases classes"]) -> tuple[float, Float[Tensor, " classes"]]:
    """Return the mean IoU over classes, and the IoU of each class, from the Dice of each case and foreground class.

    Dice D becomes IoU = D / (2 − D), which is averaged over the cases that have one (not NaN), then over the classes
    that have one: the run folder's val_mIoU. A class that no case holds is NaN; so is the mean if there is none at all.

    >>> mean, per_class = mean_iou(torch.tensor([[1.0, 0.8, torch.nan], [1.0, 0.0, torch.nan]]))
    >>> round(mean, 4), per_class
    (0.6667, tensor([1.0000, 0.3333,    nan]))
    """
    per_class = (dice / (2 - dice)).double().nanmean(0)
    return float(per_class.nanmean()), per_class.float()


class ClassScores(NamedTuple):
    """Overlap of reference and prediction by class (C,), background included; counts in voxels, volumes in ml."""

    dice: Float[Tensor, " C"]
    """NaN where the reference lacks the class."""
    iou: Float[Tensor, " C"]
    """NaN where the reference lacks the class."""
    true_positives: Int[Tensor, " C"]
    false_positives: Int[Tensor, " C"]
    false_negatives: Int[Tensor, " C"]
    reference_ml: Float[Tensor, " C"]
    prediction_ml: Float[Tensor, " C"]


def class_scores(histogram: Int[Tensor, "C C"], voxel_ml: float | int) -> ClassScores:
    """Read the overlap scores of one case off its joint histogram.

    Args:
        histogram: see `joint_histogram`.
        voxel_ml: volume of one voxel, which is |det| of the affine's 3×3 part in mm³ by 1000: on a sheared grid the
            product of its edges is larger.

    >>> scores = class_scores(torch.tensor([[1, 0], [1, 2]]), voxel_ml=0.5)
    >>> scores.false_negatives.tolist(), scores.reference_ml.tolist(), scores.prediction_ml.tolist()
    ([0, 1], [0.5, 1.5], [1.0, 1.0])
    """
    tp = histogram.diagonal()
    fp, fn = histogram.sum(0) - tp, histogram.sum(1) - tp
    dice = dice_of(histogram)
    return ClassScores(
        dice=dice,
        iou=dice / (2 - dice),
        true_positives=tp,
        false_positives=fp,
        false_negatives=fn,
        reference_ml=(tp + fn).double() * voxel_ml,
        prediction_ml=(tp + fp).double() * voxel_ml,
    )
