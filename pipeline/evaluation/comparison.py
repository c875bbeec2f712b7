"""Two metrics.json of the same cases side by side: paired differences by class, tested. Reads those files only.

The tests themselves are `statistics`'; what stands in a metrics.json is `evaluation`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console.text import aligned, number, printable
from pipeline.evaluation.case_scores import SURFACE_METRICS
from pipeline.evaluation.summary import FORMAT
from pipeline.files.json_files import null_for_undefined, read_json
from pipeline.metrics.statistics import bootstrap_interval, holm, wilcoxon_p
from pipeline.metrics.surface_elements import SurfaceKind

COMPARED = ("dice", "iou", "hd95_mm", "surface_dice")
SIGNIFICANT = 0.05


class ComparisonError(ValueError):
    """Two evaluations that cannot be compared: why, and what to do."""

    is_input_error = True


@dataclass(frozen=True)
class ClassDifference:
    """One class in both evaluations, over the cases with a value in both."""

    name: str
    n: int
    n_left_out: int
    """Cases whose label holds the class and that have no finite value in one of them: they are in neither mean."""
    n_missed_first: int
    """Of these, cases in which the first evaluation has no value: for HD95 those in which it missed the structure."""
    n_missed_second: int
    mean_first: float
    mean_second: float
    mean_difference: float
    """Second minus first."""
    ci95: tuple[float, float]
    """Bootstrap interval of the mean difference."""
    p: float
    p_holm: float


@dataclass(frozen=True)
class MetricsComparison:
    """Two evaluations of the same cases; classes in the files' order."""

    first: str
    second: str
    metric: str
    n_cases: int
    classes: tuple[ClassDifference, ...]
    only_in_one: tuple[str, ...]
    """Classes that the other evaluation does not know."""


def compare_metrics(first: Path | str, second: Path | str, metric: str = "dice", *, seed: int = 0) -> MetricsComparison:
    """Compare two metrics.json, case by case: Wilcoxon's signed-rank test by class, corrected by Holm over classes.

    A class counts in the cases whose label holds it ("left_out"). A class with no such case has p 1 and is no part of
    the correction.

    Raises:
        ComparisonError: case lists or labels that differ, no class in common; surfaces of two kinds, or surface
            Dice at two tolerances.
        FileError: a file that cannot be read.
    """
    if metric not in COMPARED:
        raise ComparisonError(f"metric is {metric!r}, expected one of {', '.join(COMPARED)}")
    paths = Path(first), Path(second)
    documents = [_read(path) for path in paths]
    cases = _common_cases(documents, paths)
    if metric in SURFACE_METRICS:
        _check_surfaces(documents, paths, metric)
    known = [[str(name) for name in document["class_names"][1:]] for document in documents]
    common = [name for name in known[0] if name in known[1]]
    if not common:
        raise ComparisonError(f"{paths[0]} and {paths[1]} have no class in common; compare runs of the same classes")
    rows = [_difference(name, cases, metric, seed) for name in common]
    tested = [place for place, row in enumerate(rows) if row["n"]]
    for place, p in zip(tested, holm([rows[place]["p"] for place in tested]), strict=True):
        rows[place]["p_holm"] = p
    return MetricsComparison(
        first=str(first), second=str(second), metric=metric, n_cases=len(cases),
        classes=tuple(ClassDifference(**row) for row in rows),
        only_in_one=tuple(name for name in [*known[0], *known[1]] if name not in common),
    )  # fmt: skip


def check_baseline(
    baseline: Path, output: Path, metric: str = "dice", *, tolerance_mm: float, surface: SurfaceKind | None
) -> None:
    """Refuse, before an evaluation is computed, a metrics.json that it could not be compared with.

    Args:
        baseline: the metrics.json to compare with.
        output: the metrics.json that the evaluation will write; where that is the baseline, the comparison would be
            one of the result with itself, and the baseline lost.
        metric: what will be compared.
        tolerance_mm, surface: of the evaluation.

    Raises:
        ComparisonError: the same file; no metrics.json; surfaces that `metric` cannot compare. FileError: a file
            that cannot be read.
    """
    document = _read(baseline)
    if output.exists() and output.samefile(baseline):
        raise ComparisonError(
            f"{baseline}: expected the metrics.json of an earlier evaluation, found the file that this one writes and "
            "would be compared with itself; give this one a folder of its own with --output DIR"
        )
    if metric in SURFACE_METRICS:
        planned = {"settings": {"surface": surface and {"kind": surface}, "tolerance_mm": float(tolerance_mm)}}
        _check_surfaces([planned, document], [output, baseline], metric)


