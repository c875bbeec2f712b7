"""The verb "evaluate": pairs predictions with labels, predicts a run's cases first where asked, and scores them all.

Which file and class belong to which is `pairing`'s, a case's scores are `case_scores`', what they say together
`evaluation`'s, and two evaluations side by side `metrics_comparison`'s. Predicting is `batch`'s.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch

from pipeline.batch import CaseProgress, InputCase, Settings, segment_cases
from pipeline.case_scores import CaseScores, Pair, score_case
from pipeline.cases import list_cases
from pipeline.class_table import ClassTable
from pipeline.common_classes import CommonClasses
from pipeline.dataset import Case, Dataset
from pipeline.evaluation import (
    Evaluation,
    check_output,
    metrics_path,
    to_csv,
    to_document,
    to_text,
    worst_first,
    write_files,
)
from pipeline.inference import Passes, choose_device, choose_precision, load_models
from pipeline.metrics_comparison import MetricsComparison, check_baseline, compare_metrics
from pipeline.pairing import ClassNames, EvaluationError, Progress, list_side, match
from pipeline.run_folder import RunFolder
from pipeline.segmentation_files import Wanted
from pipeline.surface_elements import SurfaceKind
from transforms.load import VolumeError

__all__ = ["Evaluation", "EvaluationError", "MetricsComparison", "compare_metrics", "evaluate", "evaluate_pairs"]
__all__ += ["check_baseline", "check_output", "default_output", "evaluate_run", "metrics_path"]
__all__ += ["to_csv", "to_document", "to_text", "write_files"]

Split = Literal["train", "val", "test"]

_BYTES_A_CASE = 4 * 2**30
"""A large case (512×512×800) in memory: two label maps, their surfaces and the search for neighbours."""
_CASES_A_WORKER = 4
"""A process takes seconds to start: it should have so many cases to score."""


def evaluate(
    predictions: Path | str,
    labels: Path | str,
    *,
    class_names: ClassNames | None = None,
    cases: Sequence[str] | None = None,
    tolerance_mm: float = 2.0,
    surface: SurfaceKind | None = "voxels",
    resample: bool = False,
    follow_links: bool = False,
    seed: int = 0,
    workers: int | None = 1,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> Evaluation:
    """Score every prediction in a folder against the label of the same name.

    Args:
        predictions: a folder of label maps (CASE.nii.gz, CASE.nrrd, CASE.seg.nrrd, CASE.mha), or one with a folder of
            masks for every case (CASE/liver.nii.gz or CASE/segmentations/liver.nii.gz), or one case of these.
        labels: the same, or a data set in any layout of training.
        class_names: names of the values 0, 1, 2, … (background first), or the value of each name, for the sides that
            nothing names. By default names come from the data set, from the masks' file names, from a labels.json,
            class_names.json or dataset.json beside the files, or from the records that bodyseg predict writes. Classes
            are matched by name; what only one side knows is left out and said. Where nothing names a side its values
            are taken for the other's, where nothing names either each value is a class; both is said.
        cases: score these only, and miss them by name.
        tolerance_mm: distance up to which surfaces agree, for the surface Dice.
        surface: what surfaces consist of: "voxels" (monai.metrics' default) or "area" (surface-distance's definition);
            None: no HD95 and no surface Dice, which is faster.
        resample: bring predictions on another grid onto their label's by nearest neighbour instead of refusing them.
        follow_links: as `cases.list_cases` has it, where the labels are a data set.
        seed: decides the bootstrap.
        workers: processes that score a case each; None: by cores, memory and the number of cases. More than one only
            from a script whose main part is guarded by `if __name__ == "__main__"`, as Python's multiprocessing has it.
        progress: called with (what, done, total, note), cases that are done.
        case_progress: called with (case, share of it that is done), where one case is scored at a time.

    Raises:
        EvaluationError: no pair, a prediction without a label, a wanted case without a prediction, names that do not
            fit. VolumeError, DatasetError: folders that cannot be listed, no class in common. A case that cannot be
            scored is in `refused`.
    """
    matched = match(
        list_side(predictions, "prediction"), list_side(labels, "label", follow_links=follow_links),
        class_names=class_names, cases=cases, progress=progress,
    )  # fmt: skip
    return evaluate_pairs(
        matched.pairs, matched.classes, tolerance_mm=tolerance_mm, surface=surface, resample=resample, seed=seed,
        workers=workers, progress=progress, case_progress=case_progress, described=(str(predictions), str(labels)),
        notes=matched.notes, refused=matched.refused, labels_without_prediction=matched.labels_without_prediction,
    )  # fmt: skip


def evaluate_run(
    run: Path | str,
    split: Split = "val",
    *,
    output: Path | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    trust: bool = False,
    tolerance_mm: float = 2.0,
    surface: SurfaceKind | None = "voxels",
    resample: bool = False,
    seed: int = 0,
    workers: int | None = 1,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> tuple[Evaluation, Path]:
    """Predict the cases of a side of a run's own split, where that is not done yet, and score them.

    Args:
        run: a run folder; its training_config.json names the data set and the split.
        split: "val" or "test" (or "train").
        output: folder for predictions/ and the metrics; None: RUN/evaluation/SPLIT.
        device, precision, overwrite, trust: as `predict` has them.
        tolerance_mm, surface, resample, seed, workers, progress, case_progress: as `evaluate` has them.

    Returns:
        The evaluation, and the output folder. A case that cannot be predicted is in `refused`.

    Raises:
        EvaluationError: the run has no such cases, or the data set has changed since; and what `predict` raises.
    """
    _check_tolerance(tolerance_mm)
    folder = RunFolder.at(run)
    dataset, cases = _cases_of(folder, split)
    place = choose_device(device)
    models = load_models([run], place, trust=trust)
    if models[0].class_names != dataset.class_names:
        raise EvaluationError(f"{folder.path}: its classes are not those of {dataset.root} any more; restore the data")
    target = default_output(folder.path, split) if output is None else Path(output)
    wanted = Wanted(target / "predictions", models[0].class_names)
    records = segment_cases(
        models, [InputCase(case.id, case.image) for case in cases], wanted,
        Settings(Passes(precision=choose_precision(precision, place))), overwrite=overwrite,
        progress=None if progress is None else lambda done, total, what: progress("predicting", done, total, what),
        case_progress=case_progress,
    )  # fmt: skip
    failed = {record["case"]: str(record["error"]) for record in records if record["status"] == "failed"}
    files = {case.id: wanted.label_files(case.id)["nifti"] for case in cases}
    pairs = [Pair(c.id, files[c.id], c.label) for c in cases if c.id not in failed and c.label is not None]
    table = ClassTable(dataset.class_names, dataset.label_values, dataset.ignore_value, dataset.label_remap)
    every = tuple(range(len(table.names)))
    classes = CommonClasses(table, ClassTable(table.names, every), every, every)
    result = evaluate_pairs(
        pairs, classes, tolerance_mm=tolerance_mm, surface=surface, resample=resample, seed=seed, workers=workers,
        progress=progress, case_progress=case_progress, refused=failed,
        described=(str(folder.path), f"{split} cases of {dataset.root}"),
    )  # fmt: skip
    return result, target


def default_output(run: Path | None, split: Split, predictions: Path | None = None) -> Path:
    """Return where metrics lie unless something else is said: RUN/evaluation/SPLIT, or the predictions' own folder."""
    if run is not None:
        return RunFolder.at(run).path / "evaluation" / split
    if predictions is None:
        raise EvaluationError("expected a run or predictions, found neither; name one")
    return predictions if predictions.is_dir() else predictions.parent


