"""The verb "evaluate": which prediction belongs to which label, what the classes are called, and scoring them all.

A case's scores are `case_scores`', what they say together `evaluation`'s, and two evaluations side by side
`metrics_comparison`'s. Where predictions come from is not known here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from pipeline.case_scores import CaseScores, Pair, score_case
from pipeline.cases import list_cases
from pipeline.class_table import ClassTable, find_table
from pipeline.dataset import Dataset, DatasetError, Label
from pipeline.evaluation import Evaluation, to_csv, to_document, to_text, worst_first, write_files
from pipeline.layouts import recognise
from pipeline.metrics_comparison import MetricsComparison, compare_metrics
from pipeline.volumes import list_sources
from transforms.load import VolumeError, read_volume

__all__ = ["Evaluation", "EvaluationError", "MetricsComparison", "compare_metrics", "evaluate", "evaluate_pairs"]
__all__ += ["to_csv", "to_document", "to_text", "write_files"]

Progress = Callable[[str, int, int], None]

_BYTES_A_CASE = 2 * 2**30
"""A large case (512×512×800) in memory: two label maps, their surfaces and the search for neighbours."""


class EvaluationError(ValueError):
    """Predictions that cannot be evaluated: which, expected, found, what to do."""


@dataclass(frozen=True)
class Labels:
    """The labels to hold predictions against, by case, and their classes where the folder names them."""

    root: Path
    by_case: Mapping[str, Label]
    table: ClassTable | None


def evaluate(
    predictions: Path | str,
    labels: Path | str,
    *,
    class_names: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    tolerance_mm: float = 2.0,
    resample: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every prediction in a folder against the label of the same name.

    Args:
        predictions: a folder of label maps, or one file; CASE.nii.gz, CASE.nrrd, CASE.seg.nrrd, CASE.mha.
        labels: a data set in any layout of training, a folder of label maps named like the predictions, or one file.
        class_names: background first, where the values in the files are 0, 1, 2, … and nothing names them. By default
            they come from the data set, or from a dataset.json, labels.json or class_names.json beside predictions or
            labels; where there is none, a class is called by its value.
        cases: score these only, and miss them by name.
        tolerance_mm: distance up to which surfaces agree, for the surface Dice.
        resample: bring predictions on another grid onto their label's by nearest neighbour instead of refusing them.
        seed: decides the bootstrap.
        workers: cases at once; None: by cores and memory.
        progress: called with (what, done, total).

    Raises:
        EvaluationError: no pair, a prediction without a label, a wanted case without a prediction, unknown names.
        VolumeError, DatasetError: folders that cannot be listed. A case that cannot be scored is in `refused`.
    """
    listed, found = list_labels(labels), list_predictions(predictions)
    wanted = sorted(found) if cases is None else list(cases)
    pairs = [_pair(case, found, listed, Path(predictions)) for case in wanted]
    table = _table(class_names, listed, Path(predictions), pairs, progress)
    result = evaluate_pairs(
        pairs, table, tolerance_mm=tolerance_mm, resample=resample, seed=seed, workers=workers, progress=progress,
        described=(str(predictions), str(labels)),
        labels_without_prediction=sorted(set(listed.by_case) - set(found)) if cases is None else (),
    )  # fmt: skip
    return result


def evaluate_pairs(
    pairs: Sequence[Pair],
    table: ClassTable,
    *,
    tolerance_mm: float = 2.0,
    resample: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    described: tuple[str, str] = ("", ""),
    labels_without_prediction: Sequence[str] = (),
) -> Evaluation:
    """Score pairs of files whose values are those of `table`, see `evaluate`; `described` says where both came from.

    Raises EvaluationError if not one case can be scored.
    """
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise EvaluationError(f"tolerance_mm is {tolerance_mm:g}, expected a distance of 0 mm or more")
    scores: list[CaseScores] = []
    refused: dict[str, str] = {}
    with ThreadPoolExecutor(workers or _default_workers()) as pool:
        waiting = {pool.submit(score_case, p, table, tolerance_mm=tolerance_mm, resample=resample): p for p in pairs}
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                try:
                    scores.append(future.result())
                except VolumeError as error:
                    refused[waiting[future].case] = " ".join(str(error).split())
                if progress:
                    progress("scoring cases", done, len(waiting))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: the cases in hand end, no other starts
            raise
    if not scores:
        first = next(iter(refused.values()), "there are none")
        raise EvaluationError(f"none of {len(pairs)} cases can be scored; the first: {first}")
    return Evaluation(
        *described, table.names, float(tolerance_mm), seed, worst_first(scores),
        dict(sorted(refused.items())), tuple(labels_without_prediction),
    )  # fmt: skip


