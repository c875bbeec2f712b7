"""Prepare every case whose entry is missing or damaged, in several processes, if all fit the free disk space."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from pipeline.cache.case_store import CaseStore
from pipeline.cache.entry import CacheError, CannotWriteError
from pipeline.cache.folder import cache_info, prune
from pipeline.compute.memory import MORE_SHARED_MEMORY, lacks_shared_memory, workers_that_fit
from pipeline.console.progress import Progress
from pipeline.console.text import first_lines, gigabytes

log = logging.getLogger(__name__)

CHAIN_BYTES = 4 << 30
"""Memory that preparing one large CT may take; it bounds the number of building processes."""

MESSAGES = 3
"""Failures quoted in one error; all of them are in `failures`."""


class CacheBuildError(CacheError):
    """Cases that could not be prepared, as (case, message) in `failures`; the entries of all others are in place."""

    def __init__(self, message: str, failures: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


_Case = tuple[CaseStore, int]
"""One case of one of several stores, and its index there."""


class _Outcome(NamedTuple):
    """What became of a case: "whole", "busy" (another process builds it), "failed", or "stopped" (by the disk)."""

    position: int
    state: str
    message: str = ""


def build_entries(
    stores: Sequence[CaseStore],
    progress: Progress | None = None,
    *,
    workers: int | None = None,
    max_bytes: int | None = None,
) -> None:
    """Prepare every case of the stores whose entry is missing or damaged.

    Several processes may build at once: they share the work. What an interrupted build finished is kept.

    Args:
        stores: of one folder and one chain, such as training and validation.
        progress: called after every case.
        workers: building processes; None: by cores and memory.
        max_bytes: size of the folder above which entries of other chains, the least recently used first, are removed.

    Raises:
        CacheBuildError: every case that failed, after all others were prepared.
        CacheError: before the work, if the entries of all stores would not fit the disk or `max_bytes`; or a building
            process died.
    """
    if workers is None:
        workers = workers_that_fit(CHAIN_BYTES)
    build = _Build([(store, index) for store in stores for index in range(len(store))], workers, max_bytes)
    build.run(progress)


@dataclass(frozen=True)
class _Build:
    """One build: the cases of all stores, by their position in `cases`."""

    cases: Sequence[_Case]
    workers: int
    max_bytes: int | None

    def run(self, progress: Progress | None) -> None:
        """Build; see `build_entries`."""
        failed = {}
        with ThreadPoolExecutor(max(1, self.workers)) as pool:  # threads, since hashing lets go of the interpreter
            for position, error in enumerate(pool.map(_hash_sources, self.cases)):
                if error:
                    failed[position] = error
                if progress:
                    progress(position + 1, len(self.cases), "hashing sources")
        named = {position: case for position, case in enumerate(self.cases) if position not in failed}
        missing = [position for position, (store, index) in named.items() if not store.is_in_place(index)]
        for done, outcome in enumerate(self._prepare_all(missing, list(named.values())), start=1):
            if outcome.state == "stopped":
                raise CacheError(outcome.message)
            if outcome.state == "failed":
                failed[outcome.position] = outcome.message
            if progress:
                progress(done, len(missing), "preparing cases")
        if failed:
            failures = [(store.case(index), failed[n]) for n, (store, index) in enumerate(self.cases) if n in failed]
            raise _build_error(failures, len(self.cases))

    def _prepare_all(self, missing: Sequence[int], named: Sequence[_Case]) -> Iterator[_Outcome]:
        """Prepare one by one until an entry's size is known, the rest in parallel, last what others were building."""
        waiting = list(missing)
        sizes = _sizes(named)
        while waiting and not sizes:
            yield self.prepare(waiting.pop(0), wait=True)
            sizes = _sizes(named)
        self._make_space(len(waiting), sizes)
        busy = []
        for outcome in self._in_parallel(waiting):
            if outcome.state == "busy":
                busy.append(outcome.position)
            else:
                yield outcome
        for position in busy:
            yield self.prepare(position, wait=True)

    def _in_parallel(self, waiting: list[int]) -> Iterator[_Outcome]:
        workers = min(self.workers, len(waiting))
        if workers > 1 and lacks_shared_memory():
            log.warning(
                "the shared memory (/dev/shm) is full, so one process prepares all cases; %s", MORE_SHARED_MEMORY
            )
            workers = 1
        if workers <= 1:
            yield from (self.prepare(position, wait=False) for position in waiting)
            return
        # A generator of its own: otherwise the first start, which builds, would train from other random numbers than
        # the second. Out of order, so that one large case does not hold up the others. The processes prepare what is
        # to be collated: torch's loader is the process pool, with its care for dead workers.
        loader: DataLoader = DataLoader(
            waiting,  # type: ignore[arg-type]  # a list will do for a Dataset
            batch_size=None,
            collate_fn=partial(self.prepare, wait=False),
            num_workers=workers,
            in_order=False,
            generator=torch.Generator(),
        )
        try:
            yield from loader
        except RuntimeError as error:
            died = f"one of {workers} processes that prepare cases died (out of memory?: {error})"
            advice = "what is done is kept: end other programs that take memory, then repeat the command"
            raise CacheError(f"{died}; {advice}") from error

    def prepare(self, position: int, *, wait: bool) -> _Outcome:
        """Prepare one case; with `wait` also one that another process is at."""
        store, index = self.cases[position]
        try:
            return _Outcome(position, "whole" if store.prepare(index, wait=wait) else "busy")
        except CannotWriteError as error:
            return _Outcome(position, "stopped", str(error))
        except Exception as error:  # whatever a chain raises is this case's failure, and the next case goes on
            log.debug("case %s failed", store.case(index), exc_info=True)
            return _Outcome(position, "failed", str(error) if isinstance(error, ValueError) else repr(error))

    def _make_space(self, n_missing: int, sizes: Sequence[int]) -> None:
        """Estimate the disk that building takes, from the entries that exist; prune other chains or refuse."""
        if not self.cases:
            return
        store, _ = self.cases[0]
        needed = n_missing * sum(sizes) // max(1, len(sizes))
        cache_dir = shlex.quote(str(store.folder))
        pruning = f"remove what was used longest ago (bodyseg cache prune --cache_dir {cache_dir} --max_gb N)"
        if n_missing:
            log.info("cache %s: %d cases to prepare, about %s", store.folder, n_missing, gigabytes(needed))
        if self.max_bytes is not None:
            held = sum(chain.n_bytes for chain in cache_info(store.folder).chains if chain.chain == store.chain_id)
            if n_missing and held + needed > self.max_bytes:
                found = f"holds {gigabytes(held)} prepared with these settings and needs {gigabytes(needed)} more"
                limit = f"its limit is {gigabytes(self.max_bytes)} (data.cache_limit_gb)"
                raise CacheError(f"cache folder {store.folder} {found}; {limit}: raise it, or {pruning}")
            prune(store.folder, self.max_bytes - needed, keep_chain=store.chain_id)
        free = shutil.disk_usage(store.folder).free
        if needed > free:
            found = f"needs {gigabytes(needed)} for {n_missing} cases, its disk has {gigabytes(free)} free"
            remedy = f"free some, or {pruning}, or name another data.cache_dir"
            raise CacheError(f"cache folder {store.folder} {found}; {remedy}")


def _hash_sources(case: _Case) -> str:
    """Name a case's entry, for which its sources are hashed; says what is wrong with them, "" for nothing."""
    store, index = case
    try:
        store.path(index)
    except CacheError as error:
        return str(error)
    return ""


def _sizes(cases: Sequence[_Case]) -> list[int]:
    """Bytes of the entries that exist."""
    paths = {store.path(index) for store, index in cases}
    return [path.stat().st_size for path in paths if path.exists()]


def _build_error(failures: list[tuple[str, str]], n_cases: int) -> CacheBuildError:
    quoted = [text if f"case {case}" in text else f"case {case}: {text}" for case, text in failures]
    some = "; ".join(first_lines(quoted, "and {} more", MESSAGES))
    message = f"{len(failures)} of {n_cases} cases could not be prepared: {some}"
    return CacheBuildError(message, failures)