def _cases_of(folder: RunFolder, split: str) -> tuple[Dataset, list[Case]]:
    """The data set of a run and the cases of a side of its split, in the split's order."""
    data = folder.read_config()["data"]
    sides = data.get("split") or {}
    ids = sides.get(split)
    if not ids:
        others = [f"--split {side} ({len(sides[side])})" for side in ("val", "test", "train") if sides.get(side)]
        raise EvaluationError(
            f"{folder.config}: data.split.{split}: expected cases, found none; "
            + (
                f"there are some for {', '.join(others)}"
                if others
                else "name predictions and labels instead of the run"
            )
        )
    dataset = list_cases(
        data["dataset_root"], data.get("layout", "auto"), fold=data.get("fold", 0),
        class_names=data.get("class_names") or None, label_remap=data.get("label_remap"), strict=False,
        follow_links=data.get("follow_links") is True,
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
    classes: CommonClasses,
    *,
    tolerance_mm: float = 2.0,
    surface: SurfaceKind | None = "voxels",
    resample: bool = False,
    seed: int = 0,
    workers: int | None = 1,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
    described: tuple[str, str] = ("", ""),
    notes: Sequence[str] = (),
    labels_without_prediction: Sequence[str] = (),
    refused: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score pairs of files, see `evaluate`; `described` says where both came from, `refused` what failed before.

    Raises EvaluationError if not one case can be scored, or a process that scores is killed.
    """
    _check_tolerance(tolerance_mm)
    score = partial(score_case, classes=classes, tolerance_mm=tolerance_mm, surface=surface, resample=resample)
    n_workers = _default_workers(len(pairs)) if workers is None else max(1, min(workers, len(pairs)))
    scores, refused = [], dict(refused or {})
    results = _one_by_one(score, pairs, case_progress) if n_workers == 1 else _in_processes(score, pairs, n_workers)
    for done, (pair, result) in enumerate(results, start=1):
        if isinstance(result, CaseScores):
            scores.append(result)
        else:
            refused[pair.case] = " ".join(str(result).split())
        if progress:
            progress("scoring", done, len(pairs), f"{pair.case}: {_in_short(result)}")
    if not scores:
        first = next(iter(refused.values()), "there are none")
        raise EvaluationError(f"none of {len(refused)} cases can be scored; the first: {first}")
    return Evaluation(
        predictions=described[0], labels=described[1], classes=classes, tolerance_mm=float(tolerance_mm),
        surface=surface, seed=seed, cases=worst_first(scores), refused=dict(sorted(refused.items())),
        labels_without_prediction=tuple(labels_without_prediction), notes=(*notes, *_sheared(scores, surface)),
    )  # fmt: skip


def _sheared(scores: Sequence[CaseScores], surface: SurfaceKind | None, most: int = 10) -> list[str]:
    """Name the cases whose surfaces could not be measured."""
    if surface is None:
        return []
    lines = [
        f"case {case.case}: the axes of its voxels are {case.shear_degrees:.3g}° off right angles (a tilted gantry?): "
        "HD95 and surface Dice are left out of it; resample image and label onto an upright grid to have them"
        for case in sorted(scores, key=lambda case: case.case)
        if case.surface is None
    ]
    return lines[:most] + ([f"and {len(lines) - most} more cases with such voxels"] if len(lines) > most else [])


def _check_tolerance(tolerance_mm: float) -> None:
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise EvaluationError(f"tolerance_mm is {tolerance_mm:g}, expected a distance of 0 mm or more")


def _in_short(result: CaseScores | VolumeError) -> str:
    return f"Dice {result.mean_dice:.3f}" if isinstance(result, CaseScores) else "refused"


Results = Iterator[tuple[Pair, CaseScores | VolumeError]]


def _one_by_one(score: Callable[..., CaseScores], pairs: Sequence[Pair], case_progress: CaseProgress | None) -> Results:
    for pair in pairs:
        try:
            yield pair, score(pair, advance=partial(case_progress, pair.case) if case_progress else None)
        except VolumeError as error:
            yield pair, error


def _in_processes(score: Callable[..., CaseScores], pairs: Sequence[Pair], n_workers: int) -> Results:
    """Score in processes of their own: most of a case's time is Python's and numpy's, which threads would wait for."""
    pool = ProcessPoolExecutor(n_workers, mp_context=_context(), initializer=_begin_worker)
    waiting: dict[Future[CaseScores], Pair] = {}
    try:
        waiting = {pool.submit(score, pair): pair for pair in pairs}
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except VolumeError as error:
                yield waiting[future], error
    except BrokenProcessPool:
        raise EvaluationError(
            f"one of {n_workers} processes that score was killed, most likely for want of memory; use fewer --workers"
        ) from None
    finally:
        # Ctrl-C: the cases in hand end, no other starts.
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """Processes that import this once and fork from there; a fork of this process, with its threads, could hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.case_scores"])
    return context


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one stops the others
    torch.set_num_threads(1)


def _default_workers(n_cases: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_memory = psutil.virtual_memory().available // _BYTES_A_CASE
    return max(1, min(cores, by_memory, math.ceil(n_cases / _CASES_A_WORKER)))
