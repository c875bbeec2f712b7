"""Keep what was found in cases in the cache folder, and open a case again only when its files or classes change."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.entry import CannotWriteError
from pipeline.cache.folder import INSPECTIONS, open_folder
from pipeline.cache.key import SourceIndex, code_version, contents_of, sha256, without_comments
from pipeline.cache.locks import locked
from pipeline.checks.case_check import BYTES_A_CASE, CheckedCase, check_cases
from pipeline.checks.findings import Finding, errors
from pipeline.checks.histogram import Histogram
from pipeline.checks.voxel_statistics import ImageStatistics, LabelStatistics
from pipeline.compute.memory import workers_that_fit
from pipeline.console.progress import Progress
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import Case, Dataset
from pipeline.files.checked_lines import append_line, whole_lines
from transforms.io.load import FillNaN

_CASE = '{"case": '  # how a line begins behind its key


def check_changed_cases(
    dataset: Dataset,
    folder: Path,
    *,
    fill_nan: FillNaN = None,
    sources: SourceIndex | None = None,
    progress: Progress | None = None,
) -> list[CheckedCase]:
    """`check_cases` of a data set, but what is remembered in the cache `folder` is not opened again.

    A file that is new or has changed is hashed right before it is opened, so that it comes from the disk once.

    A case is known by its id, the paths and content of its files, the table of classes and those that it annotates,
    `fill_nan` and the code that checks. Cases with errors are never remembered, so that a repaired one is seen. Several
    processes share the work of one: the others wait for it. A folder that may only be read is not written.

    sources: the process's own index of the folder; None: it is read.

    Raises:
        CacheError: the folder cannot be used.
    """
    open_folder(folder)
    sources = sources or SourceIndex(folder)
    table = [_table(dataset.classes), fill_nan]
    keys = _keys(dataset.cases, table, sources, workers_that_fit(BYTES_A_CASE), progress)
    lines = _lines(folder / INSPECTIONS, set(keys.values()))
    found = {case: checked for case, key in keys.items() if (checked := _parsed(lines.get(key))) is not None}
    missing = [case for case in dataset.cases if case.id not in found]
    if missing:
        with _locked(folder, dataset):
            sources.read_again()  # what was hashed by the process that was waited for
            known = {keys[case.id] for case in missing if case.id in keys}
            lines = _lines(folder / INSPECTIONS, known, {case.id for case in missing} - keys.keys())
            check = functools.partial(check_cases, dataset=dataset, fill_nan=fill_nan, progress=progress)
            found |= _check_and_remember(missing, check, table, folder, sources, lines)
    return [found[case.id] for case in dataset.cases]


def _check_and_remember(
    cases: Sequence[Case],
    check: Callable[..., list[CheckedCase]],
    table: list[Any],
    folder: Path,
    sources: SourceIndex,
    lines: dict[str, str],
) -> dict[str, CheckedCase]:
    """Open the cases and remember the good ones one by one: what was done before an interruption is not lost."""
    listed = {case.id: case for case in cases}
    keys: dict[str, str | None] = {}  # of the cases that are opened; None where nothing is to be remembered

    def known(case: Case) -> CheckedCase | None:
        key = _key(case, table, sources)
        found = _parsed(lines.get(key or ""))
        keys[case.id] = key if found is None else None
        return found

    def remember(case: CheckedCase) -> None:
        key = keys[case.case]
        if key is None or case.unknown_values or errors(case.findings):
            return
        # Asked again: files that changed since must not be remembered under what they held before.
        if _key(listed[case.case], table, sources) == key:
            _append(folder / INSPECTIONS, key, case)

    return {case.case: case for case in check(cases, on_case=remember, known=known)}


@contextlib.contextmanager
def _locked(folder: Path, dataset: Dataset) -> Iterator[None]:
    """Hold this data set's lock in the folder; where nothing may be written, go on without it."""
    name = hashlib.sha256(os.fsencode(dataset.root.absolute())).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(CannotWriteError):
            stack.enter_context(locked(folder / f"inspection-{name}.lock", wait=True))
        yield


