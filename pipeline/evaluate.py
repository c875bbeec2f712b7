"""The verb "evaluate": which prediction belongs to which label, what the classes are called, and scoring them all.

A case's scores are `case_scores`', what they say together `evaluation`'s, and two evaluations side by side
`metrics_comparison`'s. Predicting a run's cases first is `batch`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from pipeline.batch import InputCase, Settings, segment_cases
from pipeline.case_scores import CaseScores, Pair, score_case
from pipeline.cases import list_cases
from pipeline.class_table import ClassTable, find_table, parse_table
from pipeline.dataset import Case, Dataset, DatasetError, Label
from pipeline.evaluation import Evaluation, to_csv, to_document, to_text, worst_first, write_files
from pipeline.inference import Passes, choose_device, choose_precision, load_models
from pipeline.layouts import recognise
from pipeline.metrics_comparison import MetricsComparison, compare_metrics
from pipeline.run_folder import RunFolder, read_json
from pipeline.segmentation_files import Wanted
from transforms.load import VolumeError, read_volume, volume_kind, volume_stem

__all__ = ["Evaluation", "EvaluationError", "MetricsComparison", "compare_metrics", "evaluate", "evaluate_pairs"]
__all__ += ["evaluate_run", "to_csv", "to_document", "to_text", "write_files"]

Progress = Callable[[str, int, int], None]
Split = Literal["train", "val", "test"]

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
            they come from the data set, or from a dataset.json, labels.json or class_names.json beside the labels or
            the predictions, or from the records that bodyseg predict writes; where nothing names them, a class is
            called by its value. Predictions and labels with names of their own are matched by name.
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
    written = _table_of_predictions(pairs)
    table = _table(class_names, listed, written, pairs, progress)
    if written is not None:
        pairs = [replace(pair, prediction_values=_values_by_name(table, written, pair)) for pair in pairs]
    return evaluate_pairs(
        pairs, table, tolerance_mm=tolerance_mm, resample=resample, seed=seed, workers=workers, progress=progress,
        described=(str(predictions), str(labels)),
        labels_without_prediction=sorted(set(listed.by_case) - set(found)) if cases is None else (),
    )  # fmt: skip


def evaluate_run(
    run: Path | str,
    split: Split = "val",
    *,
    output: Path | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    tolerance_mm: float = 2.0,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Evaluation, Path]:
    """Predict the cases of a side of a run's own split, where that is not done yet, and score them.

    Args:
        run: a run folder; its training_config.json names the data set and the split.
        split: "val" or "test" (or "train").
        output: folder for predictions/ and the metrics; None: RUN/evaluation/SPLIT.
        device, precision, overwrite: as `predict` has them.
        tolerance_mm, seed, workers, progress: as `evaluate` has them.

    Returns:
        The evaluation, and the output folder. A case that cannot be predicted is in `refused`.

    Raises:
        EvaluationError: the run has no such cases, or the data set has changed since; and what `predict` raises.
    """
    folder = RunFolder.at(run)
    dataset, cases = _cases_of(folder, split)
    place = choose_device(device)
    models = load_models([run], place)
    if models[0].class_names != dataset.class_names:
        raise EvaluationError(f"{folder.path}: its classes are not those of {dataset.root} any more; restore the data")
    target = folder.path / "evaluation" / split if output is None else Path(output)
    wanted = Wanted(target / "predictions", models[0].class_names)
    records = segment_cases(
        models, [InputCase(case.id, case.image) for case in cases], wanted,
        Settings(Passes(precision=choose_precision(precision, place))), overwrite=overwrite,
        progress=None if progress is None else lambda done, total, what: progress(f"predicting {what}", done, total),
    )  # fmt: skip
    failed = {record["case"]: str(record["error"]) for record in records if record["status"] == "failed"}
    files = {case.id: wanted.label_files(case.id)["nifti"] for case in cases}
    indices = tuple(range(len(dataset.class_names)))
    pairs = [Pair(c.id, files[c.id], c.label, indices) for c in cases if c.id not in failed and c.label is not None]
    table = ClassTable(dataset.class_names, dataset.label_values, dataset.ignore_value, dataset.label_remap)
    result = evaluate_pairs(
        pairs, table, tolerance_mm=tolerance_mm, seed=seed, workers=workers, progress=progress,
        described=(str(folder.path), f"{split} cases of {dataset.root}"), refused=failed,
    )  # fmt: skip
    return result, target


def _cases_of(folder: RunFolder, split: str) -> tuple[Dataset, list[Case]]:
    """The data set of a run and the cases of a side of its split, in the split's order."""
    data = folder.read_config()["data"]
    ids = (data.get("split") or {}).get(split)
    if not ids:
        raise EvaluationError(f"{folder.config}: data.split.{split}: expected cases, found none; name another split")
    dataset = list_cases(
        data["dataset_root"], data.get("layout", "auto"), fold=data.get("fold", 0),
        class_names=data.get("class_names") or None, label_remap=data.get("label_remap"),
    )  # fmt: skip
    known = {case.id: case for case in dataset.cases}
    if missing := [case for case in ids if case not in known]:
        raise EvaluationError(
            f"case {missing[0]}: expected it in {dataset.root}, where the run was trained, found {len(known)} others; "
            "restore the data set, or evaluate a folder of predictions"
        )
    return dataset, [known[case] for case in ids]


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
    refused: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score pairs of files, see `evaluate`; `described` says where both came from, `refused` what failed before.

    Raises EvaluationError if not one case can be scored.
    """
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise EvaluationError(f"tolerance_mm is {tolerance_mm:g}, expected a distance of 0 mm or more")
    scores: list[CaseScores] = []
    refused = dict(refused or {})
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
        raise EvaluationError(f"none of {len(refused)} cases can be scored; the first: {first}")
    return Evaluation(
        *described, table.names, float(tolerance_mm), seed, worst_first(scores),
        dict(sorted(refused.items())), tuple(labels_without_prediction),
    )  # fmt: skip


def _default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // _BYTES_A_CASE))


def list_predictions(path: Path | str) -> dict[str, Path]:
    """List the label maps in a folder (or a single file) by case; folders in it, with masks or probabilities, are not
    looked into. Raises VolumeError where there is none, EvaluationError for two of one case."""
    path = Path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    volumes = [file for file in files if file.is_file() and volume_kind(file) and file.suffix.lower() != ".img"]
    if not volumes:
        raise VolumeError(f"{path}: expected label maps as NIfTI, NRRD or MetaImage in it, found none")
    found: dict[str, Path] = {}
    # The same result in a second format of ours is passed over.
    doubles = {file for file in volumes if file.with_name(file.name.removesuffix(".seg.nrrd") + ".nii.gz") in volumes}
    for file in volumes:
        if file in doubles and file.name.endswith(".seg.nrrd"):
            continue
        case = volume_stem(file).removesuffix(".seg")
        if case in found:
            raise EvaluationError(f"{found[case]} and {file} are both of case {case}; keep one of them")
        found[case] = file
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
    written: ClassTable | None,
    pairs: Sequence[Pair],
    progress: Progress | None,
) -> ClassTable:
    named = labels.table or written
    if named is not None and class_names and tuple(class_names) != named.names:
        raise EvaluationError(
            f"class_names has {len(class_names)} names that differ from the {len(named.names)} in the data "
            f"({', '.join(named.names[:4])}, …); leave class_names out"
        )
    if named is not None:
        return named
    return ClassTable.in_order(class_names, labels.root) if class_names else _table_of_values(pairs, progress)


def _table_of_predictions(pairs: Sequence[Pair]) -> ClassTable | None:
    """The classes as the predictions' own files name them: a table in their folder, or the record of a first case."""
    if not pairs or not isinstance(pairs[0].prediction, Path):
        return None
    folder = pairs[0].prediction.parent
    table = find_table(folder)
    record = folder / f"{pairs[0].case}.json"
    if table is not None or not record.is_file():
        return table
    classes = read_json(record).get("classes")
    try:
        pairs_of_record = [(str(item["name"]), int(item["value"])) for item in classes or ()]
    except (TypeError, KeyError, ValueError):
        raise EvaluationError(f"{record}: expected classes with value and name; predict this case again") from None
    return parse_table({str(value): name for name, value in pairs_of_record}, record) if pairs_of_record else None


def _values_by_name(table: ClassTable, written: ClassTable, pair: Pair) -> tuple[int, ...]:
    """The value of each class in the predictions."""
    if set(table.names) != set(written.names):
        unknown = sorted(set(table.names) ^ set(written.names))
        raise EvaluationError(
            f"case {pair.case}: expected the same classes in predictions and labels, found {len(unknown)} in only one "
            f"of them ({', '.join(unknown[:5])}); give both the same class names"
        )
    return tuple(written.values[written.names.index(name)] for name in table.names)


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
