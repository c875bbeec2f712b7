"""Write metrics.json and metrics.csv, and read a metrics.json again. docs/metrics.schema.json is its schema."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.console.text import spreadsheet_text
from pipeline.datasets.class_table import IGNORE
from pipeline.datasets.dataset import Label, label_path
from pipeline.evaluation.case_scores import METRICS, VOLUMES, CaseScores
from pipeline.evaluation.options import EvaluationError
from pipeline.evaluation.summary import CONVENTIONS, Evaluation, mean_over_classes
from pipeline.files.atomic import make_folder, remove_half_written, write_atomically, write_error
from pipeline.files.json_files import now, null_for_undefined, read_json
from pipeline.files.lock import alone
from pipeline.files.regular import open_regular
from pipeline.metrics.statistics import CONFIDENCE, N_RESAMPLES
from pipeline.metrics.surface_elements import SurfaceKind

FORMAT = 3
"""Of metrics.json. 3: cases have subjects, from which intervals are drawn; predictions without a label are named. 2:
label_sha256 holds the label's grid, too, so that hashes of format 1 are never equal to it."""
READABLE_FORMATS = (2, 3)

COUNTS = ("true_positives", "false_positives", "false_negatives")
DEFINITIONS = {
    "voxels": "distances between the centres of surface voxels, each counting 1 (monai.metrics, use_subvoxels=False)",
    "area": "distances between surface elements by marching cubes, each counting its area in mm² (Nikolov et al. 2018, "
    "surface-distance; monai.metrics, use_subvoxels=True)",
}
"""What HD95 and surface Dice of a metrics.json mean, in the file's own words."""

_CLASS_COLUMNS = (*METRICS, *COUNTS)
_CSV_COLUMNS = ("case", "class", *_CLASS_COLUMNS, "subject", "prediction", "label")


def metrics_path(folder: Path) -> Path:
    """Where in its output folder an evaluation has its metrics.json."""
    return folder / "metrics.json"


def refuse_other_files(folder: Path) -> None:
    """Raise EvaluationError where files of another origin have the names of the results, as of a case "metrics"."""
    for path, beginning in ((metrics_path(folder), rb'\{\s*"format":'), (folder / "metrics.csv", rb"case,class,")):
        if path.exists() and not re.match(beginning, _first_bytes(path)):
            raise EvaluationError(
                f"{path}: expected none or one of bodyseg evaluate, found another file; choose another --output"
            )


def _first_bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as stream:
            return stream.read(64)
    except OSError as error:
        raise write_error(path.parent, error) from error


