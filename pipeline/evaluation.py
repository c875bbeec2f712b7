"""The scores of many cases: summed up by class, worst cases first, as metrics.json, metrics.csv and a table.

docs/metrics.schema.json is the schema of metrics.json. How a case is scored is `case_scores`', which files belong
together is `evaluate`'s, and two metrics.json side by side are `metrics_comparison`'s.
"""

from __future__ import annotations

import csv
import errno
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.case_scores import METRICS, SURFACE_METRICS, VOLUMES, CaseScores
from pipeline.common_classes import CommonClasses
from pipeline.dataset import Label
from pipeline.history import now
from pipeline.metrics import Absent
from pipeline.run_folder import write_atomically, write_error, write_json
from pipeline.statistics import CONFIDENCE, N_RESAMPLES, Summary, summarise
from pipeline.surface_elements import SurfaceKind

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

N_WORST = 10
"""Cases that the table names; the files have all."""

_CSV_COLUMNS = (
    "case", "class", "dice", "iou", "hd95_mm", "surface_dice", "volume_difference_ml", "reference_ml", "prediction_ml",
    *COUNTS, "prediction", "label",
)  # fmt: skip


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
    return str(source if isinstance(source, Path) else source[0][1].parent if source else "")


def check_output(folder: Path) -> None:
    """Refuse a folder that cannot be written or made, before hours of scoring; makes nothing. Raises RunFolderError."""
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise write_error(folder, error) from None


def write_files(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write metrics.json and metrics.csv into a folder, made if need be, each at one stroke. Raises RunFolderError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    json_path, csv_path = metrics_path(folder), folder / "metrics.csv"
    write_json(json_path, to_document(evaluation))
    text = to_csv(evaluation)
    write_atomically(csv_path, lambda stream: stream.write(text.encode("utf-8", errors="backslashreplace")))
    return json_path, csv_path


def to_csv(evaluation: Evaluation) -> str:
    """Write one line for each case and structure that it holds, worst case first.

    Empty where the label lacks the structure ("left_out"); an infinite distance is "inf".
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for case in evaluation.cases:
        files = {"prediction": _path(case.pair.prediction), "label": _path(case.pair.label)}
        for c in _found(case):
            row = {name: "" if math.isnan(value) else value for name, value in _class_document(case, c).items()}
            writer.writerow({"case": case.case, "class": evaluation.class_names[c], **row, **files})
    return stream.getvalue()


def to_text(evaluation: Evaluation) -> str:
    """Write the table that a person reads: each structure over the cases, worst cases, and what was left out."""
    left_out, scored = (evaluation.summaries(absent) for absent in CONVENTIONS)
    rows = [_table_row(name, left_out[name], scored[name]) for name in left_out if scored[name]["dice"].n]
    means = [
        f"{what} {mean_over_classes(left_out, metric):.4f}"
        for what, metric in (("Dice", "dice"), ("IoU", "iou"), ("surface Dice", "surface_dice"))
        if evaluation.surface is not None or metric not in SURFACE_METRICS
    ]
    parts = [
        f'{len(evaluation.cases)} cases; averages over the cases whose label holds the structure ("left_out");',
        'the last column counts a rightly absent structure as 1, a wrongly predicted one as 0 ("scored").',
        _about_surfaces(evaluation),
        "",
        *aligned([_HEADINGS, *rows]),
        "",
        f"Mean over structures: {', '.join(means)}",
        "",
        f"Worst cases ({min(N_WORST, len(evaluation.cases))} of {len(evaluation.cases)}):",
        *aligned([_worst_row(case, evaluation.class_names) for case in evaluation.cases[:N_WORST]]),
    ]
    return "\n".join([*parts, *_left_over(evaluation)])


def _about_surfaces(evaluation: Evaluation) -> str:
    if evaluation.surface is None:
        return "HD95 and surface Dice were left out (--surface none)."
    counted = {"voxels": "counted in voxels", "area": "weighted by area"}[evaluation.surface]
    return f"HD95 and surface Dice (within {evaluation.tolerance_mm:g} mm) {counted}."


_HEADINGS = (
    "structure", "n", "Dice", "± std", "median", "95 % interval", "IoU", "HD95 mm", "missed", "surface", "Δ ml",
    "scored",
)  # fmt: skip


def _table_row(name: str, left_out: dict[str, Summary], scored: dict[str, Summary]) -> tuple[str, ...]:
    dice, distance = left_out["dice"], left_out["hd95_mm"]
    return (
        printable(name),
        str(dice.n),
        number(dice.mean),
        number(dice.std),
        number(dice.median),
        "–".join(number(end) for end in dice.ci95) if dice.n > 1 else "",
        number(left_out["iou"].mean),
        number(distance.mean, 2),
        str(distance.n_infinite or ""),
        number(left_out["surface_dice"].mean),
        number(left_out["volume_difference_ml"].mean, 2),
        number(scored["dice"].mean),
    )


def _worst_row(case: CaseScores, class_names: Sequence[str]) -> tuple[str, ...]:
    if math.isnan(case.mean_dice):
        return f"  {printable(case.case)}", "", "its label holds no structure"
    worst = 1 + int(np.nanargmin(case.dice[1:]))
    lowest = f"lowest {printable(class_names[worst])} {case.dice[worst]:.4f}"
    return f"  {printable(case.case)}", f"{case.mean_dice:.4f}", lowest


def _left_over(evaluation: Evaluation) -> list[str]:
    resampled = [case.case for case in evaluation.cases if case.resampled]
    lines = list(evaluation.notes)
    for where, names in (
        ("labels", evaluation.classes.only_in_labels), ("predictions", evaluation.classes.only_in_predictions),
    ):  # fmt: skip
        if names:
            lines.append(f"left out, since only the {where} know them: {', '.join(names)}")
    if resampled:
        lines.append(f"resampled onto the label's grid by nearest neighbour: {', '.join(resampled)}")
    lines += [f"refused: {printable(reason)}" for reason in evaluation.refused.values()]
    if missing := evaluation.labels_without_prediction:
        more = ", …" if len(missing) > N_WORST else ""
        lines.append(f"labels without a prediction: {len(missing)} ({', '.join(missing[:N_WORST])}{more})")
    return ["", *map(printable, lines)] if lines else []


def number(value: float, digits: int = 4) -> str:
    """Write a number for a table, nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad the first column on the right, the others on the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  ".join(c.rjust(w) if n else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def printable(text: str) -> str:
    """Replace what could steer a terminal; the texts come from files that anybody may have written."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
