"""Score many cases, in processes of their own."""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import torch

from pipeline.compute.memory import workers_that_fit
from pipeline.console.progress import CaseProgress
from pipeline.evaluation.case_scores import CaseScores, Pair, score_case
from pipeline.evaluation.class_matching import CommonClasses
from pipeline.evaluation.pairing import EvaluationError, Progress
from pipeline.evaluation.summary import Evaluation, worst_first
from pipeline.metrics.surface_elements import SurfaceKind
from transforms.io.grid import VolumeError

_BYTES_A_CASE = 4 * 2**30
"""A large case (512×512×800) in memory: two label maps, their surfaces and the search for neighbours."""
_CASES_A_WORKER = 4
"""A process takes seconds to start: it should have so many cases to score."""


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
    check_tolerance(tolerance_mm)
    score = partial(score_case, classes=classes, tolerance_mm=tolerance_mm, surface=surface, resample=resample)
    if workers is None:
        n_workers = workers_that_fit(_BYTES_A_CASE, most=math.ceil(len(pairs) / _CASES_A_WORKER))
    else:
        n_workers = max(1, min(workers, len(pairs)))
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


def check_tolerance(tolerance_mm: float) -> None:
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
    context.set_forkserver_preload(["pipeline.evaluation.case_scores"])
    return context


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one stops the others
    torch.set_num_threads(1)
