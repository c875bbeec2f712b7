"""How well label maps agree: argmax in slabs, joint histogram, Dice, IoU and mIoU. Pure: opens no file.

One pass counts the joint histogram of reference and prediction; every overlap measure is read off that table. Surface
distances live in `surfaces`; what is averaged over a data set, and written where, is the caller's.

Conventions for a class that the reference lacks, named the same in `surfaces`:

- "left_out": the value is NaN and averages leave it out (MONAI's ignore_empty=True; the run folder's val_mIoU).
- "scored": 1 if the prediction lacks the class too, else 0 (MONAI's ignore_empty=False).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from monai.metrics import DiceMetric
from torch import Tensor, nn

from networks.head import as_matrix, head_matrix
from transforms.slabs import counting_slabs, first_highest, segmentation_dtype, share_out, slabs

Absent = Literal["left_out", "scored"]


@torch.no_grad()
def segment_in_slabs(
    features: Float[Tensor, "B F *grid"], head: nn.Module | None, memory_budget_mb: float | int | None = None
) -> Integer[Tensor, B * grid]:
    """Return the class of the highest logit of `head(features)` at each voxel, the lowest class among equals.

    The result is uint8, uint16 above 255 classes; extra memory is one slab, whatever the class count. head=None takes
    the features as logits. Raises ValueError if the head is not a 1×1×1 convolution that fits the features.
    """
    features = features.detach().as_subclass(Tensor)
    weight, bias = head_matrix(head, features.shape[1])
    n_classes = features.shape[1] if weight is None else weight.shape[0]
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    matrix = None if weight is None else weight.to(dtype)
    shift = torch.zeros((), dtype=dtype, device=features.device) if bias is None else bias.to(dtype)[:, None]
    grid = features.shape[2:]
    label_type = segmentation_dtype(n_classes)
    segmentation = torch.empty(len(features), grid.numel(), dtype=label_type, device=features.device)
    samples = [as_matrix(sample) for sample in features]

    def segment(places: Sequence[tuple[int, slice]]) -> None:
        for b, voxels in places:
            x = samples[b][:, voxels].to(dtype)
            logits = x.clone() if matrix is None else torch.addmm(shift, matrix, x)
            segmentation[b, voxels] = first_highest(logits).to(label_type)

    bytes_per_voxel = (n_classes + features.shape[1] + 4) * dtype.itemsize
    cuts = slabs(grid.numel(), bytes_per_voxel, features.device, memory_budget_mb)
    with torch.autocast(features.device.type, enabled=False):
        share_out([(b, voxels) for b in range(len(features)) for voxels in cuts], segment, features.device)
    return segmentation.view(len(features), *grid)


def joint_histogram(
    reference: Integer[Tensor, "*grid"],
    prediction: Integer[Tensor, "*grid"],
    n_classes: int,
    ignore_index: int | None = None,
) -> Int[Tensor, "C C"]:
    """Count voxels by class in the reference (row) and in the prediction (column), int64.

    Voxels whose *reference* is `ignore_index` are not counted. Raises ValueError if any other value of either map is
    not a class 0 … n_classes − 1.
    """
    rows, columns = (t.detach().as_subclass(Tensor).flatten() for t in (reference, prediction))
    # The last bin takes the ignored voxels.
    bins = torch.zeros(n_classes**2 + 1, dtype=torch.int64, device=rows.device)
    for voxels in counting_slabs(len(rows), rows.device):
        row, column = rows[voxels].int(), columns[voxels].int()
        ignored = None if ignore_index is None else row == ignore_index
        if ignored is not None:
            row.masked_fill_(ignored, 0)
        _check_classes("reference", row, n_classes, ignore_index)
        _check_classes("prediction", column, n_classes, None)
        codes = row.mul_(n_classes).add_(column)
        if ignored is not None:
            codes.masked_fill_(ignored, n_classes**2)
        bins += torch.bincount(codes, minlength=n_classes**2 + 1)
    return bins[:-1].view(n_classes, n_classes)


def _check_classes(name: str, classes: Int[Tensor, " n"], n_classes: int, ignore_index: int | None) -> None:
    lowest, highest = (int(v) for v in classes.aminmax())
    if lowest < 0 or highest >= n_classes:
        raise ValueError(
            f"{name}: expected classes 0 … {n_classes - 1}"
            + ("" if ignore_index is None else f" or ignore_index {ignore_index}")
            + f", found {lowest if lowest < 0 else highest}; remap the label map or set the class count to fit"
        )


def dice_of(histogram: Int[Tensor, "*cases C C"], absent: Absent = "left_out") -> Float[Tensor, "*cases C"]:
    """Return the Dice of each class, background included, float32: 2 TP / (reference voxels + predicted voxels).

    For a class that the reference lacks see the top of this file.
    """
    overlap = histogram.diagonal(dim1=-2, dim2=-1).double()
    reference, prediction = histogram.sum(-1).double(), histogram.sum(-2).double()
    if_absent = torch.full_like(overlap, torch.nan) if absent == "left_out" else (prediction == 0).double()
    # Where the reference is there, the denominator is at least 1.
    return torch.where(reference > 0, 2 * overlap / (reference + prediction).clamp(min=1), if_absent).float()


class HistogramDiceMetric(DiceMetric):
    """MONAI's DiceMetric, fed with one joint histogram a case instead of two label maps a case; values are the same.

    Called with histograms (B, C, C) or a list of (C, C) from `joint_histogram`, which leaves ignored voxels out. It
    returns and keeps Dice (B, C), without the first column if include_background is False. Arguments, `aggregate`,
    `reset`, `get_buffer` and the gathering across processes are MONAI's own; the joint histogram of a volume with 71
    classes takes a hundredth of the time of the comparison class by class.

    Raises ValueError for anything but square histograms of `num_classes` classes, and for per_component, which no
    histogram can tell.
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        shape = tuple(y_pred.shape)
        n_classes = self.num_classes or shape[-1]
        if y is not None or len(shape) != 3 or shape[1:] != (n_classes, n_classes):
            raise ValueError(f"histogram: expected one tensor (cases, {n_classes}, {n_classes}), found {shape}")
        if self.per_component:
            raise ValueError("per_component: a joint histogram holds no components; use monai.metrics.DiceMetric")
        if self.ignore_index is not None and 0 <= self.ignore_index < n_classes:
            y_pred = y_pred.clone()
            y_pred[:, self.ignore_index] = 0
        dice = dice_of(y_pred, "left_out" if self.ignore_empty else "scored")
        return dice if self.include_background else dice[:, 1:]


