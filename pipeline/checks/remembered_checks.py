"""What inspections found, kept in the cache folder: a case is opened again only when its files or its table change.

Knows how facts become text and back, and when they may be believed; what is found in a case is `inspection`'s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.entry import CannotWriteError
from pipeline.cache.folder import INSPECTIONS, open_folder
from pipeline.cache.key import SourceIndex, code_version, contents_of, sha256, without_comments
from pipeline.cache.locks import locked
from pipeline.checks.case_check import BYTES_A_CASE, CaseFacts, inspect_cases
from pipeline.checks.findings import Finding, errors
from pipeline.checks.voxel_statistics import ImageFacts, LabelFacts
from pipeline.compute.memory import workers_that_fit
from pipeline.console.progress import Progress
from pipeline.datasets.dataset import Case, Dataset

_JUDGING_ROOMS = ("pipeline.checks.case_check", "pipeline.checks.voxel_statistics", "pipeline.checks.findings")
_LARGEST_FILE = 1 << 30  # bytes: some 200,000 cases of 71 classes; beyond, the file is begun anew


def inspect_once(
    cases: Sequence[Case],
    dataset: Dataset,
    folder: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[CaseFacts]:
    """`inspect_cases`, but what is remembered in the cache `folder` is not opened again.

    A case is known by its id, the paths and content of its files, the table of classes and the code that judges. Cases
    with errors are never remembered, so that a repaired one is seen. Several processes share the work of one: the
    others wait for it. A folder that may only be read is not written.

    Raises:
        CacheError: the folder cannot be used.
    """
    open_folder(folder)
    keys = _keys(cases, dataset, folder, workers or workers_that_fit(BYTES_A_CASE), progress)
    known = _read(folder / INSPECTIONS, set(keys.values()))
    if missing := [case for case in cases if keys.get(case.id) not in known]:
        with _alone(folder, dataset):
            known |= _read(folder / INSPECTIONS, {keys[case.id] for case in missing if case.id in keys})
            missing = [case for case in missing if keys.get(case.id) not in known]
            fresh = _inspect(missing, dataset, folder, keys, workers, progress)
    else:
        fresh = {}
    return [fresh[case.id] if case.id in fresh else known[keys[case.id]] for case in cases]


def _inspect(
    cases: Sequence[Case],
    dataset: Dataset,
    folder: Path,
    keys: dict[str, str],
    workers: int | None,
    progress: Progress | None,
) -> dict[str, CaseFacts]:
    """Open the cases and remember the good ones one by one: an interrupted inspection is not lost."""

    def remember(facts: CaseFacts) -> None:
        if facts.case in keys and not facts.unknown_values and not errors(facts.findings):
            _append(folder / INSPECTIONS, keys[facts.case], facts)

    found = inspect_cases(cases, dataset, workers=workers, progress=progress, on_facts=remember)
    return {facts.case: facts for facts in found}


@contextlib.contextmanager
def _alone(folder: Path, dataset: Dataset) -> Iterator[None]:
    """Hold this data set's lock in the folder; where nothing may be written, go on without it."""
    name = hashlib.sha256(str(dataset.root.absolute()).encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(CannotWriteError):
            stack.enter_context(locked(folder / f"inspection-{name}.lock", wait=True))
        yield


def _keys(
    cases: Sequence[Case], dataset: Dataset, folder: Path, workers: int, progress: Progress | None
) -> dict[str, str]:
    """What each case is remembered by; a case whose files cannot be read has none."""
    sources = SourceIndex(folder)
    table = [sorted(dataset.classes.class_of_value.items()), dataset.classes.ignore_value, list(dataset.classes.names)]
    keys = {}
    # Remembered before threads ask for it: two that parse at once end in a SystemError (CPython 3.11, issue 106905).
    _version()
    with ThreadPoolExecutor(workers) as pool:  # hashing lets go of the interpreter
        for done, (case, key) in enumerate(pool.map(lambda case: (case, _key(case, table, sources)), cases), start=1):
            if key is not None:
                keys[case.id] = key
            if progress:
                progress(done, len(cases), "hashing sources")
    return keys


def _key(case: Case, table: list[Any], sources: SourceIndex) -> str | None:
    label = case.label if isinstance(case.label, tuple) else str(case.label)
    try:
        content = contents_of([case.image, case.label or ()], sources)
    except OSError:
        return None
    named = [case.id, case.subject, [str(path) for path in case.image], repr(label)]
    return sha256([_version(), named, content, table])


@functools.cache
def _version() -> str:
    """Identify the code that reads and judges."""
    sources = []
    for room in _JUDGING_ROOMS:
        spec = importlib.util.find_spec(room)
        if spec is not None and spec.origin is not None:
            sources.append(without_comments(Path(spec.origin).read_text(encoding="utf-8")))
    return sha256([code_version(), sources])


def _append(path: Path, key: str, facts: CaseFacts) -> None:
    """Add a line in one write, so that two processes' lines do not mix."""
    line = f"{key} {json.dumps(dataclasses.asdict(facts), default=_plain)}\n"
    with contextlib.suppress(OSError):  # a cache that may only be read, or a full disk, which the next room reports
        if path.exists() and path.stat().st_size > _LARGEST_FILE:
            path.unlink()
        with path.open("a", encoding="utf-8") as file:
            file.write(line)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _read(path: Path, wanted: Collection[str]) -> dict[str, CaseFacts]:
    """The facts of these keys; a line torn by a kill makes no sense, and its case is opened again."""
    known: dict[str, CaseFacts] = {}
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, text = line.partition(" ")
            if key in wanted:
                with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                    known[key] = _facts(json.loads(text))
    return known


def _facts(fields: dict[str, Any]) -> CaseFacts:
    label = fields["label"]
    if label is not None:
        label = LabelFacts(
            np.array(label["class_voxels"], np.int64), np.array(label["centroids_mm"], float), float(label["voxel_ml"])
        )
    return CaseFacts(
        case=str(fields["case"]),
        subject=str(fields["subject"]),
        images=tuple(_image(image) for image in fields["images"]),
        label=label,
        findings=tuple(Finding(**finding) for finding in fields["findings"]),
    )


def _image(fields: dict[str, Any]) -> ImageFacts:
    as_tuples = {name: tuple(fields[name]) for name in ("shape", "spacing_mm", "intensities")}
    return ImageFacts(**{**fields, **as_tuples, "path": Path(fields["path"])})
