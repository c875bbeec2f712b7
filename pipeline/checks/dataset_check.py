"""Check a data set as a whole, from what was measured of its cases: between cases, and against what is usual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.checks.case_check import CheckedCase
from pipeline.checks.channel_check import Scaling, check_channels
from pipeline.checks.class_check import TargetGrid, check_classes, label_file
from pipeline.checks.findings import Finding
from pipeline.checks.label_remap import MANY_VALUES, suggest_remap, write_remap
from pipeline.checks.modality import IntensityChoice
from pipeline.checks.voxel_statistics import ImageStatistics
from pipeline.datasets.dataset import Dataset, Split
from transforms.io.label_values import list_counts, value_ranges

EDGE_LIMITS_MM = (0.05, 15.0)
"""Voxel edges of clinical scanners lie within: micro-CT below, whole-body scouts above."""
EXTENT_LIMITS_MM = (10.0, 2500.0)
"""The longest side of a volume: nothing that is segmented is smaller, no table longer."""


def check_dataset(
    cases: Sequence[CheckedCase],
    dataset: Dataset,
    *,
    split: Split | None,
    intensity: IntensityChoice,
    scaling: Scaling,
    target: TargetGrid,
) -> tuple[Finding, ...]:
    """Check the cases of a data set against each other and against what is usual.

    Errors: label values of no class; a subject, or an image of equal voxels, in two splits, or equal images of two
    subjects where the data set leaves the division to a seed; channels without contrast once they are scaled.
    Warnings: equal images otherwise, classes that are absent or will be at the target size, overlapping masks, unusual
    voxel sizes and intensities, left and right exchanged, a label along other axes than all others.

    Args:
        cases: every case that was opened.
        dataset: the data set, listed.
        split: its division; None where it cannot be divided.
        intensity: how each channel is scaled.
        scaling: the settings that intensities are scaled by.
        target: the grid that volumes are resized to.
    """
    findings: list[Finding] = [*_unknown_values(cases, dataset)]
    for case in cases:
        for image in case.images[:1]:
            findings += _check_spacing(case.case, image)
    findings += check_channels(cases, dataset, intensity, scaling)
    findings += _equal_images(cases, dataset, split)
    findings += check_classes(cases, dataset, split, target)
    return tuple(findings)


def _unknown_values(cases: Sequence[CheckedCase], dataset: Dataset) -> Iterator[Finding]:
    suggested = suggest_remap(cases, dataset)
    for case in cases:
        table = dataset.case(case.case).table or dataset.classes
        unknown = {v: count for v, count in case.unknown_values.items() if v not in table.known_values}
        if not unknown:
            continue
        remedy = "check whether it is an image instead of a label"
        if dataset.parts and len(unknown) <= MANY_VALUES:
            remedy = "name these values as classes in the table of its own data set, or repair the label"
        elif len(unknown) <= MANY_VALUES:
            remedy = _remap_advice(suggested, [value for value in unknown if value not in suggested])
        yield Finding(
            "error", "label_unknown_values", case.case, label_file(case, dataset),
            f"the label values {value_ranges(sorted(table.known_values))}", list_counts(unknown), remedy,
        )  # fmt: skip


def _remap_advice(suggested: dict[int, str], unclear: Sequence[int]) -> str:
    table = f"write under data in the settings  label_remap: {write_remap(suggested)}"
    pasted = f"name them as classes, or replace them: {table}"
    if not unclear:
        return pasted
    ask = (
        f"find out what {value_ranges(sorted(unclear))} means, then name it as a class, or replace it under data in "
        "the settings with label_remap: {VALUE: CLASS}, where CLASS may be ignore"
    )
    return f"{ask}; values of this or other labels that are clear: {table}" if suggested else ask


def _check_spacing(case: str, image: ImageStatistics) -> Iterator[Finding]:
    low, high = EDGE_LIMITS_MM
    edges = " × ".join(f"{edge:.3g}" for edge in image.spacing_mm)
    remedy = "correct the voxel size in the header (its unit is mm), or drop the case"
    if min(image.spacing_mm) < low or max(image.spacing_mm) > high:
        expected = f"voxel edges of {low:g} to {high:g} mm"
        yield Finding("warning", "odd_spacing", case, str(image.path), expected, f"{edges} mm", remedy)
        return
    extent = max(n * edge for n, edge in zip(image.shape, image.spacing_mm, strict=True))
    if not EXTENT_LIMITS_MM[0] <= extent <= EXTENT_LIMITS_MM[1]:
        expected = f"a longest side of {EXTENT_LIMITS_MM[0]:g} to {EXTENT_LIMITS_MM[1]:g} mm"
        found = f"{extent:.4g} mm ({'×'.join(map(str, image.shape))} voxels of {edges} mm)"
        yield Finding("warning", "odd_spacing", case, str(image.path), expected, found, remedy)


def _equal_images(cases: Sequence[CheckedCase], dataset: Dataset, split: Split | None) -> Iterator[Finding]:
    first_with: dict[str, tuple[CheckedCase, ImageStatistics]] = {}
    for case in cases:
        for image in case.images:
            first, same = first_with.setdefault(image.content, (case, image))
            if first is not case and not image.is_constant:  # blanked images are all alike and reported as constant
                yield _equal_image(first, same, case, image, has_own_split=dataset.split is not None, split=split)
                break


def _equal_image(
    first: CheckedCase,
    same: ImageStatistics,
    case: CheckedCase,
    image: ImageStatistics,
    *,
    has_own_split: bool,
    split: Split | None,
) -> Finding:
    found = f"exactly the voxels of case {first.case} ({same.path})"
    first_split = split.of(first.case) if split else None
    own_split = split.of(case.case) if split else None
    if first_split is not None and own_split is not None and first_split != own_split:
        found = f"in {own_split} {found}, which is in {first_split}"
        remedy = "drop one of them, or give both the same subject or split"
        expected = "no volume in two splits"
        return Finding("error", "voxels_in_two_splits", case.case, str(image.path), expected, found, remedy)
    if not has_own_split and first.subject != case.subject:
        expected = "different subjects to have different volumes (a split by seed may divide them)"
        remedy = "drop one of them, or give both the same subject"
        return Finding("error", "voxels_of_two_subjects", case.case, str(image.path), expected, found, remedy)
    remedy = "drop one of them unless it is meant to count twice"
    return Finding("warning", "equal_volumes", case.case, str(image.path), "every volume once", found, remedy)
