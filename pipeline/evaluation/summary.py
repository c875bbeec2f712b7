"""The scores of many cases: summed up by class, worst cases first, as metrics.json, metrics.csv and a table.

docs/metrics.schema.json is the schema of metrics.json. How a case is scored is `case_scores`', which files belong
together is `evaluate`'s, and two metrics.json side by side are `metrics_comparison`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.dataset import Label, label_path
from pipeline.evaluation.case_scores import METRICS, VOLUMES, Absent, CaseScores
from pipeline.evaluation.class_matching import CommonClasses
from pipeline.files.json_files import now
from pipeline.metrics.statistics import CONFIDENCE, N_RESAMPLES, Summary, summarise
from pipeline.metrics.surface_elements import SurfaceKind

FORMAT = 2
"""Of metrics.json. 2: label_sha256 holds the label's grid, too, so that hashes of format 1 are never equal to it."""
CONVENTIONS: tuple[Absent, ...] = ("left_out", "scored")
COUNTS = ("true_positives", "false_positives", "false_negatives")
DEFINITIONS = {
    "voxels": "distances between the centres of surface voxels, each counting 1 (monai.metrics, use_subvoxels=False)",
    "area": "distances between surface elements by marching cubes, each counting its area in mm² (Nikolov et al. 2018, "
    "surface-distance; monai.metrics, use_subvoxels=True)",
}
"""What HD95 and surface Dice of a metrics.json mean, in the file's own words."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of cases, and what could not be scored."""

    predictions: str
    labels: str
    classes: CommonClasses
    tolerance_mm: float
    surface: SurfaceKind | None
    seed: int
    cases: tuple[CaseScores, ...]
    """Worst mean Dice first; cases without any structure last."""
    refused: dict[str, str]
    """The reason, by case."""
    labels_without_prediction: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a reader has to know about how classes and files were matched."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that are scored, background first."""
        return self.classes.names

    @property
    def exit_code(self) -> int:
        """0 if every prediction was scored, else 1."""
        return 1 if self.refused else 0

    def summaries(self, absent: Absent) -> dict[str, dict[str, Summary]]:
        """Sum up each metric of each structure over the cases under a convention: {class: {metric: Summary}}."""
        by_class: dict[str, dict[str, Summary]] = {name: {} for name in self.class_names[1:]}
        for metric in METRICS:
            scores = np.stack([case.score(metric, absent) for case in self.cases])
            for c, name in enumerate(self.class_names[1:], start=1):
                by_class[name][metric] = summarise(scores[:, c], seed=self.seed)
        return by_class


def worst_first(cases: Iterable[CaseScores]) -> tuple[CaseScores, ...]:
    """Sort by mean Dice, then by id; cases without any structure come last."""
    return tuple(sorted(cases, key=lambda case: (math.isnan(case.mean_dice), case.mean_dice, case.case)))


def mean_over_classes(by_class: dict[str, dict[str, Summary]], metric: str) -> float:
    """Average a metric's class means over the classes that have one; NaN if none has."""
    means = [summaries[metric].mean for summaries in by_class.values()]
    known = [mean for mean in means if not math.isnan(mean)]
    return float(np.mean(known)) if known else math.nan


def to_document(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of metrics.json; NaN and infinities become null when it is written."""
    conventions = {absent: evaluation.summaries(absent) for absent in CONVENTIONS}
    return {
        "format": FORMAT,
        "created": now(),
        "predictions": evaluation.predictions,
        "labels": evaluation.labels,
        "settings": {
            "surface": None if evaluation.surface is None else _definition(evaluation.surface),
            "tolerance_mm": evaluation.tolerance_mm,
            "hd_percentile": 95,
            "interval": {"method": "percentile bootstrap", "confidence": CONFIDENCE, "resamples": N_RESAMPLES}
            | {"seed": evaluation.seed},
        },
        "class_names": evaluation.class_names,
        "left_out": {
            "only_in_labels": evaluation.classes.only_in_labels,
            "only_in_predictions": evaluation.classes.only_in_predictions,
        },
        "notes": evaluation.notes,
        "totals": _totals(evaluation),
        "summary": {
            absent: {
                "mean_over_classes": {metric: mean_over_classes(by_class, metric) for metric in METRICS},
                "classes": {
                    name: {metric: asdict(summary) for metric, summary in summaries.items()}
                    for name, summaries in by_class.items()
                },
            }
            for absent, by_class in conventions.items()
        },
        "cases": [_case_document(case, evaluation.class_names) for case in evaluation.cases],
        "refused": [{"case": case, "reason": reason} for case, reason in evaluation.refused.items()],
        "labels_without_prediction": evaluation.labels_without_prediction,
    }


def _definition(surface: SurfaceKind) -> dict[str, str]:
    return {"kind": surface, "definition": DEFINITIONS[surface]}


def _totals(evaluation: Evaluation) -> dict[str, dict[str, float | int]]:
    """Counts and volumes of each structure over all cases."""
    sums = {name: sum(getattr(case, name) for case in evaluation.cases) for name in (*COUNTS, *VOLUMES)}
    return {
        structure: {name: sums[name][c].item() for name in sums}
        for c, structure in enumerate(evaluation.class_names)
        if c
    }


def _case_document(case: CaseScores, class_names: Sequence[str]) -> dict[str, Any]:
    """A case with the structures that its label or its prediction holds; the others are in neither."""
    return {
        "case": case.case,
        "prediction": _path(case.pair.prediction),
        "label": _path(case.pair.label),
        "label_sha256": case.label_sha256,
        "spacing_mm": case.spacing_mm,
        "resampled": case.resampled,
        "mean_dice": case.mean_dice,
        "classes": {class_names[c]: _class_document(case, c) for c in _found(case)},
    }


def _class_document(case: CaseScores, c: int) -> dict[str, Any]:
    numbers = {name: float(getattr(case, name)[c]) for name in METRICS}
    return numbers | {name: int(getattr(case, name)[c]) for name in COUNTS}


def _found(case: CaseScores) -> list[int]:
    held = case.true_positives + case.false_positives + case.false_negatives
    return [int(c) for c in np.flatnonzero(held) if c > 0]


def metrics_path(folder: Path) -> Path:
    """Where in its output folder an evaluation has its metrics.json."""
    return folder / "metrics.json"


def _path(source: Label) -> str:
    """The file; for a mask a structure their folder."""
    return str(label_path(source) or "")
