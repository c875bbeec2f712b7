"""Compare two metrics.json of the same cases: paired differences by class, tested over subjects."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from pipeline.console.text import some_of
from pipeline.evaluation.case_scores import SURFACE_METRICS
from pipeline.evaluation.metrics_file import StoredMetrics, read_metrics, stored_metrics
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from pipeline.files.json_files import kind_of, null_for_undefined
from pipeline.metrics.statistics import bootstrap_intervals, holm, number_subjects, subject_means, wilcoxon_p
from pipeline.runs.stored_scores import scores_at

log = logging.getLogger(__name__)

COMPARED = ("dice", "iou", "hd95_mm", "surface_dice")
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ClassDifference:
    """One class in both evaluations, over the cases with a value in both."""

    name: str
    n: int
    """Cases."""
    n_subjects: int
    n_left_out: int
    """Cases whose label holds the class and that have no finite value in one of them: they are in neither mean."""
    n_missed_first: int
    """Of these, cases in which the first evaluation has no value: for HD95 those in which it missed the structure."""
    n_missed_second: int
    mean_first: float
    """Over cases, as the next two."""
    mean_second: float
    mean_difference: float
    """Second minus first."""
    ci95: tuple[float, float]
    """Bootstrap interval of the mean difference, subjects drawn; NaN for fewer than six of them."""
    p: float
    """Of Wilcoxon's signed-rank test on the subjects' mean differences."""
    p_holm: float
    """Corrected over classes."""


@dataclass(frozen=True)
class MetricsComparison:
    """Two evaluations of the same cases; classes in the first file's order."""

    first: str
    second: str
    metric: str
    n_cases: int
    n_subjects: int
    subjects_are_known: bool
    """False where neither file says whose scans the cases are: each is then taken for a subject of its own."""
    classes: tuple[ClassDifference, ...]
    mean_first: float
    """Over the means of the classes that have a case, as the next two; NaN where none has."""
    mean_second: float
    mean_difference: float
    only_in_one: tuple[str, ...]
    """Classes that the other evaluation does not know."""


def compare_metrics(first: Path | str, second: Path | str, metric: str = "dice", *, seed: int = 0) -> MetricsComparison:
    """Compare two metrics.json, case by case: Wilcoxon's signed-rank test by class, corrected by Holm over classes.

    A class counts in the cases whose label holds it ("left_out"). Scans of one subject are no independent evidence: the
    test is on the subjects' mean differences, and the interval draws subjects. A class with no such case has p 1 and is
    no part of the correction.

    Args:
        first, second: the files.
        metric: one of COMPARED.
        seed: of the intervals.

    Raises:
        EvaluationError: case lists, labels or subjects that differ, no class in common; surfaces of two kinds, or
            surface Dice at two tolerances; a file that is not a metrics.json. FileError: one that cannot be read.
    """
    if metric not in COMPARED:
        raise EvaluationError(f"metric is {metric!r}, expected one of {', '.join(COMPARED)}")
    one, other = read_metrics(Path(first)), read_metrics(Path(second))
    cases = _common_cases(one, other)
    if metric in SURFACE_METRICS:
        _check_surfaces(one, other, metric)
    names = set(one.class_names[1:]), set(other.class_names[1:])
    every = list(dict.fromkeys([*one.class_names[1:], *other.class_names[1:]]))
    common = [name for name in every if name in names[0] and name in names[1]]
    if not common:
        raise EvaluationError(f"{one.path} and {other.path} have no class in common; compare runs of the same classes")
    subjects = _subjects(one, other, cases)
    numbers = number_subjects(cases, subjects)
    rows = _differences(
        common, _values(one, cases, common, metric), _values(other, cases, common, metric), numbers, seed
    )
    return MetricsComparison(
        first=str(first),
        second=str(second),
        metric=metric,
        n_cases=len(cases),
        n_subjects=len(set(numbers.tolist())),
        subjects_are_known=None not in subjects,
        classes=tuple(rows),
        mean_first=_mean_of_classes(rows, "mean_first"),
        mean_second=_mean_of_classes(rows, "mean_second"),
        mean_difference=_mean_of_classes(rows, "mean_difference"),
        only_in_one=tuple(name for name in every if not (name in names[0] and name in names[1])),
    )


