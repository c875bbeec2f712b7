"""What is wrong between the cases of a data set, and what is unusual in one: judged from facts. Opens no file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import yaml

from pipeline.checks.case_check import CaseFacts
from pipeline.checks.findings import Finding
from pipeline.checks.voxel_statistics import ImageFacts
from pipeline.datasets.dataset import Dataset, Split, label_path
from transforms.io.label_values import list_counts, value_ranges
from transforms.left_right import find_sides

EDGE_LIMITS_MM = (0.05, 15.0)
"""Voxel edges of clinical scanners lie within: micro-CT below, whole-body scouts above."""
EXTENT_LIMITS_MM = (10.0, 2500.0)
"""The longest side of a volume: nothing that is segmented is smaller, no table longer."""

_HU_RANGE = 10.0  # a CT whose values span less was scaled: bone and air are 2000 HU apart
_HU_MEDIAN = 1500.0  # dense bone; half of no scan lies above it
_HU_HIGHEST = 10000.0  # of the 99.5th percentile: extended scales end at 32767, but only metal reaches so far
_AIR_HU = -500.0
_NAMES_LISTED = 8
_MANY_VALUES = 50  # unknown values in a label: nobody forgot to name so many classes


def judge_dataset(
    facts: Sequence[CaseFacts], dataset: Dataset, *, split: Split | None, intensity: str | None
) -> tuple[Finding, ...]:
    """Judge the cases of a data set against each other and against what is usual.

    Errors: label values of no class; a subject, or an image of equal voxels, on two sides of `split`, or equal images
    of two subjects where the data set leaves the division to a seed. Warnings: equal images otherwise, classes absent
    from train or validation, unusual voxel sizes, intensities unusual for `intensity` ("ct", "mr"; others are not
    judged), left and right swapped.
    """
    findings: list[Finding] = []
    findings += _unknown_values(facts, dataset)
    for case in facts:
        for image in case.images[:1]:
            findings += _judge_spacing(case.case, image)
            findings += _judge_intensities(case.case, image, intensity)
        findings += _judge_sides(case, dataset)
    findings += _subjects_on_two_sides(facts, dataset, split)
    findings += _equal_images(facts, dataset, split)
    findings += _absent_classes(facts, dataset, split)
    return tuple(findings)


def _unknown_values(facts: Sequence[CaseFacts], dataset: Dataset) -> Iterator[Finding]:
    table = suggest_remap([case.unknown_values for case in facts], dataset)
    remedy = f"name them as classes, or replace them: write under data in the settings  label_remap: {table}"
    for case in facts:
        unknown = {v: count for v, count in case.unknown_values.items() if v not in dataset.classes.known_values}
        if unknown:
            yield Finding(
                "error", "label_unknown_values", case.case, _label_file(case, dataset),
                f"the label values {value_ranges(sorted(dataset.classes.known_values))}", list_counts(unknown),
                remedy if len(unknown) <= _MANY_VALUES else "look whether it is an image in the place of a label",
            )  # fmt: skip


def suggest_remap(labels: Sequence[Mapping[int, int]], dataset: Dataset) -> str:
    """Guess what unknown values mean and write it as data.label_remap takes it, one table for all labels.

    Where a label holds as many unknown values as it lacks classes, they are these, in order (a mask stored as 0 and 255
    for the classes 0 and 1); else background. Where labels disagree, the first of the guesses that most of them give.
    """
    guesses: dict[int, Counter[int]] = defaultdict(Counter)
    for counts in labels:
        unknown = sorted(counts.keys() - dataset.classes.known_values)
        lacking = sorted(
            set(range(1, len(dataset.classes.names))) - {dataset.classes.class_of_value.get(v) for v in counts}
        )
        meant = lacking if len(lacking) == len(unknown) else [0] * len(unknown)
        for value, index in zip(unknown, meant, strict=True):
            if len(unknown) <= _MANY_VALUES:
                guesses[value][index] += 1
    remap = {value: dataset.classes.names[guesses[value].most_common(1)[0][0]] for value in sorted(guesses)}
    return yaml.safe_dump(remap, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6).strip()


def _judge_spacing(case: str, image: ImageFacts) -> Iterator[Finding]:
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


def _judge_intensities(case: str, image: ImageFacts, intensity: str | None) -> Iterator[Finding]:
    if image.is_constant or intensity not in ("ct", "mr"):
        return
    modality = intensity.upper()
    expected, found, remedy = f"a {modality} scan", "", "look at the scan; drop it or set data.intensity"
    values = f"values from {image.minimum:g} to {image.maximum:g}"
    if image.modality not in (None, modality):
        found = f"{image.modality} according to its DICOM header"
    elif intensity == "ct":
        expected, found = "Hounsfield units, air near -1000 and water at 0", _why_not_hu(image, values)
        remedy = "export it in HU (rescale slope and intercept applied), or set data.intensity if it is no CT"
    elif image.intensities[0] <= _AIR_HU:
        expected, found = "MR intensities", f"{values}, which looks like a CT in HU"
    if found:
        yield Finding("warning", "odd_intensities", case, str(image.path), expected, found, remedy)


def _why_not_hu(image: ImageFacts, values: str) -> str:
    if image.maximum - image.minimum <= _HU_RANGE:
        return f"{values}: scaled already?"
    if image.minimum >= 0:
        return f"{values}, none below 0: the intercept (often -1024) is missing, or it is no CT"
    if image.intensities[2] > _HU_MEDIAN or image.intensities[-1] > _HU_HIGHEST:
        return f"{values}, half of them above {image.intensities[2]:g}"
    return ""


def _judge_sides(case: CaseFacts, dataset: Dataset) -> Iterator[Finding]:
    if case.label is None:
        return
    x = case.label.centroids_mm[:, 0]
    sides = find_sides(dataset.classes.names)
    pairs = [(left, right) for left, right in sides.pairs if np.isfinite(x[[left, right]]).all()]
    swapped = [(left, right) for left, right in pairs if x[left] > x[right]]
    if 2 * len(swapped) > len(pairs):
        left, right = max(swapped, key=lambda pair: x[pair[0]] - x[pair[1]])
        names = dataset.classes.names
        yield Finding(
            "warning", "sides_swapped", case.case, _label_file(case, dataset),
            "left classes on the patient's left (smaller x in RAS+) of their right partners",
            f"{len(swapped)} of {len(pairs)} pairs the other way round: {names[left]} at x = {x[left]:.0f} mm, "
            f"{names[right]} at x = {x[right]:.0f} mm",
            "the scan is mirrored, or the names mean the viewer's sides: look at it in a viewer before training on it",
        )  # fmt: skip


def _label_file(case: CaseFacts, dataset: Dataset) -> str:
    label = next(listed.label for listed in dataset.cases if listed.id == case.case)
    return str(label_path(label))


def _subjects_on_two_sides(facts: Sequence[CaseFacts], dataset: Dataset, split: Split | None) -> Iterator[Finding]:
    if split is None:
        return
    by_subject: dict[str, list[CaseFacts]] = defaultdict(list)
    for case in facts:
        if split.of(case.case) is not None:
            by_subject[case.subject].append(case)
    for subject, cases in by_subject.items():
        other = next((case for case in cases if split.of(case.case) != split.of(cases[0].case)), None)
        if other is not None:
            found = (
                f"subject {subject} in {split.of(cases[0].case)} (case {cases[0].case}) and in {split.of(other.case)}"
            )
            yield Finding(
                "error", "subject_in_two_splits", other.case, str(dataset.root),
                "every subject on one side of the split", found, "correct the split or the subjects",
            )  # fmt: skip


def _equal_images(facts: Sequence[CaseFacts], dataset: Dataset, split: Split | None) -> Iterator[Finding]:
    first_with: dict[str, tuple[CaseFacts, ImageFacts]] = {}
    for case in facts:
        for image in case.images:
            first, same = first_with.setdefault(image.content, (case, image))
            if first is not case and not image.is_constant:  # blanked images are all alike and reported as constant
                yield _equal(first, same, case, image, own_split=dataset.split is not None, split=split)
                break


def _equal(
    first: CaseFacts, same: ImageFacts, case: CaseFacts, image: ImageFacts, *, own_split: bool, split: Split | None
) -> Finding:
    sides = (split.of(first.case), split.of(case.case)) if split else (None, None)
    found = f"exactly the voxels of case {first.case} ({same.path})"
    if None not in sides and sides[0] != sides[1]:
        found = f"in {sides[1]} {found}, which is in {sides[0]}"
        remedy = "drop one of them, or give both the same subject or side"
        expected = "no volume on two sides of the split"
        return Finding("error", "voxels_in_two_splits", case.case, str(image.path), expected, found, remedy)
    if not own_split and first.subject != case.subject:
        expected = "different subjects to have different volumes (a split by seed may divide them)"
        remedy = "drop one of them, or give both the same subject"
        return Finding("error", "voxels_of_two_subjects", case.case, str(image.path), expected, found, remedy)
    remedy = "drop one of them unless it is meant to count twice"
    return Finding("warning", "equal_volumes", case.case, str(image.path), "every volume once", found, remedy)


def _absent_classes(facts: Sequence[CaseFacts], dataset: Dataset, split: Split | None) -> Iterator[Finding]:
    labelled = [case for case in facts if case.label is not None]
    if not labelled:
        return
    held = {}
    for name in ("train", "val"):
        voxels = [case.label.class_voxels for case in labelled if case.label and split and split.of(case.case) == name]
        if voxels:
            held[name] = np.any(np.array(voxels) > 0, axis=0)
    anywhere = np.any([case.label.class_voxels > 0 for case in labelled], axis=0)  # type: ignore[union-attr]
    everywhere = f"{len(anywhere) - 1} classes in train and in validation"
    without_them = "val_mIoU does not speak of them"
    if "val" in held and not held["val"][1:].any():
        without_them = "val_mIoU stays undefined, and the lowest val_loss decides which weights are kept"
    for side, holds, effect in (
        ("", anywhere, "leave them out of the class table unless more data is to come"),
        ("train", held.get("train"), "the network cannot learn them: add cases or change the split"),
        ("val", held.get("val"), f"{without_them}: add cases or change the split"),
    ):
        absent = (
            [] if holds is None else [c for c in range(1, len(anywhere)) if not holds[c] and (anywhere[c] or not side)]
        )
        if absent:
            where = f"no {side} case holds" if side else "no case holds"
            names = _listed([dataset.classes.names[c] for c in absent])
            found = f"{where} {names} ({len(absent)} classes)"
            yield Finding("warning", "class_absent", "", str(dataset.root), everywhere, found, effect)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_LISTED} more" if len(names) > _NAMES_LISTED else ""
    return ", ".join(names[:_NAMES_LISTED]) + more
