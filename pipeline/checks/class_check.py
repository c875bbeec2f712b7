"""Check the classes of a data set: absent, lost at the target size, overlapping, sides exchanged. Opens no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.checks.case_check import CheckedCase
from pipeline.checks.findings import Finding
from pipeline.checks.voxel_statistics import LabelStatistics
from pipeline.console.text import some_of
from pipeline.datasets.dataset import Dataset, Split, label_path
from transforms.io.grid import along_world_axes
from transforms.left_right import find_sides
from transforms.separable import KERNELS

_NAMES_LISTED = 8
_LEAST_SHARE = 0.5  # of a target voxel that a class must have at its thickest, if nothing but background is beside it
_ALIKE = 3  # labels whose axes agree with their image's for each that differs, to make that unusual

_Labelled = Sequence[tuple[CheckedCase, LabelStatistics]]
"""The cases whose label can serve, with what was measured of it."""


@dataclass(frozen=True)
class TargetGrid:
    """The grid that volumes are resized to."""

    size: tuple[int, int, int]
    """Voxels along left-right, back-front and foot-head."""
    keep_aspect: bool
    """Cubic voxels and padding instead of stretching."""
    resampled_mm: tuple[float, ...] = ()
    """Spacing that volumes are resampled to instead (data.mode patch); empty: none."""

    @property
    def in_words(self) -> str:
        """What a voxel of it is."""
        if self.resampled_mm:
            return f"at {'×'.join(f'{mm:g}' for mm in self.resampled_mm)} mm"
        return f"at the target size of {'×'.join(map(str, self.size))}"

    def spacing_mm(self, extent_mm: np.ndarray) -> np.ndarray:
        """Edges of a target voxel, for a volume of this extent along the world axes."""
        if self.resampled_mm:
            return np.array(self.resampled_mm)
        edges = extent_mm / np.array(self.size)
        return np.full(3, edges.max()) if self.keep_aspect else edges


def check_classes(
    cases: Sequence[CheckedCase], dataset: Dataset, split: Split | None, target: TargetGrid
) -> Iterator[Finding]:
    """Warn of classes that are absent or will be, that overlap, and of labels that are the wrong way round."""
    labelled = [(case, case.label) for case in cases if case.label is not None]
    sided_pairs = find_sides(dataset.classes.names).pairs
    for case, label in labelled:
        yield from _exchanged_sides(case, label, dataset, sided_pairs)
    yield from _other_axes(labelled, dataset)
    held = _holds(labelled, dataset)
    covered = {lost for _, label in labelled for lost, _, _ in label.overlaps if not held[lost]}
    yield from _overlaps(labelled, dataset, covered)
    yield from _absent_classes(labelled, dataset, split, held, covered)
    yield from _lost_at_target_size(labelled, dataset, target)


def _exchanged_sides(
    case: CheckedCase, label: LabelStatistics, dataset: Dataset, sided_pairs: Sequence[tuple[int, int]]
) -> Iterator[Finding]:
    x = label.centroids_mm[:, 0]
    names = dataset.classes.names
    pairs = [(left, right) for left, right in sided_pairs if np.isfinite(x[[left, right]]).all()]
    exchanged = [(left, right) for left, right in pairs if x[left] > x[right]]
    if 2 * len(exchanged) > len(pairs):
        left, right = max(exchanged, key=lambda pair: x[pair[0]] - x[pair[1]])
        yield Finding(
            "warning", "sides_swapped", case.case, label_file(case, dataset),
            "left classes on the patient's left (smaller x in RAS+) of their right partners",
            f"{len(exchanged)} of {len(pairs)} pairs the other way round: {names[left]} at x = {x[left]:.0f} mm, "
            f"{names[right]} at x = {x[right]:.0f} mm",
            "the scan is mirrored, or the names mean the viewer's sides: look at it in a viewer before training on it",
        )  # fmt: skip


def _other_axes(labelled: _Labelled, dataset: Dataset) -> Iterator[Finding]:
    """Warn of a label whose axes are mirrored against its image's where all others agree: a header may be wrong."""
    both = [(case, label, case.images[0]) for case, label in labelled if case.images]
    different = [entry for entry in both if _are_mirrored(entry[1].orientation, entry[2].orientation)]
    n_alike = sum(label.orientation == image.orientation for _, label, image in both)
    if n_alike < _ALIKE * max(1, len(different)):
        return
    for case, label, image in different:
        yield Finding(
            "warning", "label_axes", case.case, label_file(case, dataset),
            f"axes along its image's ({image.orientation}), as in {n_alike} other labels",
            f"{label.orientation}; it is turned by its header, which may be wrong",
            "look at both in a viewer: if the label is mirrored there, correct its header",
        )  # fmt: skip