def check_baseline(baseline: Path, output: Path, metric: str, options: ScoringOptions) -> ScoringOptions:
    """Refuse, before an evaluation is computed, a metrics.json that it could not be compared with.

    Where surface Dice is compared and no tolerance was chosen, the baseline's is. A baseline that is of weights which
    its run no longer has, or of some of its cases alone, is warned of.

    Args:
        baseline: the metrics.json to compare with.
        output: the metrics.json that the evaluation will write; where that is the baseline, the comparison would be
            one of the result with itself, and the baseline lost.
        metric: what will be compared.
        options: of the evaluation.

    Returns:
        The options that the evaluation has to have.

    Raises:
        EvaluationError: the same file; surfaces that `metric` cannot compare; no tolerance where one is needed; a file
            that is not a metrics.json. FileError: one that cannot be read.
    """
    scores = scores_at(baseline)
    stored = read_metrics(baseline) if scores is None else stored_metrics(scores.document, baseline)
    if output.exists() and output.samefile(baseline):
        raise EvaluationError(
            f"{baseline}: expected the metrics.json of an earlier evaluation, found the file that this one writes and "
            "would be compared with itself; give this one a folder of its own with --output DIR"
        )
    if metric in SURFACE_METRICS:
        if metric == "surface_dice" and options.tolerance_mm is None:
            options = replace(options, tolerance_mm=_stored_tolerance_mm(stored))
        _check_surfaces(StoredMetrics(output, (), options.surface, options.tolerance_mm, {}), stored, metric)
    if scores is not None and scores.outdated:
        log.warning("%s: its scores are compared although %s", baseline, scores.outdated)
    if scores is not None and scores.incomplete:
        log.warning("%s", scores.incomplete)
    return options


def _common_cases(one: StoredMetrics, other: StoredMetrics) -> list[str]:
    """List the cases of two evaluations; refuse lists or labels that differ."""
    if unpaired := sorted(set(one.cases) ^ set(other.cases)):
        where = one.path if unpaired[0] in one.cases else other.path
        raise EvaluationError(
            f"{len(unpaired)} cases appear in only one of {one.path} and {other.path}, the first is {unpaired[0]} in "
            f"{where}; evaluate both runs on the same cases"
        )
    changed = [case for case in sorted(one.cases) if one.cases[case].label_sha256 != other.cases[case].label_sha256]
    if changed:
        hashes = [metrics.cases[changed[0]].label_sha256[:12] for metrics in (one, other)]
        alone = sorted({*one.class_names} ^ {*other.class_names})
        masks = f"; where masks overlap, also of the same structures, without {some_of(alone, 3)}" if alone else ""
        raise EvaluationError(
            f"case {changed[0]}: expected the same label in both, found hashes {hashes[0]} and {hashes[1]} "
            f"({len(changed)} cases differ); evaluate both runs against the same labels{masks}"
        )
    return sorted(one.cases)


def _subjects(one: StoredMetrics, other: StoredMetrics, cases: Sequence[str]) -> list[str | None]:
    """Whose scan each case is, as either file says; None where none does."""
    found = []
    for case in cases:
        first, second = one.cases[case].subject, other.cases[case].subject
        if first is not None and second is not None and first != second:
            raise EvaluationError(
                f"case {case}: expected one subject in both, found {first} in {one.path} and {second} in {other.path}; "
                "evaluate both runs against the same data set"
            )
        found.append(second if first is None else first)
    return found


