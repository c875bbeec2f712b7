"""Segment many cases: read the next and write the last while the network works; a failed case stops no other.

Three threads have a case each: one reads and preprocesses, the calling one computes, one writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pipeline.console.progress import CaseProgress, Progress
from pipeline.files.json_files import write_json
from pipeline.inference.inputs import InputCase
from pipeline.inference.model import Model
from pipeline.inference.passes import InferenceOptions, NetworkInput, computed_in, prepare, scan_features
from pipeline.inference.postprocessing import PostprocessingOptions, clean
from pipeline.inference.record import CaseRecord, provenance, record_done, record_failed, reusable_record
from pipeline.writers.outputs import (
    OutputOptions,
    check_formats,
    check_no_source_is_overwritten,
    check_table,
    remove_record,
    write_files,
    write_table,
)
from pipeline.writers.preview import PreviewImage
from pipeline.writers.segmentation import Segmentation, SegmentationError
from transforms.io.grid import Geometry
from transforms.io.load import read_geometry
from transforms.restore import FeatureMap, FeatureStream, Restored, restore

NETWORK_SHARE = 0.7
"""How much of a case's progress the network's passes are; bringing their result onto the scan's grid is the rest."""

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Written = TypeVar("Written")


def segment_cases(
    models: Sequence[Model],
    cases: Sequence[InputCase],
    outputs: OutputOptions,
    inference: InferenceOptions | None = None,
    postprocessing: PostprocessingOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> list[CaseRecord]:
    """Segment cases and write their files; a case that was already segmented in the same way is skipped.

    Args:
        models: trained networks; of several, the mean of the probabilities decides.
        cases: with ids that differ.
        outputs: what is written, and where.
        inference: how a scan goes through the networks.
        postprocessing: what happens to the label map before it is written.
        overwrite: segment finished cases again.
        progress: called after each step with cases finished, cases in all, and what is being done as `note`.
        case_progress: called with a case's id and how much of it is done.

    Returns:
        One record a case, in order. What is wrong with one case is in its record.

    Raises:
        SegmentationError: an output would overwrite an input, or the folder holds label maps of other classes; nothing
            was written. FileError: the folder cannot be written.
    """
    inference = inference or InferenceOptions()
    postprocessing = postprocessing or PostprocessingOptions()
    check_no_source_is_overwritten({case.id: case.files for case in cases if not case.error}, outputs)
    check_table(outputs, {case.id for case in cases}, overwrite=overwrite)
    write_table(outputs, replace=False)
    made_by = provenance(models, inference, postprocessing, outputs)
    records: dict[str, CaseRecord] = {}
    to_do: list[InputCase] = []
    for case in cases:
        earlier = None if overwrite or case.error else reusable_record(case, outputs, made_by)
        if earlier is None:
            to_do.append(case)
        else:
            records[case.id] = earlier

    def say(note: str) -> None:
        if progress:
            progress(len(records), len(cases), note=note)

    steps = _Steps(models, outputs, inference, postprocessing, made_by, say, case_progress)
    for first in to_do[:1]:
        say(f"{first.id}: reading")
    for case, result in overlapped(to_do, steps.read, steps.segment, steps.write):
        records[case.id] = record_failed(case, result) if isinstance(result, Exception) else result
        say(f"{case.id}: {records[case.id].status}")
    return [records[case.id] for case in cases]


@dataclass(frozen=True, eq=False)
class _ReadCase:
    """A case as the reading thread hands it over."""

    state: str
    geometry: Geometry
    inputs: list[NetworkInput]
    seconds: float


@dataclass(frozen=True, eq=False)
class _SegmentedCase:
    """A case as the computing thread hands it over, with what a preview shows."""

    case: InputCase
    state: str
    geometry: Geometry
    restored: Restored
    image: PreviewImage
    seconds: Mapping[str, float]


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


class _Stopwatch:
    """Adds up the seconds that functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Computed]) -> Callable[..., Computed]:
        """The function, whose time counts."""

        def run(*arguments: Any) -> Computed:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return run


@dataclass(frozen=True, eq=False)
class _Steps:
    """What is done with each case, and what that needs."""

    models: Sequence[Model]
    outputs: OutputOptions
    inference: InferenceOptions
    postprocessing: PostprocessingOptions
    made_by: Mapping[str, Any]
    say: Callable[[str], None]
    case_progress: CaseProgress | None

    def read(self, case: InputCase) -> _ReadCase:
        """Read and preprocess."""
        start = time.perf_counter()
        if case.error:
            raise SegmentationError(case.error)
        state = case.state
        geometry = read_geometry(case.images[0])
        check_formats(case.images[0], geometry.kind, self.outputs)
        inputs = prepare(self.models, case.images, case.id)
        return _ReadCase(state, geometry, inputs, time.perf_counter() - start)

    def segment(self, case: InputCase, read: _ReadCase) -> _SegmentedCase:
        """Compute features in all passes of all networks, and from them the segmentation of the scan's own voxels."""
        start = time.perf_counter()
        self.say(f"{case.id}: network")
        network = _Stopwatch()
        is_windowed = self.inference.roi is not None
        share = 1.0 if is_windowed else NETWORK_SHARE  # windows are computed as their features are needed
        features: list[FeatureMap | FeatureStream] = []
        self._say_share(case, 0)
        for number, (model, network_input) in enumerate(zip(self.models, read.inputs, strict=True)):

            def report(done: float, number: int = number) -> None:
                self._say_share(case, share * (number + done) / len(self.models))

            grid = (read.geometry.shape[:3], read.geometry.affine)
            found = network.timed(scan_features)(model, network_input, self.inference, grid, report)
            if isinstance(found, FeatureStream):
                found = replace(found, slices=network.timed(found.slices))
            features.append(found)
        if not is_windowed:
            self.say(f"{case.id}: onto its own grid")
        restored = restore(
            features,
            read.geometry.shape[:3],
            read.geometry.affine,
            probabilities_of=self.outputs.probabilities,
            progress=None
            if is_windowed
            else lambda done, total: self._say_share(case, share + (1 - share) * done / total),
        )
        seconds = {
            "read": read.seconds,
            "network": network.seconds,
            "restore": time.perf_counter() - start - network.seconds,
        }
        first = read.inputs[0]
        image = PreviewImage(first.image[0].numpy(), first.affine)
        return _SegmentedCase(case, read.state, read.geometry, restored, image, seconds)

    def _say_share(self, case: InputCase, share: float) -> None:
        if self.case_progress:
            self.case_progress(case.id, share)

    def write(self, segmented: _SegmentedCase) -> CaseRecord:
        """Clean and write; the record comes last."""
        start = time.perf_counter()
        case, geometry, restored = segmented.case, segmented.geometry, segmented.restored
        segmentation = Segmentation(
            restored.segmentation,
            geometry.affine,
            self.outputs.class_names,
            case.images[0],
            geometry.kind,
            self.outputs.label_values,
        )
        voxels_removed = clean(segmentation.array, segmentation.voxel_ml, self.postprocessing)
        remove_record(case.id, self.outputs)
        write_table(self.outputs, replace=True)
        write_files(
            segmentation,
            self.outputs.files(case.id),
            probabilities=restored.probabilities,
            image=segmented.image,
        )
        record = record_done(
            case,
            segmentation,
            self.outputs,
            self.made_by,
            source_state=segmented.state,
            voxels_removed=voxels_removed,
            precision=[computed_in(model, self.inference) for model in self.models],
            seconds={**segmented.seconds, "write": time.perf_counter() - start},
        )
        write_json(self.outputs.record_file(case.id), record.to_document())
        return record