def mean_iou(dice: Float[Tensor, "cases classes"]) -> tuple[float, Float[Tensor, " classes"]]:
    """Return the mean IoU over classes and the IoU of each class, from the foreground Dice of each case.

    NaN marks a class that a case's label does not hold. Dice D becomes IoU = D / (2 − D), which is averaged over the
    cases that have one and then over the classes that have one (the run folder's val_mIoU). A class that no case holds
    is NaN, and so is the mean if there is none at all.
    """
    per_class = (dice / (2 - dice)).double().nanmean(0)
    return float(per_class.nanmean()), per_class.float()


class ClassScores(NamedTuple):
    """Overlap of reference and prediction by class (C,), background included; counts in voxels, volumes in ml."""

    dice: Float[Tensor, " C"]
    iou: Float[Tensor, " C"]
    precision: Float[Tensor, " C"]
    """TP / (TP + FP); NaN where nothing was predicted."""
    recall: Float[Tensor, " C"]
    """TP / (TP + FN); NaN where the reference is empty."""
    true_positives: Int[Tensor, " C"]
    false_positives: Int[Tensor, " C"]
    false_negatives: Int[Tensor, " C"]
    reference_ml: Float[Tensor, " C"]
    prediction_ml: Float[Tensor, " C"]


def class_scores(histogram: Int[Tensor, "C C"], voxel_ml: float | int, absent: Absent = "left_out") -> ClassScores:
    """Read the overlap scores of one case off its joint histogram; voxel_ml is the volume of one voxel.

    That volume is |det| of the affine's 3×3 part in mm³, by 1000: on a sheared grid the product of edges is larger.

    `absent` decides Dice and IoU where the reference lacks the class, see the top of this file.
    """
    tp = histogram.diagonal()
    fp, fn = histogram.sum(0) - tp, histogram.sum(1) - tp
    dice = dice_of(histogram, absent)
    return ClassScores(
        dice=dice,
        iou=dice / (2 - dice),
        precision=tp / (tp + fp),
        recall=tp / (tp + fn),
        true_positives=tp,
        false_positives=fp,
        false_negatives=fn,
        reference_ml=(tp + fn).double() * voxel_ml,
        prediction_ml=(tp + fp).double() * voxel_ml,
    )