def _check_surfaces(one: StoredMetrics, other: StoredMetrics, metric: str) -> None:
    if one.surface != other.surface or one.surface is None:
        raise EvaluationError(
            f"{metric} with surface {one.surface or 'none'} in {one.path} and {other.surface or 'none'} in "
            f"{other.path}; evaluate both with one --surface, voxels or area"
        )
    if metric == "surface_dice" and one.tolerance_mm != other.tolerance_mm:
        raise EvaluationError(
            f"surface Dice at {one.tolerance_mm} mm in {one.path} and at {other.tolerance_mm} mm in {other.path}; "
            "evaluate both with the same --tolerance_mm"
        )


def _stored_tolerance_mm(stored: StoredMetrics) -> float:
    tolerance_mm = _number(stored.tolerance_mm)
    if not 0 <= tolerance_mm < math.inf:
        raise EvaluationError(
            f"{stored.path}: expected tolerance_mm, a distance of 0 mm or more, in its settings, found "
            f"{kind_of(stored.tolerance_mm)}; evaluate that run again"
        )
    return tolerance_mm


def _values(
    metrics: StoredMetrics, cases: Sequence[str], class_names: Sequence[str], metric: str
) -> Float[np.ndarray, "cases classes 2"]:
    """What a file says of each case and class: the metric, and the Dice, which is known where the label holds one."""
    values = np.full((len(cases), len(class_names), 2), np.nan)
    for row, case in enumerate(cases):
        classes = metrics.cases[case].classes
        for column, name in enumerate(class_names):
            scores = classes.get(name)
            if isinstance(scores, dict):
                values[row, column] = _number(scores.get(metric)), _number(scores.get("dice"))
    return values


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else np.nan
    except OverflowError:  # an integer of 400 digits
        return np.nan


def _differences(
    names: Sequence[str],
    one: Float[np.ndarray, "cases classes 2"],
    other: Float[np.ndarray, "cases classes 2"],
    subject: Int[np.ndarray, " cases"],
    seed: int,
) -> list[ClassDifference]:
    """Compare each class; the p values are corrected for the number of classes that have any case."""
    held = ~np.isnan(one[..., 1]) | ~np.isnan(other[..., 1])
    is_known = np.isfinite(one[..., 0]), np.isfinite(other[..., 0])
    counted = held & is_known[0] & is_known[1]
    differences = np.where(counted, other[..., 0] - one[..., 0], np.nan)
    intervals = bootstrap_intervals(differences, subject, seed=seed)
    rows = []
    for c, name in enumerate(names):
        cases = counted[:, c]
        rows.append(
            ClassDifference(
                name=name,
                n=int(cases.sum()),
                n_subjects=len(np.unique(subject[cases])),
                n_left_out=int((held[:, c] & ~cases).sum()),
                n_missed_first=int((held[:, c] & ~is_known[0][:, c]).sum()),
                n_missed_second=int((held[:, c] & ~is_known[1][:, c]).sum()),
                mean_first=_mean(one[cases, c, 0]),
                mean_second=_mean(other[cases, c, 0]),
                mean_difference=_mean(differences[cases, c]),
                ci95=(float(intervals[c, 0]), float(intervals[c, 1])),
                p=wilcoxon_p(subject_means(differences[cases, c], subject[cases])),
                p_holm=1.0,
            )
        )
    corrected = iter(holm([row.p for row in rows if row.n]))
    return [replace(row, p_holm=next(corrected)) if row.n else row for row in rows]


def _mean(values: Float[np.ndarray, " n"]) -> float:
    return float(values.mean()) if len(values) else np.nan


def _mean_of_classes(rows: Sequence[ClassDifference], what: str) -> float:
    return _mean(np.array([getattr(row, what) for row in rows if row.n]))


def to_json(comparison: MetricsComparison) -> str:
    """Write the comparison as a JSON object; what is undefined is null."""
    return json.dumps(null_for_undefined(asdict(comparison)), indent=2, allow_nan=False)
