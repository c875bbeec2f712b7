"""What a person reads: the table of an evaluation, and the table of a comparison of two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.console.tables import in_parts
from pipeline.console.text import aligned, counted, decimals, fitted, number, printable, some_of, volume_unit
from pipeline.evaluation.case_scores import SURFACE_METRICS, CaseScores
from pipeline.evaluation.comparison import SIGNIFICANT, ClassDifference, MetricsComparison
from pipeline.evaluation.summary import Evaluation, mean_over_classes
from pipeline.metrics.statistics import LEAST_SUBJECTS, Summary

N_WORST = 10
"""Cases that the table names; the files have all."""

_HEADINGS = (
    "structure", "cases", "Dice", "std", "median", "95 % interval", "IoU", "HD95\nmm", "cases\nmissed",
    "surface\nDice", "volume\nerror {}", "Dice,\nabsent\nscored",
)  # fmt: skip


def evaluation_text(evaluation: Evaluation, width: int | None = None) -> str:
    """Write each structure over the cases, the worst cases, and what was left out, for a screen of `width` columns."""
    left_out, scored = evaluation.summaries["left_out"], evaluation.summaries["scored"]
    shown = [name for name in left_out if scored[name]["dice"].n]
    unit, per_ml = volume_unit(left_out[name]["reference_ml"].mean for name in shown)
    scales = _Scales(
        decimals(left_out[name]["hd95_mm"].mean for name in shown),
        per_ml,
        decimals(left_out[name]["volume_difference_ml"].mean * per_ml for name in shown),
    )
    rows = [_table_row(name, left_out[name], scored[name], evaluation.n_missed[name], scales) for name in shown]
    worst = evaluation.cases[:N_WORST]
    lines = [
        _counted(evaluation),
        *_about_columns(evaluation),
        "",
        *in_parts([heading.format(unit) for heading in _HEADINGS], rows, width).split("\n"),
        "",
        _means(evaluation),
        "",
        f"Worst cases ({len(worst)} of {len(evaluation.cases)}):",
        *aligned([_worst_row(case, evaluation.class_names) for case in worst]),
    ]
    if left_over := _left_over(evaluation):
        lines += ["", *left_over]
    return fitted("\n".join(map(printable, lines)), width)


class _Scales(NamedTuple):
    """How the numbers of a table are written that depend on the size of the scans."""

    mm_digits: int
    """Decimals of a distance in mm."""
    per_ml: float
    """How many of the unit of volumes are a ml."""
    volume_digits: int


def _about_columns(evaluation: Evaluation) -> list[str]:
    """What the numbers of the table are."""
    lines = [
        "Dice, std, median, IoU, HD95, surface Dice and volume error (predicted minus reference): over the cases whose "
        'label holds the structure ("left_out" in metrics.json)',
        "95 % interval: of the mean Dice, by bootstrap; whole subjects are drawn, there are none for fewer than "
        f"{LEAST_SUBJECTS}",
    ]
    if any(evaluation.n_missed.values()):
        lines.append("cases missed: the structure is in the label and was not found at all; they are in no mean HD95")
    lines.append('Dice, absent scored: a rightly absent structure counts 1, a wrongly predicted one 0 ("scored")')
    return [*(f"- {line}" for line in lines), f"- {_about_surfaces(evaluation)}"]


def _counted(evaluation: Evaluation) -> str:
    cases = counted(len(evaluation.cases), "case")
    if evaluation.subjects_are_known:
        return f"{cases} of {counted(evaluation.n_subjects, 'subject')}"
    return f"{cases}, each taken for a subject of its own"


def _about_surfaces(evaluation: Evaluation) -> str:
    surface = evaluation.options.surface
    if surface is None:
        return "HD95 and surface Dice were left out (--surface none)"
    weighed = {"voxels": "counted in voxels", "area": "weighted by area"}[surface]
    return f"HD95 and surface Dice (within {evaluation.tolerance_mm:g} mm) {weighed}"


def _means(evaluation: Evaluation) -> str:
    by_class = evaluation.summaries["left_out"]
    means = [f"Dice {mean_over_classes(by_class, 'dice'):.4f}", f"IoU {mean_over_classes(by_class, 'iou'):.4f}"]
    if evaluation.options.surface is not None:
        means.append(f"surface Dice {mean_over_classes(by_class, 'surface_dice'):.4f}")
        missed = sum(evaluation.n_missed.values())
        without = f" without {missed} missed" if missed else ""
        distance = mean_over_classes(by_class, "hd95_mm")
        means.append(f"HD95 {distance:.{decimals([distance])}f} mm{without}")
    return f"Mean over structures: {', '.join(means)}"


def _table_row(
    name: str, left_out: Mapping[str, Summary], scored: Mapping[str, Summary], n_missed: int, scales: _Scales
) -> tuple[str, ...]:
    dice, distance = left_out["dice"], left_out["hd95_mm"]
    return (
        name,
        str(dice.n),
        number(dice.mean),
        number(dice.std),
        number(dice.median),
        _interval("–", *map(number, dice.ci95)),
        number(left_out["iou"].mean),
        number(distance.mean, scales.mm_digits),
        str(n_missed or ""),
        number(left_out["surface_dice"].mean),
        number(left_out["volume_difference_ml"].mean * scales.per_ml, scales.volume_digits),
        number(scored["dice"].mean),
    )


def _interval(between: str, low: str, high: str) -> str:
    return f"{low}{between}{high}" if low else ""


def _worst_row(case: CaseScores, class_names: Sequence[str]) -> tuple[str, ...]:
    if math.isnan(case.mean_dice):
        return f"  {case.case}", "", "its label holds no structure"
    worst = 1 + int(np.nanargmin(case.dice[1:]))
    return f"  {case.case}", f"{case.mean_dice:.4f}", f"lowest {class_names[worst]} {case.dice[worst]:.4f}"


def _left_over(evaluation: Evaluation) -> list[str]:
    """What was left out, resampled or refused, a line each."""
    classes = evaluation.classes
    lines = list(evaluation.notes)
    if classes.only_in_labels:
        lines.append(f"left out, since only the labels know them: {', '.join(classes.only_in_labels)}")
    if classes.only_in_predictions:
        lines.append(f"left out, since only the predictions know them: {', '.join(classes.only_in_predictions)}")
    if resampled := [case for case in evaluation.cases if case.resampled]:
        names = ", ".join(case.case for case in resampled)
        lines.append(f"resampled onto the label's grid by nearest neighbour: {names}")
        lines += [
            f"{case.case}: {case.outside_ml:.4g} ml of the predicted structures lie outside the label's grid and count "
            "for nothing, neither in Dice nor in volumes"
            for case in resampled
            if case.outside_ml
        ]
    lines += [f"refused: {reason}" for reason in evaluation.refused.values()]
    if without := evaluation.labels_without_prediction:
        lines.append(f"labels without a prediction: {len(without)} ({some_of(without, N_WORST)})")
    if without := evaluation.predictions_without_label:
        lines.append(f"predictions without a label, left out: {len(without)} ({some_of(without, N_WORST)})")
    return lines


def comparison_text(comparison: MetricsComparison, width: int | None = None) -> str:
    """Write a table of the classes of two evaluations; significant differences are marked."""
    shown = [row for row in comparison.classes if row.n or row.n_left_out]
    n_tested = sum(row.n > 0 for row in shown)
    with_counts = any(row.n_left_out for row in shown)
    counts = ("left out", "missed by first", "missed by second") if with_counts else ()
    scores = ("first", "second", "difference", "95 % interval", "p", "p (Holm)", "")
    rows = [_difference_row(row, with_counts=with_counts) for row in shown]
    table = in_parts(
        ("structure", "cases", "subjects", *counts, *scores),
        [*rows, *([_mean_row(comparison, counts)] if n_tested else [])],
        width,
    )
    lines = [
        f"{comparison.metric} of {comparison.n_cases} cases of {comparison.n_subjects} subjects; "
        f"first {comparison.first}, second {comparison.second}",
        "Wilcoxon's signed-rank test on the subjects' mean differences, Holm's correction over "
        f"{n_tested} structures; * below {SIGNIFICANT}",
        "difference: second minus first, mean over cases, with its bootstrap interval; none for fewer than "
        f"{LEAST_SUBJECTS} subjects",
        "",
        *table.split("\n"),
    ]
    if not comparison.subjects_are_known:
        lines += ["", "nothing says whose scans these are: each case is taken for a subject of its own"]
    if with_counts:
        reason = "it missed the structure, or the grid is sheared"
        if comparison.metric not in SURFACE_METRICS:
            reason = "the file lacks it"
        lines += [
            "",
            f"left out: the label holds the structure, and one of the two has no {comparison.metric} ({reason});",
            "they count in no mean and no test, which favours who misses more",
        ]
    if comparison.only_in_one:
        lines += ["", f"known to one of them only: {', '.join(comparison.only_in_one)}"]
    return fitted("\n".join(map(printable, lines)), width)


def _difference_row(row: ClassDifference, *, with_counts: bool) -> tuple[str, ...]:
    counts = [str(n or "") for n in (row.n_left_out, row.n_missed_first, row.n_missed_second)] if with_counts else []
    if not row.n:
        return (row.name, "0", "0", *counts, *[""] * 7)
    return (
        row.name,
        str(row.n),
        str(row.n_subjects),
        *counts,
        number(row.mean_first),
        number(row.mean_second),
        f"{row.mean_difference:+.4f}",
        _interval(" … ", *("" if math.isnan(end) else f"{end:+.4f}" for end in row.ci95)),
        f"{row.p:.3g}",
        f"{row.p_holm:.3g}",
        "*" if row.p_holm < SIGNIFICANT else "",
    )


def _mean_row(comparison: MetricsComparison, counts: Sequence[str]) -> tuple[str, ...]:
    means = number(comparison.mean_first), number(comparison.mean_second), f"{comparison.mean_difference:+.4f}"
    return "mean over structures", "", "", *[""] * len(counts), *means, *[""] * 4