def _are_mirrored(first: str, second: str) -> bool:
    """Whether two orientations are along the same axes, and some run the other way: "RAS" and "LAS"."""
    return first != second and along_world_axes((0, 1, 2), first) == along_world_axes((0, 1, 2), second)


def _overlaps(labelled: _Labelled, dataset: Dataset, covered: set[int]) -> Iterator[Finding]:
    """Warn of masks that overlap; of classes that are `covered` by others nothing is left in any label."""
    voxels: Counter[tuple[int, int]] = Counter()
    n_cases: Counter[tuple[int, int]] = Counter()
    for _, label in labelled:
        for lost, winner, count in label.overlaps:
            voxels[lost, winner] += count
            n_cases[lost, winner] += 1
    if not voxels:
        return
    names = dataset.classes.names
    lines = [
        f"{names[lost]} gives {count} voxels in {n_cases[lost, winner]} cases to {names[winner]}"
        for (lost, winner), count in voxels.most_common()
    ]
    left = (
        f"; nothing is left of {some_of([names[index] for index in sorted(covered)], _NAMES_LISTED)}" if covered else ""
    )
    where = "labels.json beside the cases, which may be a list of all names, the background first"
    if dataset.parts:
        where = (
            f"labels.json of {dataset.parts[0].root}, whose classes are the first in the table, or name another data "
            "set first"
        )
    yield Finding(
        "warning", "masks_overlap", "", str(dataset.root), "masks that do not overlap",
        f"some that do, where the class later in the table wins: {some_of(lines, _NAMES_LISTED)}{left}",
        f"where an inner structure lies in an outer one, name the inner one later in {where}",
    )  # fmt: skip


def _holds(labelled: _Labelled, dataset: Dataset) -> np.ndarray:
    """Whether any label holds each class: (n_classes,) bool."""
    held = np.zeros(len(dataset.classes.names), bool)
    for _, label in labelled:
        held |= label.class_voxels > 0
    return held


def _absent_classes(
    labelled: _Labelled, dataset: Dataset, split: Split | None, anywhere: np.ndarray, covered: set[int]
) -> Iterator[Finding]:
    """Warn of classes that no label holds (`anywhere`), or none of the training or validation cases."""
    if not labelled:
        return
    names = dataset.classes.names
    nowhere = [index for index in range(1, len(names)) if not anywhere[index] and index not in covered]
    where = "in train" if split is not None and not split.val else "in train and in validation"
    remedy = "leave them out of the class table unless more data is to come"
    yield from _absent(nowhere, "", where, remedy, dataset)
    for name in ("train", "val"):
        chosen = [(case, label) for case, label in labelled if split is not None and split.of(case.case) == name]
        if chosen:
            held = _holds(chosen, dataset)
            effect = "the network cannot learn them" if name == "train" else "val_mIoU does not speak of them"
            if name == "val" and not held[1:].any():
                effect = "val_mIoU stays undefined, and the lowest val_loss decides which weights are kept"
            annotated = frozenset[int]().union(*(dataset.annotated_in(case.case) for case, _ in chosen))
            unknown = [index for index in range(1, len(names)) if index not in annotated]
            yield from _not_annotated(unknown, name, effect, dataset)
            absent = [index for index in annotated if anywhere[index] and not held[index]]
            yield from _absent(absent, f"{name} ", where, f"{effect}: add cases or change the split", dataset)


