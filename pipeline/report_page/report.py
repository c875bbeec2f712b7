"""The command "report": runs and their scores as one HTML page that can be sent to somebody."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.console.text import first_lines, one_line, some_of
from pipeline.evaluation.metrics_file import metrics_path, stored_metrics
from pipeline.evaluation.options import EvaluationError
from pipeline.evaluation.scored_case import read_scored_case
from pipeline.files.atomic import FileError, write_atomically
from pipeline.files.json_files import RESTORE_ADVICE, read_json
from pipeline.report_page.case_volumes import viewer_data
from pipeline.report_page.page import page
from pipeline.report_page.run_sections import RunFacts
from pipeline.report_page.score_sections import CaseView, Scores, scored_structures
from pipeline.runs.run_folder import RunFolder, distinct_names, is_run_folder, list_runs
from pipeline.runs.stored_scores import (
    ALSO_INCOMPLETE,
    ALSO_LEFT_OUT,
    SPLITS,
    StoredScores,
    about_missing,
    scores_at,
    scores_of,
)
from pipeline.runs.study import StudyFolder, is_study_folder
from pipeline.visualisation.class_colours import class_colours
from transforms.io.errors import VolumeError

log = logging.getLogger(__name__)

N_CASES = 6
"""Worst cases that can be looked at, of all metrics.json files together."""

_OF_ANOTHER_KIND = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What writing the page raises of a document with other values than ours have, such as numbers beyond float's range."""


def report(sources: Sequence[Path | str], output: Path | str, *, images: bool = True, n_cases: int = N_CASES) -> Path:
    """Write the page and return its path.

    Args:
        sources: run folders, folders of runs, cross-validations, and metrics.json files; of runs and cross-validations
            their evaluations are found.
        output: an .html file.
        images: False leaves out all images, labels and predictions.
        n_cases: worst cases that can be looked at.

    Raises:
        FileError: a source that is none of these or is damaged, or the disk refuses. EvaluationError: a metrics.json of
            another kind, or nothing but scores of weights that were replaced since.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise FileError(f'--output {output}: expected a file ending in .html, found "{output.suffix}"')
    if n_cases < 0:
        raise FileError(f"--cases must be 0 or more, got {n_cases}")
    if not sources:
        raise FileError("expected run folders or metrics.json files to report on, found none; name one")
    folders, metrics = _found(sources)
    runs = [_facts(name, folder) for name, folder in zip(distinct_names(folders), folders, strict=True)]
    scores, left = [], n_cases if images else 0
    for number, (path, incomplete) in enumerate(metrics):
        one = _scores(path, -(-left // (len(metrics) - number)), incomplete)  # an equal share of what is left
        left -= len(one.views)
        scores.append(one)
    for line in first_lines([one.incomplete for one in scores if one.incomplete], ALSO_INCOMPLETE):
        log.warning("%s", line)
    content = page(runs, scores, _title(sources)).encode("utf-8", errors="replace")
    write_atomically(output, lambda stream: stream.write(content))
    return output


def _title(sources: Sequence[Path | str]) -> str:
    """Names of what the page was asked for."""
    named = [path.parent if path.is_file() else path for path in map(Path, sources)]
    return some_of(dict.fromkeys(path.resolve().name for path in named), most=3)


def _found(sources: Sequence[Path | str]) -> tuple[list[RunFolder], list[tuple[Path, str]]]:
    """The runs and metrics.json files that the sources name, each once; with a file what `StoredScores.incomplete` has.

    Of a file that is of no run and no cross-validation that is "". Scores of weights that were replaced since are left
    out, with a warning, whatever named them. Raises EvaluationError where nothing is left.
    """
    runs: dict[Path, RunFolder] = {}
    metrics: dict[Path, tuple[Path, str]] = {}
    left_out: dict[Path, str] = {}

    def take(path: Path, stored: StoredScores | None) -> None:
        if stored is not None and stored.left_out:
            left_out.setdefault(path.resolve(), stored.left_out)
        else:
            metrics.setdefault(path.resolve(), (path, "" if stored is None else stored.incomplete))

    for source in map(Path, sources):
        file = source if source.is_file() else metrics_path(source)
        if source.is_file() or (file.is_file() and not is_run_folder(source) and not is_study_folder(source)):
            take(file, scores_at(file))
            continue
        folders = list_runs([source])
        runs |= {folder.path.resolve(): folder for folder in folders}
        evaluated = [StudyFolder.at(source)] if is_study_folder(source) else folders
        for stored in (scores_of(folder, split) for folder in evaluated for split in SPLITS):  # one at a time in memory
            if stored is not None:
                take(stored.metrics, stored)
    lines = first_lines(list(left_out.values()), ALSO_LEFT_OUT)
    if lines and not runs and not metrics:
        raise EvaluationError("; ".join(["nothing is left for the page", *lines]))
    for line in lines:
        log.warning("%s", line)
    return list(runs.values()), list(metrics.values())


def _facts(name: str, folder: RunFolder) -> RunFacts:
    summary = folder.read_summary() if folder.summary.exists() else {}
    facts = RunFacts(name, folder.read_config(), folder.read_log(), summary, folder.path.as_posix())
    try:
        page([facts], [])
    except _OF_ANOTHER_KIND as error:
        raise FileError(
            f"{folder.config}: expected the settings and facts of a training, found others ({one_line(error, 100)}); "
            f"{RESTORE_ADVICE}"
        ) from error
    return facts


def _scores(path: Path, n_views: int, incomplete: str) -> Scores:
    document = read_json(path, largest=None)
    stored_metrics(document, path)  # refuses what is not one
    name = str(path.parent) if path.name == "metrics.json" else str(path)
    try:
        page([], [Scores(name, document)])  # before any volume is read
        views = tuple(_view(case, document, path) for case in document["cases"][:n_views])
    except _OF_ANOTHER_KIND as error:
        reason = one_line(error, 100)
        raise EvaluationError(
            f"{path}: expected a metrics.json of bodyseg evaluate, found another ({reason})"
        ) from error
    return Scores(name, document, views, incomplete or about_missing(document, path))


def _view(case: Mapping[str, Any], document: Mapping[str, Any], metrics: Path) -> CaseView:
    """The worst structure of a case, with its surroundings."""
    scored = scored_structures(case)
    if not scored:
        return CaseView(case["case"], "no structure", None, None, "its label holds no structure")
    worst, class_names = next(iter(scored)), document["class_names"]
    try:
        read = read_scored_case(case, document, metrics)
    except (EvaluationError, VolumeError, FileError, OSError) as error:
        log.warning("the page cannot show case %s: %s", case["case"], one_line(error))
        return CaseView(case["case"], worst, scored[worst], None, one_line(error))
    data = viewer_data(read, list(class_names).index(worst), class_colours(class_names), class_names)
    return CaseView(case["case"], worst, scored[worst], data)
