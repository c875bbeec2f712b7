"""The evaluation as files and text: metrics.json, metrics.csv and the table in the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.console.text import aligned, number, printable
from pipeline.evaluation.case_scores import SURFACE_METRICS, CaseScores
from pipeline.evaluation.summary import (
    CONVENTIONS,
    COUNTS,
    Evaluation,
    _class_document,
    _found,
    _path,
    mean_over_classes,
    metrics_path,
    to_document,
)
from pipeline.files.atomic import write_atomically, write_error
from pipeline.files.json_files import write_json
from pipeline.metrics.statistics import Summary

N_WORST = 10
"""Cases that the table names; the files have all."""

_CSV_COLUMNS = (
    "case", "class", "dice", "iou", "hd95_mm", "surface_dice", "volume_difference_ml", "reference_ml", "prediction_ml",
    *COUNTS, "prediction", "label",
)  # fmt: skip


def write_files(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write metrics.json and metrics.csv into a folder, made if need be, each at one stroke. Raises FileError."""
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