def _not_annotated(classes: Sequence[int], split: str, effect: str, dataset: Dataset) -> Iterator[Finding]:
    """Warn of classes that no case of a split annotates: whether they are absent there, nothing can say."""
    if classes:
        names = some_of([dataset.classes.names[index] for index in classes], _NAMES_LISTED)
        expected, found = f"every class annotated in some {split} case", f"none that annotates {names}"
        remedy = f"{effect}: add such cases or change the split"
        yield Finding("warning", "class_not_annotated", "", str(dataset.root), expected, found, remedy)


def _absent(classes: Sequence[int], split: str, where: str, remedy: str, dataset: Dataset) -> Iterator[Finding]:
    if classes:
        names = some_of([dataset.classes.names[index] for index in classes], _NAMES_LISTED)
        expected = f"{len(dataset.classes.names) - 1} classes {where}"
        found = f"no {split}case holds {names} ({len(classes)} classes)"
        yield Finding("warning", "class_absent", "", str(dataset.root), expected, found, remedy)


def _lost_at_target_size(labelled: _Labelled, dataset: Dataset, target: TargetGrid) -> Iterator[Finding]:
    """Warn of classes too thin to be left in any case once the volumes have the target size."""
    names = dataset.classes.names
    kept = np.zeros(len(names), bool)
    n_cases = np.zeros(len(names), int)
    for case, label in labelled:
        if case.images:
            n_cases += label.class_voxels > 0
            kept |= shares_at_target_size(case, label, target) >= _LEAST_SHARE
    lost = [index for index in range(1, len(names)) if n_cases[index] and not kept[index]]
    if lost:
        held = some_of([f"{names[index]} (in {n_cases[index]} cases)" for index in lost], _NAMES_LISTED)
        expected = f"structures thicker than a voxel {target.in_words}"
        found = f"none that is likely to be left of {held}"
        finer = "a finer data.spacing_mm" if target.resampled_mm else "a larger --target_size, or crop the volumes"
        remedy = f"the network cannot learn them: choose {finer}"
        yield Finding("warning", "class_lost", "", str(dataset.root), expected, found, remedy)


def shares_at_target_size(case: CheckedCase, label: LabelStatistics, target: TargetGrid) -> np.ndarray:
    """Estimate the largest share of a target voxel that each class has: (n_classes,), NaN for absent classes.

    A label is resized with a cubic kernel along each axis by itself (`transforms.resize.resize_label`); the share is
    that of a box of the class's thickness in the middle of the kernel.
    """
    image = case.images[0]
    spacing = np.array(image.world_spacing_mm)
    target_mm = target.spacing_mm(spacing * image.world_size)
    shares = np.where(np.isnan(label.thickness_mm).any(1), np.nan, 1.0)
    for axis in range(3):
        of_runs = _shares_of_runs(spacing[axis] / target_mm[axis])
        n_thick = np.rint(np.nan_to_num(label.thickness_mm[:, axis]) / spacing[axis]).astype(int)
        shares *= of_runs[np.minimum(n_thick, len(of_runs) - 1)]
    return shares


def _shares_of_runs(step: float) -> np.ndarray:
    """Shares that runs of 0, 1, 2 … voxels, `step` target voxels apart, have in a target voxel in their middle."""
    if step >= 1:  # the target is finer: every voxel is seen
        return np.ones(1)
    away = np.arange(np.ceil(2 / step) + 1)
    at_voxels, between = (
        KERNELS["cubic"](torch.from_numpy(distance * step)).numpy() for distance in (away, away + 0.5)
    )
    sums = np.zeros(2 * len(away) + 1)
    sums[1::2] = 2 * np.cumsum(at_voxels) - at_voxels[0]
    sums[2::2] = 2 * np.cumsum(between)
    sums[1::2] /= sums[-2]
    sums[2::2] /= sums[-1]
    return sums


def label_file(case: CheckedCase, dataset: Dataset) -> str:
    """Where the label of a case lies."""
    return str(label_path(dataset.case(case.case).label) or "")
