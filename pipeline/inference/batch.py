"""Segment many cases: read the next and write the last while the network works; a failed case stops no other.

Three threads have a case each: one reads and preprocesses, the calling one computes, one writes.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from pipeline.compute.signals import Stopped
from pipeline.console.progress import CaseProgress, Progress
from pipeline.files.atomic import FileError, disk_error, remove_half_written
from pipeline.inference.case_steps import CaseSteps, ReadCase, SegmentedCase
from pipeline.inference.claims import CaseClaims, CaseTakenError
from pipeline.inference.inputs import InputCase
from pipeline.inference.model import Model
from pipeline.inference.passes import InferenceOptions
from pipeline.inference.postprocessing import PostprocessingOptions
from pipeline.inference.record import CaseRecord, provenance, record_failed
from pipeline.inference.reuse import reusable_record
from pipeline.writers.outputs import OutputOptions, check_no_source_is_overwritten, check_table, write_table

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Written = TypeVar("Written")

_NO_MORE_FILES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""Refusals that the next case's files would meet, too."""


def segment_cases(
    models: Sequence[Model],
    cases: Sequence[InputCase],
    outputs: OutputOptions,
    inference: InferenceOptions | None = None,
    postprocessing: PostprocessingOptions | None = None,
    *,
    overwrite: bool = False,
    renew: bool = False,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> list[CaseRecord]:
    """Segment cases and write their files; a case that was already segmented in the same way is skipped.

    Several processes may share a folder: each case is one process's. A disk that is full or cannot be written ends the
    batch after the first refusal.

    Args:
        models: trained networks; of several, the mean of the probabilities decides.
        cases: with ids that differ.
        outputs: what is written, and where.
        inference: how a scan goes through the networks.
        postprocessing: what happens to the label map before it is written.
        overwrite: segment finished cases again.
        renew: segment those again that runs of these names finished with weights that they no longer have; else these
            fail.
        progress: called after each step with cases finished, cases in all, and what is being done as `note`.
        case_progress: called with a case's id and how much of it is done.

    Returns:
        One record a case, in order. What is wrong with one case is in its record.

    Raises:
        SegmentationError: an output would overwrite an input, or the folder holds label maps of other classes; nothing
            was written. FileError: the folder cannot be written. Stopped: a signal asked to stop; a case that was being
            written is finished before.
    """
    inference = inference or InferenceOptions()
    postprocessing = postprocessing or PostprocessingOptions()
    check_no_source_is_overwritten({case.id: case.files for case in cases if not case.error}, outputs)
    table = check_table(outputs, {case.id for case in cases}, overwrite=overwrite)
    write_table(outputs, table, replace=False)
    remove_half_written(outputs.folder)  # of any case, once: later, only of one whose process was killed
    made_by = provenance(models, inference, postprocessing, outputs)
    records: dict[str, CaseRecord] = {}
    to_do: list[InputCase] = []
    for case in cases:
        earlier = None if overwrite or case.error else reusable_record(case, outputs, made_by, renew=renew)
        if earlier is None:
            to_do.append(case)
        else:
            records[case.id] = earlier

    def say(note: str) -> None:
        if progress:
            progress(len(records), len(cases), note=note)

    with CaseClaims(outputs) as claims:
        for finished in records:
            claims.remove_left(finished)
        steps = CaseSteps(
            models=models,
            outputs=outputs,
            table=table,
            inference=inference,
            postprocessing=postprocessing,
            made_by=made_by,
            claims=claims,
            say=say,
            overwrite=overwrite,
            renew=renew,
            case_progress=case_progress,
        )
        for first in to_do[:1]:
            say(f"{first.id}: reading")
        try:
            # Closed here, so that the writer has ended before the claims are released.
            with contextlib.closing(_results(to_do, steps)) as results:
                for case, result in results:
                    claims.release(case.id)
                    records[case.id] = record_failed(case, result) if isinstance(result, Exception) else result
                    say(f"{case.id}: {records[case.id].status}")
        except Stopped as stop:  # the case that was being written is finished by now
            n_finished = len(steps.written | {case for case, record in records.items() if record.status == "skipped"})
            again = (
                "does all of them again, and without --overwrite goes on" if overwrite else "goes on with the others"
            )
            stop.advice = f"{n_finished} of {len(cases)} scans are finished; the same command {again}"
            raise
    return [records[case.id] for case in cases]


def _results(cases: Sequence[InputCase], steps: CaseSteps) -> Generator[tuple[InputCase, CaseRecord | Exception]]:
    """Segment the cases; those that another process works on are tried once more at the end."""
    taken: list[InputCase] = []
    for case, result in _until_the_disk_refuses(cases, steps):
        if isinstance(result, CaseTakenError):
            taken.append(case)
        else:
            yield case, result
    yield from _until_the_disk_refuses(taken, steps)


def _until_the_disk_refuses(
    cases: Sequence[InputCase], steps: CaseSteps
) -> Iterator[tuple[InputCase, CaseRecord | Exception]]:
    """Segment cases; after one whose files the disk refused, the others fail at once instead of being computed."""
    refusal: FileError | None = None

    def read(case: InputCase) -> ReadCase | CaseRecord:
        check()
        return steps.read(case)

    def segment(case: InputCase, read_case: ReadCase | CaseRecord) -> SegmentedCase | CaseRecord:
        check()
        return steps.segment(case, read_case)

    def check() -> None:
        if refusal is not None:
            raise FileError(f"not segmented, since the results of another case could not be written: {refusal}")

    for case, result in overlapped(cases, read, segment, steps.write):
        if refusal is None and isinstance(result, FileError):
            cause = disk_error(result)
            if cause is not None and cause.errno in _NO_MORE_FILES:
                refusal = result
        yield case, result


def overlapped(
    items: Sequence[Item],
    read: Callable[[Item], Read],
    compute: Callable[[Item, Read], Computed],
    write: Callable[[Computed], Written],
) -> Iterator[tuple[Item, Written | Exception]]:
    """Take items through three steps: the next is read and the last is written while one is computed.

    Args:
        items: what to work on, in order.
        read: runs in a thread of its own, at most one item ahead.
        compute: runs in the calling thread.
        write: runs in a thread of its own; one item at most waits to be written.

    Yields:
        Each item once, when it is finished, with what `write` returned or with what any of its steps raised. An item
        that fails early overtakes the one that is being written.
    """
    writing: tuple[Item, Future[Written]] | None = None
    with ThreadPoolExecutor(1, "reading") as reader, ThreadPoolExecutor(1, "writing") as writer:
        reading = [reader.submit(read, item) for item in items[:1]]
        for number, item in enumerate(items):
            current = reading.pop()
            wait([current])
            reading = [reader.submit(read, following) for following in items[number + 1 : number + 2]]
            failure: Exception | None = None
            try:
                computed = compute(item, current.result())
            except Exception as error:  # whatever is wrong with one item, the others go on
                failure = error
            del current
            if failure is not None:
                yield item, failure
                continue
            if writing:
                outcome = _outcome(writing[1])
                yield writing[0], outcome
            writing = item, writer.submit(write, computed)
            del computed
        if writing:
            outcome = _outcome(writing[1])
            yield writing[0], outcome


def _outcome(writing: Future[Written]) -> Written | Exception:
    try:
        return writing.result()
    except Exception as error:
        return error