def _keys(
    cases: Sequence[Case], table: list[Any], sources: SourceIndex, workers: int, progress: Progress | None
) -> dict[str, str]:
    """What each case is remembered by; a case whose files are new, have changed or cannot be read has none yet."""
    keys = {}
    # Remembered before threads ask for it: two that parse at once end in a SystemError (CPython 3.11, issue 106905).
    _version()
    sources.read()  # from Python 3.12 on, each thread that asks first would
    with ThreadPoolExecutor(workers) as pool:  # on a network disk an answer takes a millisecond
        asked = pool.map(lambda case: (case, _key(case, table, sources, may_read=False)), cases)
        for done, (case, key) in enumerate(asked, start=1):
            if key is not None:
                keys[case.id] = key
            if progress:
                progress(done, len(cases), "looking for changes")
    return keys


def _table(classes: ClassTable | None) -> list[Any] | None:
    """What a table says of label values; None for none."""
    if classes is None:
        return None
    return [sorted(classes.class_of_value.items()), classes.ignore_value, list(classes.names)]


def _key(case: Case, table: list[Any], sources: SourceIndex, *, may_read: bool = True) -> str | None:
    label = case.label if isinstance(case.label, tuple) else str(case.label)
    try:
        content = contents_of([case.image, case.label or ()], sources, may_read=may_read)
    except (OSError, LookupError):
        return None
    images = [[str(path) for path in case.image], case.frames]
    named = [case.id, case.subject, images, repr(label), case.annotated, _table(case.table)]
    return sha256([_version(), named, content, table])


@functools.cache
def _version() -> str:
    """Identify the code that reads and checks: all of this package, and what the cache counts as its own."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return sha256([code_version(), [without_comments(path.read_text(encoding="utf-8")) for path in sources]])


def _append(path: Path, key: str, case: CheckedCase) -> None:
    with contextlib.suppress(OSError):  # read-only, or a full disk, which is reported when cases are prepared
        append_line(path, f"{key} {json.dumps(dataclasses.asdict(case), default=_plain)}")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _lines(path: Path, keys: Collection[str], cases: Collection[str] = ()) -> dict[str, str]:
    """What was written under these keys, and about cases of these ids, by key.

    Ids are for cases whose key is not known yet: lines of earlier versions and of other settings are about them, too.
    """
    found: dict[str, str] = {}
    decode = json.JSONDecoder().raw_decode
    with contextlib.suppress(OSError):
        for line in whole_lines(path):
            key, _, text = line.partition(" ")
            with contextlib.suppress(ValueError, TypeError):  # not a line of ours
                if key in keys or (cases and text.startswith(_CASE) and decode(text, len(_CASE))[0] in cases):
                    found[key] = text
    return found


def _parsed(text: str | None) -> CheckedCase | None:
    """What a line says; None for none, and for one that is damaged: its case is opened again."""
    with contextlib.suppress(Exception):  # whatever a damaged line makes of numbers and names
        return None if text is None else _checked_case(json.loads(text))
    return None


def _checked_case(fields: dict[str, Any]) -> CheckedCase:
    label = fields["label"]
    return CheckedCase(
        case=str(fields["case"]),
        subject=str(fields["subject"]),
        images=tuple(_image(image) for image in fields["images"]),
        label=None if label is None else _label(label),
        findings=tuple(Finding(**finding) for finding in fields["findings"]),
    )


def _image(fields: dict[str, Any]) -> ImageStatistics:
    tuples = ("shape", "spacing_mm", "intensities", "foreground")
    as_tuples = {name: tuple(fields[name]) for name in tuples}
    by_class = tuple(tuple(row) for row in fields["by_class"])
    labelled = None if fields["labelled"] is None else _histogram(fields["labelled"])
    path = Path(fields["path"])
    return ImageStatistics(**{**fields, **as_tuples, "by_class": by_class, "labelled": labelled, "path": path})


def _histogram(fields: dict[str, Any]) -> Histogram:
    counts = np.array(fields["counts"], np.int64)
    if counts.ndim != 1 or not counts.sum() > 0:
        raise ValueError("a histogram without voxels")
    return Histogram(float(fields["start"]), float(fields["width"]), counts)


def _label(fields: dict[str, Any]) -> LabelStatistics:
    return LabelStatistics(
        class_voxels=np.array(fields["class_voxels"], np.int64),
        centroids_mm=np.array(fields["centroids_mm"], float),
        thickness_mm=np.array(fields["thickness_mm"], float),
        voxel_ml=float(fields["voxel_ml"]),
        orientation=str(fields["orientation"]),
        overlaps=tuple((int(lost), int(winner), int(count)) for lost, winner, count in fields["overlaps"]),
    )