def write_files(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write metrics.json and metrics.csv into a folder, made if need be, each at one stroke.

    Raises FileError, and EvaluationError as `refuse_other_files`.

    Of several evaluations that write there at a time, one comes after the other: the two files are always of one of
    them. What an evaluation that was killed had begun to write of them is removed.
    """
    make_folder(folder)
    refuse_other_files(folder)
    json_path, csv_path = metrics_path(folder), folder / "metrics.csv"
    try:
        with alone(folder / ".metrics.lock"):
            _write_lines(json_path, _json_lines(evaluation))
            _write_lines(csv_path, _csv_lines(evaluation))
            for path in (json_path, csv_path):
                remove_half_written(path)
    except OSError as error:  # of the removal: the lock and the files have words of their own
        raise write_error(folder, error) from error
    return json_path, csv_path


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    # A path that is not valid UTF-8 reaches us as lone surrogates, which UTF-8 cannot say.
    encoded = (line.encode("utf-8", errors="backslashreplace") for line in lines)
    write_atomically(path, lambda stream: stream.writelines(encoded))


def to_document(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of metrics.json; NaN and infinities are null."""
    cases = [_case_document(case, evaluation) for case in evaluation.cases]
    return null_for_undefined(_head(evaluation)) | {"cases": cases}


def _json_lines(evaluation: Evaluation) -> Iterator[str]:
    """metrics.json with one case a line: ten thousand cases are never in memory as text."""
    head = json.dumps(null_for_undefined(_head(evaluation)), indent=2, ensure_ascii=False, allow_nan=False)
    yield head.removesuffix("\n}") + ',\n  "cases": [\n'
    for n, case in enumerate(evaluation.cases, start=1):
        line = json.dumps(_case_document(case, evaluation), ensure_ascii=False, allow_nan=False)
        yield f"    {line}{',' if n < len(evaluation.cases) else ''}\n"
    yield "  ]\n}\n"


def _head(evaluation: Evaluation) -> dict[str, Any]:
    options = evaluation.options
    surface = None
    if options.surface is not None:
        surface = {"kind": options.surface, "definition": DEFINITIONS[options.surface]}
    return {
        "format": FORMAT,
        "created": now(),
        "predictions": evaluation.predictions,
        "labels": evaluation.labels,
        "networks": [one.to_document() for one in evaluation.networks],
        "settings": {
            "surface": surface,
            "tolerance_mm": float(evaluation.tolerance_mm),
            "hd_percentile": 95,
            "interval": {
                "method": "expanded percentile bootstrap over subjects",
                "confidence": CONFIDENCE,
                "resamples": N_RESAMPLES,
                "seed": options.seed,
            },
        },
        "class_names": evaluation.class_names,
        **_values(evaluation),
        "left_out": {
            "only_in_labels": evaluation.classes.only_in_labels,
            "only_in_predictions": evaluation.classes.only_in_predictions,
        },
        "notes": evaluation.notes,
        "n_cases": len(evaluation.cases),
        "n_subjects": evaluation.n_subjects,
        "totals": _totals(evaluation),
        "summary": {absent: _summary(evaluation, absent) for absent in CONVENTIONS},
        "refused": refused_cases(evaluation),
        "labels_without_prediction": evaluation.labels_without_prediction,
        "predictions_without_label": evaluation.predictions_without_label,
    }


def _values(evaluation: Evaluation) -> dict[str, dict[str, str]]:
    """Which class each value of the labels and of the predictions is, where that is the same in all of them."""
    tables = {"label": evaluation.classes.label, "prediction": evaluation.classes.prediction}
    found: dict[str, dict[str, str]] = {}
    for kind, table in tables.items():
        if any(getattr(case.pair, f"{kind}_table") not in (None, table) for case in evaluation.cases):
            continue
        found[f"{kind}_values"] = {str(v): name for v, name in zip(table.values, table.names, strict=True)}
        if table.ignore_value is not None:
            found[f"{kind}_values"][str(table.ignore_value)] = IGNORE
        if table.remap:
            names = (*table.names, IGNORE)  # a higher index is that of values to ignore
            found[f"{kind}_remap"] = {str(v): names[min(c, len(table.names))] for v, c in table.remap.items()}
    return found


def refused_cases(evaluation: Evaluation) -> list[dict[str, str]]:
    """The cases that could not be scored, with the reasons."""
    return [{"case": case, "reason": reason} for case, reason in evaluation.refused.items()]


def _summary(evaluation: Evaluation, absent: Any) -> dict[str, Any]:
    by_class = evaluation.summaries[absent]
    classes = {
        name: {metric: asdict(summary) for metric, summary in summaries.items()} for name, summaries in by_class.items()
    }
    means: dict[str, float] = {metric: mean_over_classes(by_class, metric) for metric in METRICS}
    n_missed = sum(evaluation.n_missed.values())
    return {"mean_over_classes": means | {"n_missed": n_missed}, "classes": classes}


def _totals(evaluation: Evaluation) -> dict[str, dict[str, float | int]]:
    """Counts and volumes of each structure over all cases."""
    sums = {name: sum(getattr(case, name) for case in evaluation.cases) for name in (*COUNTS, *VOLUMES)}
    return {
        structure: {name: sums[name][c].item() for name in sums}
        for c, structure in enumerate(evaluation.class_names)
        if c
    }


def _case_document(case: CaseScores, evaluation: Evaluation) -> dict[str, Any]:
    """A case with the structures that label or prediction holds; the others are in neither, or not annotated."""
    names = evaluation.class_names
    not_annotated = [name for name, shown in zip(names, case.annotated.tolist(), strict=True) if not shown]
    special = {"not_annotated": not_annotated, "outside_ml": case.outside_ml}
    return {name: value for name, value in special.items() if value} | {
        "case": case.case,
        "subject": case.pair.subject,
        "prediction": _path(case.pair.prediction),
        "label": _path(case.pair.label),
        "label_sha256": case.label_sha256,
        "spacing_mm": list(case.spacing_mm),
        "resampled": case.resampled,
        "mean_dice": None if math.isnan(case.mean_dice) else case.mean_dice,
        "classes": {
            evaluation.class_names[c]: dict(zip(_CLASS_COLUMNS, null_for_undefined(scores), strict=True))
            for c, scores in _class_scores(case)
        },
    }


def _class_scores(case: CaseScores) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield each structure that a case's label or prediction holds, with its _CLASS_COLUMNS."""
    rows = zip(*(getattr(case, name).tolist() for name in _CLASS_COLUMNS), strict=True)
    held = case.true_positives + case.false_positives + case.false_negatives > 0
    for c, (is_held, row) in enumerate(zip(held.tolist(), rows, strict=True)):
        if is_held and c > 0:
            yield c, row


def _path(source: Label) -> str:
    """The file; for a mask a structure their folder."""
    return str(label_path(source) or "")


def _csv_lines(evaluation: Evaluation) -> Iterator[str]:
    """One line for each case and structure that it holds, worst case first.

    Empty where the label lacks the structure ("left_out"); an infinite distance is "inf".
    """
    class_names = [spreadsheet_text(name) for name in evaluation.class_names]
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for case in evaluation.cases:
        name = spreadsheet_text(case.case)
        paths = _path(case.pair.prediction), _path(case.pair.label)
        origin = [spreadsheet_text(text) for text in (case.pair.subject or "", *paths)]
        for c, scores in _class_scores(case):
            numbers = ["" if math.isnan(score) else score for score in scores]
            writer.writerow([name, class_names[c], *numbers, *origin])
        yield stream.getvalue()
        stream.seek(0)
        stream.truncate()


class StoredCase(NamedTuple):
    """One case of a metrics.json."""

    label_sha256: str
    subject: str | None
    classes: Mapping[str, Any]
    """By class name, what the file says of it: not yet checked."""


@dataclass(frozen=True)
class StoredMetrics:
    """A metrics.json as it was read."""

    path: Path
    class_names: tuple[str, ...]
    """Background first."""
    surface: SurfaceKind | None
    """None where surfaces were left out."""
    tolerance_mm: Any
    cases: Mapping[str, StoredCase]


def read_metrics(path: Path) -> StoredMetrics:
    """Read a metrics.json of this format or the one before, which knows no subjects.

    Raises:
        EvaluationError: the file is not one.
        FileError: it cannot be read.
    """
    return stored_metrics(read_json(path, largest=None), path)


def stored_metrics(document: Mapping[str, Any], path: Path) -> StoredMetrics:
    """Check the content of a metrics.json, see `read_metrics`. Raises EvaluationError."""
    names, cases = document.get("class_names"), document.get("cases")
    if document.get("format") not in READABLE_FORMATS or not isinstance(names, list):
        formats = " or ".join(map(str, READABLE_FORMATS))
        raise EvaluationError(f"{path}: expected a metrics.json of format {formats}; write it with bodyseg evaluate")
    if not isinstance(cases, list) or not all(map(_is_case, cases)):
        raise EvaluationError(
            f"{path}: expected cases with case, label_sha256 and classes; write it again with bodyseg evaluate"
        )
    settings = document.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    surface = settings.get("surface")
    return StoredMetrics(
        path=path,
        class_names=tuple(str(name) for name in names),
        surface=surface.get("kind") if isinstance(surface, dict) else None,
        tolerance_mm=settings.get("tolerance_mm"),
        cases={case["case"]: StoredCase(case["label_sha256"], case.get("subject"), case["classes"]) for case in cases},
    )


def _is_case(case: Any) -> bool:
    kinds = {"case": str, "label_sha256": str, "classes": dict}
    if not isinstance(case, dict) or not isinstance(case.get("subject"), str | None):
        return False
    return all(isinstance(case.get(key), kind) for key, kind in kinds.items())