def _read(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if document.get("format") != FORMAT or not isinstance(document.get("class_names"), list):
        raise ComparisonError(f"{path}: expected a metrics.json of format {FORMAT}; write it with bodyseg evaluate")
    cases = document.get("cases")
    wanted = {"case": str, "label_sha256": str, "classes": dict}
    if not isinstance(cases, list) or not all(
        isinstance(case, dict) and all(isinstance(case.get(key), kind) for key, kind in wanted.items())
        for case in cases
    ):
        raise ComparisonError(f"{path}: expected cases with {', '.join(wanted)}; write it anew with bodyseg evaluate")
    return document


def _common_cases(
    documents: Sequence[Mapping[str, Any]], paths: Sequence[Path]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pair the cases of two documents; refuse lists or labels that differ."""
    one, other = ({case["case"]: case for case in document["cases"]} for document in documents)
    if unpaired := sorted(set(one) ^ set(other)):
        where = paths[0] if unpaired[0] in one else paths[1]
        raise ComparisonError(
            f"{len(unpaired)} cases stand in only one of {paths[0]} and {paths[1]}, the first is {unpaired[0]} in "
            f"{where}; evaluate both runs on the same cases"
        )
    if changed := sorted(case for case in one if one[case]["label_sha256"] != other[case]["label_sha256"]):
        raise ComparisonError(
            f"case {changed[0]}: expected the same label in both, found hashes {one[changed[0]]['label_sha256'][:12]} "
            f"and {other[changed[0]]['label_sha256'][:12]} ({len(changed)} cases differ); evaluate both runs against "
            "the same labels"
        )
    return [(one[case], other[case]) for case in sorted(one)]


def _check_surfaces(documents: Sequence[Mapping[str, Any]], paths: Sequence[Path], metric: str) -> None:
    settings = [document.get("settings") or {} for document in documents]
    kinds = [(one.get("surface") or {}).get("kind") for one in settings]
    if kinds[0] != kinds[1] or kinds[0] is None:
        raise ComparisonError(
            f"{metric} with surface {kinds[0] or 'none'} in {paths[0]} and {kinds[1] or 'none'} in {paths[1]}; "
            "evaluate anew with the same --surface"
        )
    found = [one.get("tolerance_mm") for one in settings]
    if metric == "surface_dice" and found[0] != found[1]:
        raise ComparisonError(
            f"surface Dice at {found[0]} mm in {paths[0]} and at {found[1]} mm in {paths[1]}; evaluate one anew"
        )


def _difference(
    name: str, cases: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metric: str, seed: int
) -> dict[str, Any]:
    held = [pair for pair in cases if any(_has_label(case, name) for case in pair)]
    values = np.array([[_value(case, name, metric) for case in pair] for pair in held], float).reshape(-1, 2)
    finite = np.isfinite(values)
    first, second = values[finite.all(1)].T
    differences = second - first
    return {
        "name": name,
        "n": len(first),
        "n_left_out": len(held) - len(first),
        "n_missed_first": int(len(held) - finite[:, 0].sum()),
        "n_missed_second": int(len(held) - finite[:, 1].sum()),
        "mean_first": float(first.mean()) if len(first) else np.nan,
        "mean_second": float(second.mean()) if len(first) else np.nan,
        "mean_difference": float(differences.mean()) if len(first) else np.nan,
        "ci95": bootstrap_interval(differences, seed=seed),
        "p": wilcoxon_p(differences),
        "p_holm": 1.0,
    }


def _has_label(case: Mapping[str, Any], name: str) -> bool:
    scores = case["classes"].get(name)
    return isinstance(scores, dict) and isinstance(scores.get("dice"), int | float)


def _value(case: Mapping[str, Any], name: str, metric: str) -> float:
    value = (case["classes"].get(name) or {}).get(metric)
    return float(value) if isinstance(value, int | float) else np.nan


def to_json(comparison: MetricsComparison) -> str:
    """Write the comparison as a JSON object; what is undefined is null."""
    return json.dumps(null_for_undefined(asdict(comparison)), indent=2, allow_nan=False)


def to_text(comparison: MetricsComparison) -> str:
    """Write a table of the classes; significant differences are marked."""
    shown = [row for row in comparison.classes if row.n or row.n_left_out]
    n_tested = sum(row.n > 0 for row in shown)
    counts = ("left out", "missed by first", "by second") if any(row.n_left_out for row in shown) else ()
    headings = ("structure", "n", *counts, "first", "second", "difference", "95 % interval", "p", "p (Holm)", "")
    lines = [
        f"{comparison.metric} of {comparison.n_cases} cases; first {comparison.first}, second {comparison.second}",
        f"Wilcoxon's signed-rank test, Holm's correction over {n_tested} structures; * below {SIGNIFICANT}",
        "",
        *aligned([headings, *(_row(row, with_counts=bool(counts)) for row in shown)]),
    ]
    if counts:
        lines += [
            "",
            f"left out: the label holds the structure, and one of the two has no {comparison.metric} (it missed the",
            "structure, or the grid is sheared); they count in no mean and no test, which favours who misses more",
        ]
    if comparison.only_in_one:
        lines += ["", f"known to one of them only: {', '.join(comparison.only_in_one)}"]
    return "\n".join(map(printable, lines))


def _row(row: ClassDifference, *, with_counts: bool) -> tuple[str, ...]:
    counts = [str(n or "") for n in (row.n_left_out, row.n_missed_first, row.n_missed_second)] if with_counts else []
    if not row.n:
        return (row.name, "0", *counts, *[""] * 7)
    interval = " … ".join(f"{end:+.4f}" for end in row.ci95) if row.n > 1 else ""
    numbers = (number(row.mean_first), number(row.mean_second), f"{row.mean_difference:+.4f}", interval)
    tested = (f"{row.p:.3g}", f"{row.p_holm:.3g}", "*" * (row.p_holm < SIGNIFICANT))
    return (row.name, str(row.n), *counts, *numbers, *tested)