def _default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // _BYTES_A_CASE))


def list_predictions(path: Path | str) -> dict[str, Path]:
    """List the label maps of a folder (or a single file) by case. Raises VolumeError, EvaluationError for doubles."""
    found: dict[str, Path] = {}
    for source in list_sources([path]):
        case = source.id.removesuffix(".seg")
        if case in found:
            raise EvaluationError(f"{found[case]} and {source.path} are both of case {case}; keep one of them")
        found[case] = source.path
    return found


def list_labels(path: Path | str) -> Labels:
    """List the labels of a data set or of a folder of label maps by case. Raises DatasetError, VolumeError."""
    path = Path(path)
    dataset = _dataset(path)
    if dataset is None:
        near = [path, path.parent] if path.is_dir() else [path.parent, path.parent.parent]
        table = next((table for folder in near if (table := find_table(folder)) is not None), None)
        return Labels(path, list_predictions(path), table)
    by_case = {case.id: case.label for case in dataset.cases if case.label is not None}
    return Labels(path, by_case, ClassTable(dataset.class_names, dataset.label_values, dataset.ignore_value))


def _dataset(path: Path) -> Dataset | None:
    """The data set at a path; None where it is a bare folder of label maps."""
    try:
        recognise(path)
    except DatasetError:
        return None
    return list_cases(path)


def _pair(case: str, predictions: Mapping[str, Path], labels: Labels, folder: Path) -> Pair:
    for what, known, where in (("prediction", predictions, folder), ("label", labels.by_case, labels.root)):
        if case not in known:
            names = ", ".join(sorted(known)[:5]) + (", …" if len(known) > 5 else "")
            raise EvaluationError(f"case {case}: expected a {what} of this name in {where}, found {names or 'none'}")
    return Pair(case, predictions[case], labels.by_case[case])


def _table(
    class_names: Sequence[str] | None,
    labels: Labels,
    predictions: Path,
    pairs: Sequence[Pair],
    progress: Progress | None,
) -> ClassTable:
    named = labels.table or find_table(predictions if predictions.is_dir() else predictions.parent)
    if named is not None:
        if class_names and tuple(class_names) != named.names:
            raise EvaluationError(
                f"class_names has {len(class_names)} names that differ from the {len(named.names)} in the data "
                f"({', '.join(named.names[:4])}, …); leave class_names out"
            )
        return named
    if class_names:
        return ClassTable.in_order(class_names, labels.root)
    return _table_of_values(pairs, progress)


def _table_of_values(pairs: Sequence[Pair], progress: Progress | None) -> ClassTable:
    """Call each class by its value, of all values in all files: every file is read once more."""
    values = {0}
    for done, pair in enumerate(pairs, start=1):
        for source in (pair.prediction, pair.label):
            if isinstance(source, Path):
                values.update(_integral_values(source))
        if progress:
            progress("looking for classes", done, len(pairs))
    ordered = sorted(values)
    if ordered[0] < 0:
        raise EvaluationError(f"found the label value {ordered[0]}, expected 0 for the background and positive classes")
    return ClassTable(tuple(f"class_{v}" if v else "background" for v in ordered), tuple(ordered))


def _integral_values(path: Path) -> set[int]:
    """Whole numbers in a label map; what is none, or damaged, is refused with its case when that is scored."""
    try:
        values = np.unique(read_volume(path).array)
    except VolumeError:
        return set()
    return {int(value) for value in values if abs(value) < 2**31 and float(value).is_integer()}
