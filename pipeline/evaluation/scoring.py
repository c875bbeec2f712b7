"""Score many cases, in processes of their own."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver

import torch

from pipeline.compute.memory import MORE_SHARED_MEMORY, lacks_shared_memory, workers_that_fit
from pipeline.compute.signals import handling
from pipeline.console.progress import CaseProgress, Progress
from pipeline.console.text import one_line
from pipeline.evaluation.case_scores import CaseScores, Pair, score_case
from pipeline.evaluation.class_matching import CommonClasses
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from transforms.io.errors import VolumeError

_BYTES_A_CASE = 4 * 2**30
"""A large case (512×512×800) in memory: two label maps, their surfaces and the search for neighbours."""
_CASES_A_WORKER = 4
"""A process takes seconds to start: it should have so many cases to score."""

Results = Iterator[tuple[Pair, CaseScores | VolumeError]]


def score_pairs(
    pairs: Sequence[Pair],
    classes: CommonClasses,
    options: ScoringOptions,
    *,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> tuple[list[CaseScores], dict[str, str]]:
    """Score pairs of files, and return the scores and, by case, why one cannot be scored.

    Args:
        pairs, classes: see `pipeline.evaluation.pairing.match`.
        options: see `ScoringOptions`.
        progress: called for each case that is done.
        case_progress: called with (case, share of it that is done), where one case is scored at a time.

    Raises:
        EvaluationError: a process that scores was killed.
    """
    score = partial(score_case, classes=classes, options=options)
    if options.workers is None:
        n_workers = workers_that_fit(_BYTES_A_CASE, most=math.ceil(len(pairs) / _CASES_A_WORKER))
    else:
        n_workers = max(1, min(options.workers, len(pairs)))
    results = _one_by_one(score, pairs, case_progress) if n_workers == 1 else _in_processes(score, pairs, n_workers)
    scores: list[CaseScores] = []
    refused: dict[str, str] = {}
    for done, (pair, result) in enumerate(results, start=1):
        if isinstance(result, CaseScores):
            scores.append(result)
            note = f"{pair.case}: Dice {result.mean_dice:.3f}"
        else:
            refused[pair.case] = one_line(result)
            note = f"{pair.case}: refused"
        if progress:
            progress(done, len(pairs), "scoring", note)
    return scores, refused


def _one_by_one(score: Callable[..., CaseScores], pairs: Sequence[Pair], case_progress: CaseProgress | None) -> Results:
    for pair in pairs:
        try:
            yield pair, score(pair, advance=partial(case_progress, pair.case) if case_progress else None)
        except VolumeError as error:
            yield pair, error


def _in_processes(score: Callable[..., CaseScores], pairs: Sequence[Pair], n_workers: int) -> Results:
    """Score in processes of their own: most of a case's time is Python's and numpy's, which threads would wait for."""
    try:
        pool = ProcessPoolExecutor(n_workers, mp_context=_context(), initializer=_begin_worker)
    except OSError as error:
        if error.errno != errno.ENOSPC or not lacks_shared_memory():
            raise
        raise EvaluationError(
            f"the shared memory (/dev/shm) is too small for {n_workers} processes that score; use bodyseg evaluate "
            f"--workers 1, or {MORE_SHARED_MEMORY}"
        ) from error
    waiting: dict[Future[CaseScores], Pair] = {}
    try:
        with _signals_later():  # a worker that is being started when the pool ends would print a traceback
            waiting = {pool.submit(score, pair): pair for pair in pairs}
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except VolumeError as error:
                yield waiting[future], error
    except BrokenProcessPool:
        raise EvaluationError(
            f"one of {n_workers} processes that score was killed, probably because memory ran out; use bodyseg "
            "evaluate with fewer --workers"
        ) from None
    finally:
        # Ctrl-C: the cases in hand end, no other starts.
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Answer the signals that ask to stop after what is inside."""
    asked: list[int] = []
    with handling(lambda number, frame: asked.append(number)):
        yield
    for number in asked[:1]:
        signal.raise_signal(number)


def _context() -> multiprocessing.context.BaseContext:
    """Processes that import this once and fork from there; a fork of this process, with its threads, could hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.evaluation.case_scores"])
    # While it imports, the server would answer Ctrl-C with a traceback of its own; it inherits what is blocked here.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one stops the others
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that asked for it has ended, however that happened.

    Left alone, a worker would wait for its next case for ever, and the server from which it was forked for the worker.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
