"""Prepared cases on disk: which entry belongs to which case, building what is missing, and the dataset that reads them.

The deterministic half of a chain runs once a case; every later epoch and training reads the result. How an entry looks
is `cache_entry`'s business, what it is called `cache_key`'s, what a cache folder holds `cache_folder`'s.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pipeline.cache.entry import (
    CacheError,
    CannotWriteError,
    DamagedEntryError,
    Entry,
    encode,
    read_entry,
    read_header,
    write_entry,
)
from pipeline.cache.folder import SUFFIX, CacheInfo, Pruned, cache_info, open_folder, prune
from pipeline.cache.key import SourceIndex, contents_of, identify_chain, sha256
from pipeline.cache.locks import locked
from pipeline.compute.memory import workers_that_fit
from pipeline.console.text import gigabytes

__all__ = ["CacheBuildError", "CacheError", "CacheInfo", "CachedDataset", "Progress", "Pruned", "cache_info", "prune"]

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many

CHAIN_BYTES = 4 << 30  # memory that preparing one large CT may take; it bounds the number of building processes
MESSAGES = 3  # failures quoted in one error; all of them are in `failures`


class CacheBuildError(CacheError):
    """Cases that could not be prepared, as (case, message) in `failures`; the entries of all others are in place."""

    def __init__(self, message: str, failures: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class _Outcome(NamedTuple):
    """What became of an item: "whole", "busy" (another process builds it), "failed", or "stopped" (by the disk)."""

    item: int
    state: str
    message: str = ""


class CachedDataset(Dataset):
    """Cases prepared by a deterministic chain, read from a cache that processes and trainings share.

    Item `i`, or `(epoch, i)`, is {"image": MetaTensor float32 (C, I, J, K), "label": MetaTensor uint8 or uint16
    (1, I, J, K) if the case has one, "case": id}, both with the affine after preprocessing; image.meta also holds
    "original_affine" and "spatial_shape" of the source. A stored image differs from the chain's by at most
    (greatest − least of its channel) / 131070; a label does not differ.

    `transform` is applied to what was read. If it is a MONAI Randomizable, it is seeded anew for every item: for
    `(epoch, i)` from `seed`, epoch and case alone, so that neither workers nor order nor process matter; for `i` from
    torch's generator, so that epochs differ.

    Items hold "image" and "case", and "label" if the case has one, in the forms LoadVolumed takes (a path, a sequence
    of paths, or of (class index, path)). An entry is found by the content of these files, by `key` (the chain's
    parameters, JSON-able: whatever changes the chain's result must be in it) and by the code of `transforms` and the
    versions of MONAI and torch. `chain` maps an item to {"image": ..., "label": ...}.

    Call `build()` before training; an item whose entry is missing or damaged is otherwise built when it is asked for.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        chain: Callable[[Any], Any],
        *,
        folder: str | os.PathLike[str],
        key: Mapping[str, Any],
        n_classes: int,
        transform: Callable[[Any], Any] | None = None,
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        """`n_classes` counts the background; `max_bytes` bounds the folder: least recently used other chains give way.

        Raises CacheError if `key` is not JSON-able or the folder cannot be used.
        """
        super().__init__([dict(item) for item in items], transform)
        self.chain = chain
        self.folder = Path(folder)
        self.n_classes = n_classes
        self.seed = seed
        self.max_bytes = max_bytes
        self._parameters, self.chain_id = identify_chain(key, n_classes)
        self._names: list[str | None] = [None] * len(self.data)
        open_folder(self.folder)

    def __getitem__(self, index: Any) -> Any:
        """Return the item of an int or of a pair (epoch, int); a slice or a list gives a Subset, as in MONAI."""
        if isinstance(index, tuple):
            epoch, position = index
            return self._item(position, f"epoch {epoch}")
        return super().__getitem__(index)

    def build(self, progress: Progress | None = None, *, workers: int | None = None) -> None:
        """Prepare every case whose entry is missing or damaged, in `workers` processes (None: by cores and memory).

        Several processes may build at once: they share the work. What an interrupted build finished is kept.

        Raises CacheBuildError with every case that failed, after all others were prepared; CacheError before the work
        if the entries would not fit the disk or `max_bytes`.
        """
        report = progress or (lambda stage, done, total: None)
        workers = workers_that_fit(CHAIN_BYTES) if workers is None else workers
        failed = {outcome.item: outcome.message for outcome in self._find_names(report, workers)}
        missing = [index for index in range(len(self)) if index not in failed and not self._is_in_place(index)]
        for done, outcome in enumerate(self._outcomes(missing, workers), start=1):
            if outcome.state == "stopped":
                raise CacheError(outcome.message)
            if outcome.state == "failed":
                failed[outcome.item] = outcome.message
            report("preparing cases", done, len(missing))
        if failed:
            raise _build_error([(self._case(index), failed[index]) for index in sorted(failed)], len(self))

    def class_voxels(self, index: int) -> np.ndarray:
        """Return the voxels of every class in the prepared label, int64 (n_classes,); ignored voxels do not count."""
        counts = self._header(index).class_voxels
        if counts is None:
            raise CacheError(f"case {self._case(index)}: it has no label to count classes in")
        return np.array(counts, np.int64)

    def voxel_hash(self, index: int) -> str:
        """Return the SHA-256 of the prepared image: equal for equal voxels, whatever file holds them."""
        return self._header(index).voxel_hash

    def _transform(self, index: int) -> Any:
        # MONAI's Dataset calls this for an int
        is_random = hasattr(self.transform, "set_random_state") and bool(self.transform.transforms)
        return self._item(index, f"draw {int(torch.randint(2**62, ()))}" if is_random else "")

    def _item(self, index: int, draw: str) -> Any:
        _, image, label = self._or_build(index, read_entry)
        case = self._case(index)
        item = {"image": image, "case": case} if label is None else {"image": image, "label": label, "case": case}
        self.transform.set_random_state(seed=_hash_to_seed(self.seed, draw, case))
        try:
            return self.transform(item)
        except Exception as error:
            cause = _root_cause(error)
            if isinstance(cause, MemoryError):
                raise cause from error
            what = " ".join(f"{type(cause).__name__}: {cause}".split())
            raise CacheError(f"case {case}: it cannot be augmented ({what}); look at this case") from error

    def _header(self, index: int) -> Entry:
        return self._or_build(index, read_header)

    def _or_build(self, index: int, read: Callable[[Path], Any]) -> Any:
        """Read an entry; where it is missing or damaged, build it first. Raises the chain's own error."""
        path = self._path(index)
        try:
            return read(path)
        except FileNotFoundError:
            log.debug("case %s is not in the cache; preparing it", self._case(index))
        except DamagedEntryError as error:
            log.warning("case %s: %s; preparing it again", self._case(index), error)
        self._build_entry(index, wait=True)
        return read(path)

    def _case(self, index: int) -> str:
        return str(self.data[index]["case"])

    def _path(self, index: int) -> Path:
        if self._names[index] is None:
            self._names[index] = self._name(index, SourceIndex(self.folder))
        return self.folder / f"{self._names[index]}{SUFFIX}"

    def _name(self, index: int, sources: SourceIndex) -> str:
        item = self.data[index]
        given = [name for name in ("image", "label") if item.get(name) is not None]
        try:
            content = {name: contents_of(item[name], sources) for name in given}
        except OSError as error:
            raise CacheError(f"case {self._case(index)}: {error.filename}: {error.strerror}") from error
        return f"{self.chain_id}-{sha256(content)[:32]}"

    def _find_names(self, report: Progress, workers: int) -> Iterator[_Outcome]:
        """Hash the sources, in threads since hashing lets go of the interpreter; yield the cases that have none."""
        sources = SourceIndex(self.folder)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for index, name in enumerate(pool.map(lambda item: self._name_or_error(item, sources), range(len(self)))):
                if isinstance(name, CacheError):
                    yield _Outcome(index, "failed", str(name))
                else:
                    self._names[index] = name
                report("hashing sources", index + 1, len(self))

    def _name_or_error(self, index: int, sources: SourceIndex) -> str | CacheError:
        try:
            return self._name(index, sources)
        except CacheError as error:
            return error

    def _is_in_place(self, index: int) -> bool:
        """Whether the entry has a whole header and its full length; mark it as used. Reading it checks the rest."""
        path = self._path(index)
        try:
            read_header(path)
        except (DamagedEntryError, OSError):
            return False
        with contextlib.suppress(OSError):  # a cache that may only be read still serves
            os.utime(path)
        return True

    def _outcomes(self, missing: list[int], workers: int) -> Iterator[_Outcome]:
        """Build: one by one until an entry's size is known, the rest in parallel, last what others were building."""
        waiting = list(missing)
        while waiting and not self._sizes():
            yield self._outcome(waiting.pop(0), wait=True)
        self._make_room(len(waiting))
        busy = []
        for outcome in self._in_parallel(waiting, workers):
            if outcome.state == "busy":
                busy.append(outcome.item)
            else:
                yield outcome
        for index in busy:
            yield self._outcome(index, wait=True)

    def _in_parallel(self, waiting: list[int], workers: int) -> Iterator[_Outcome]:
        workers = min(workers, len(waiting))
        if workers <= 1:
            yield from (self._outcome(index, wait=False) for index in waiting)
            return
        # A generator of its own: otherwise the first start, which builds, would train from other random numbers than
        # the second. Out of order, so that one large case does not hold up the others.
        loader = DataLoader(
            _Builder(self, waiting),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            in_order=False,
            generator=torch.Generator(),
        )
        try:
            yield from loader
        except RuntimeError as error:
            advice = f"what is done is kept; build with fewer workers than {workers}"
            raise CacheError(f"a process that prepares cases died (out of memory?); {advice}: {error}") from error

    def _outcome(self, index: int, *, wait: bool) -> _Outcome:
        try:
            return _Outcome(index, "whole" if self._build_entry(index, wait=wait) else "busy")
        except CannotWriteError as error:
            return _Outcome(index, "stopped", str(error))
        except Exception as error:  # whatever a chain raises is this case's failure, and the next case goes on
            log.debug("case %s failed", self._case(index), exc_info=True)
            return _Outcome(index, "failed", str(error) if isinstance(error, ValueError) else repr(error))

    def _build_entry(self, index: int, *, wait: bool) -> bool:
        """Build an entry unless it has become whole; False if another process is at it and `wait` is false."""
        path = self._path(index)
        with locked(path.with_suffix(".lock"), wait=wait) as alone:
            if not alone:
                return False
            with contextlib.suppress(DamagedEntryError, OSError):
                read_entry(path)
                return True
            entry, payload = self._prepared(index, path.stem)
            try:
                write_entry(path, entry, payload)
            except OSError as error:
                path.with_suffix(".tmp").unlink(missing_ok=True)
                raise CannotWriteError(
                    f"cache entry {path}: {error.strerror}; free the disk or name another folder"
                ) from error
            return True

    def _prepared(self, index: int, name: str) -> tuple[Entry, np.ndarray]:
        case = self._case(index)
        try:
            prepared = self.chain(dict(self.data[index]))
            return encode(prepared, name=name, case=case, chain=self._parameters, n_classes=self.n_classes)
        except Exception as error:
            root = _root_cause(error)
            if isinstance(root, ValueError) and case not in str(root):
                raise CacheError(f"case {case}: {root}") from root
            raise root from error if root is not error else error.__cause__

    def _sizes(self) -> list[int]:
        sizes = []
        for name in {name for name in self._names if name is not None}:
            with contextlib.suppress(FileNotFoundError):
                sizes.append((self.folder / f"{name}{SUFFIX}").stat().st_size)
        return sizes

    def _make_room(self, n_missing: int) -> None:
        """Estimate the disk that building takes, from the entries there are; prune other chains or refuse."""
        sizes = self._sizes()
        needed = n_missing * sum(sizes) // max(1, len(sizes))
        if n_missing:
            log.info("cache %s: %d cases to prepare, about %s", self.folder, n_missing, gigabytes(needed))
        if self.max_bytes is not None:
            held = sum(chain.n_bytes for chain in cache_info(self.folder).chains if chain.chain == self.chain_id)
            if n_missing and held + needed > self.max_bytes:
                found = f"holds {gigabytes(held)} of this chain and needs {gigabytes(needed)} more"
                limit = f"its limit is {gigabytes(self.max_bytes)}; raise it or prune the cache"
                raise CacheError(f"cache folder {self.folder} {found}; {limit}")
            prune(self.folder, self.max_bytes - needed, keep_chain=self.chain_id)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            found = f"needs {gigabytes(needed)} for {n_missing} cases, its disk has {gigabytes(free)} free"
            raise CacheError(f"cache folder {self.folder} {found}; free some, prune the cache or name another folder")


class _Builder(TorchDataset):
    """Item n builds the n-th waiting entry: torch's loader is the process pool, with its own care for dead workers."""

    def __init__(self, dataset: CachedDataset, waiting: list[int]) -> None:
        self._dataset = dataset
        self._waiting = waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def __getitem__(self, position: int) -> _Outcome:
        return self._dataset._outcome(self._waiting[position], wait=False)


def _root_cause(error: BaseException) -> BaseException:
    """The chain's own error: MONAI wraps it into a RuntimeError for every Compose it passes."""
    while type(error) is RuntimeError and str(error).startswith("applying transform") and error.__cause__:
        error = error.__cause__
    return error


def _build_error(failures: list[tuple[str, str]], n_cases: int) -> CacheBuildError:
    quoted = [text if case in text else f"case {case}: {text}" for case, text in failures[:MESSAGES]]
    more = [f"and {len(failures) - MESSAGES} more"] if len(failures) > MESSAGES else []
    message = f"{len(failures)} of {n_cases} cases could not be prepared: " + "; ".join(quoted + more)
    return CacheBuildError(message, failures)


def _hash_to_seed(*parts: object) -> int:
    """32 bits that depend on nothing but the parts, unlike hash(), which Python salts in every process."""
    return int(sha256([str(part) for part in parts])[:8], 16)


def _unchanged(outcome: Any) -> Any:
    return outcome
