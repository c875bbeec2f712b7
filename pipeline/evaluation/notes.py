"""Say what a reader of scores has to know: what was not annotated, which masks overlap, what surfaces tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.console.text import counted, first_lines, some_of
from pipeline.evaluation.case_scores import CaseScores
from pipeline.evaluation.options import ScoringOptions
from pipeline.evaluation.tolerance import USUAL_MM, too_wide


def score_notes(
    scores: Sequence[CaseScores], names: Sequence[str], options: ScoringOptions, tolerance_mm: float
) -> list[str]:
    """What the scores must not be taken for, a line each.

    Args:
        scores: of all cases, one at least.
        names: of the classes, background first.
        options: as they were asked for.
        tolerance_mm: up to which surfaces agreed; by default where `options` leave it open.
    """
    notes = _not_annotated(scores, names) + _overlapping(scores)
    if options.surface is not None:
        is_default = options.tolerance_mm is None
        notes += _sheared(scores) + _about_tolerance(scores, tolerance_mm, is_default=is_default)
    return notes


def _not_annotated(scores: Sequence[CaseScores], names: Sequence[str]) -> list[str]:
    """Say which structures are not scored in how many cases, since the labels do not annotate them."""
    missing = len(scores) - np.sum([case.annotated for case in scores], axis=0)
    counts = [f"{name} in {n}" for name, n in zip(names, missing, strict=True) if n]
    if not counts:
        return []
    return [f"not annotated, so not scored, in some of {len(scores)} cases: {some_of(counts, 12)}"]


def _overlapping(scores: Sequence[CaseScores]) -> list[str]:
    """Name the structures that lost voxels to others before they were scored."""
    lost = sum((Counter(case.overlapping) for case in scores), Counter())
    n_cases = Counter(pair for case in scores for pair in case.overlapping)
    if not lost:
        return []
    lines = [
        f"{loser} loses {n_voxels} voxels to {winner} in {counted(n_cases[loser, winner], 'case')}"
        for (loser, winner), n_voxels in lost.most_common()
    ]
    return [
        "masks overlap, where the class later in the order of classes counts alone (label and prediction together): "
        f"{some_of(lines, 6)}; name an inner structure behind the one around it (--class_names, or the data set's "
        "labels.json), or score them one at a time (--class_names)"
    ]


def _sheared(scores: Sequence[CaseScores]) -> list[str]:
    """Name the cases whose surfaces could not be measured."""
    lines = [
        f"case {case.case}: the axes of its voxels are {case.shear_degrees:.3g}° off right angles (a tilted gantry?): "
        "HD95 and surface Dice are left out of it; resample image and label onto an upright grid to have them"
        for case in sorted(scores, key=lambda case: case.case)
        if case.surface is None
    ]
    return first_lines(lines, "and {} more cases with such voxels")


def _about_tolerance(scores: Sequence[CaseScores], tolerance_mm: float, *, is_default: bool) -> list[str]:
    notes = [f"surfaces agree within {tolerance_mm:g} mm, two voxels of these scans, instead of {USUAL_MM:g} mm"]
    return [
        *(notes if is_default and tolerance_mm != USUAL_MM else []),
        *too_wide(
            tolerance_mm,
            {case.case: max(case.spacing_mm) for case in scores},
            surface_dice=np.stack([case.surface_dice[1:] for case in scores]),
            dice=np.stack([case.dice[1:] for case in scores]),
        ),
    ]
