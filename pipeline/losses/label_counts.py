"""Count how many voxels of a label each class has, and refuse labels that a loss cannot take."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from transforms.slabs import counting_slabs


def count_labels(
    label: Integer[Tensor, "B N"], n_classes: int, ignore_index: int | None
) -> tuple[Int[Tensor, "B C"], Int[Tensor, ""]]:
    """Count the voxels of each class in each sample, and those whose label is neither a class nor ignored.

    >>> counts, n_unknown = count_labels(torch.tensor([[0, 1, 1, 255, 7]]), 3, ignore_index=255)
    >>> counts.tolist(), int(n_unknown)
    ([[1, 2, 0]], 1)
    """
    counts = label.new_zeros(len(label), n_classes + 2, dtype=torch.int64)
    for n, sample in enumerate(label):
        for voxels in counting_slabs(len(sample), label.device):
            # One bin more for strangers and one for the ignored, which may have any number.
            bins = _bins(sample[voxels].long(), n_classes, ignore_index)
            if bins.is_cuda:  # where bincount waits for the GPU
                counts[n] += torch.histc(bins, n_classes + 2, min=0, max=n_classes + 2)
            else:
                counts[n] += torch.bincount(bins, minlength=n_classes + 2)
    return counts[:, :n_classes], counts[:, n_classes].sum()


def refuse_unknown_labels(label: Integer[Tensor, "B ..."], n_classes: int, ignore_index: int | None) -> None:
    """Raise ValueError for a label that is neither a class nor ignored, if there is one."""
    classes = label.as_subclass(Tensor).long()
    unknown = classes[_bins(classes, n_classes, ignore_index) == n_classes]
    if len(unknown):
        raise ValueError(
            f"label: expected classes 0 … {n_classes - 1} or ignore_index {ignore_index}, found {int(unknown[0])}; "
            "remap the label, or set the class count or ignore_index to fit"
        )


def refuse_hidden_classes(counts: Int[Tensor, "B C"], annotated: Bool[Tensor, "B C"]) -> None:
    """Raise ValueError for a sample that holds a class which it is said not to annotate."""
    found = (counts > 0) & ~annotated
    if found.any():
        sample, held = found.nonzero()[0].tolist()
        raise ValueError(
            f"annotated: expected every class that the label of sample {sample} holds, found none of class {held}"
        )


def _bins(classes: Int[Tensor, "*voxels"], n_classes: int, ignore_index: int | None) -> Int[Tensor, "*voxels"]:
    """Return each voxel's class, `n_classes` for what is not a class, `n_classes` + 1 for the ignored."""
    bins = torch.where((classes < 0) | (classes >= n_classes), n_classes, classes)
    return bins if ignore_index is None else bins.masked_fill_(classes == ignore_index, n_classes + 1)
