"""The three steps of segmenting one case: read and preprocess, compute, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.compute.memory import free_memory_bytes, ran_out_of_memory
from pipeline.console.progress import CaseProgress
from pipeline.console.text import gigabytes
from pipeline.files.atomic import renamed_together
from pipeline.files.json_files import write_json
from pipeline.inference.claims import CaseClaims
from pipeline.inference.earlier_files import refuse_others, remove_earlier, warn_of_others
from pipeline.inference.inputs import InputCase
from pipeline.inference.model import Model
from pipeline.inference.passes import InferenceOptions, NetworkInput, computed_in, prepare, scan_features
from pipeline.inference.postprocessing import PostprocessingOptions, clean
from pipeline.inference.record import CaseRecord, record_done
from pipeline.inference.reuse import reusable_record
from pipeline.writers.outputs import OutputOptions, refused_formats, write_files, write_table
from pipeline.writers.segmentation import Segmentation, SegmentationError
from transforms.io.grid import Geometry
from transforms.io.load import read_geometry
from transforms.restore import FeatureMap, FeatureStream, Restored, restore

NETWORK_SHARE = 0.7
"""How much of a case's progress the network's passes are; bringing their result onto the scan's grid is the rest."""

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class ReadCase:
    """A case between reading and computing."""

    state: str
    """`InputCase.state` from before the scan was read."""
    content: str
    """`InputCase.content`."""
    geometry: Geometry
    inputs: list[NetworkInput]
    """The scan as each network takes it."""
    warnings: tuple[str, ...]
    """How the scan is unlike those of the training."""
    refused: Mapping[str, str]
    """Formats that the scan does not allow, and why."""
    seconds: float


@dataclass(frozen=True, eq=False)
class SegmentedCase:
    """A case between computing and writing."""

    case: InputCase
    read: ReadCase
    restored: Restored
    seconds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class CaseSteps:
    """What is done with each case, and what that needs.

    Each step takes what the one before gives. A step that gives a `CaseRecord` finishes the case: the others hand it
    through.
    """

    models: Sequence[Model]
    outputs: OutputOptions
    table: str | None
    """The colour table that the output folder had at the beginning."""
    inference: InferenceOptions
    postprocessing: PostprocessingOptions
    made_by: Mapping[str, Any]
    """See `record.provenance`."""
    claims: CaseClaims
    say: Callable[[str], None]
    """Takes what is being done."""
    overwrite: bool = False
    """Segment finished cases again."""
    renew: bool = False
    """Segment those again that runs of these names finished with other weights."""
    case_progress: CaseProgress | None = None
    written: set[str] = field(default_factory=set)
    """Ids of the cases whose record is written."""

    def read(self, case: InputCase) -> ReadCase | CaseRecord:
        """Claim, read and preprocess a case.

        Raises:
            CaseTakenError: another process works on it.
            SegmentationError, VolumeError, NetworkError, FileError, OSError: it cannot be segmented.
        """
        start = time.perf_counter()
        if case.error:
            raise SegmentationError(case.error)
        self.claims.claim(case.id)
        earlier = None if self.overwrite else reusable_record(case, self.outputs, self.made_by, renew=self.renew)
        if earlier is not None:  # another process has finished it meanwhile
            return earlier
        if not self.overwrite:
            refuse_others(case, self.outputs, self.claims)
        state = case.state
        geometry = read_geometry(case.images[0])
        refused = refused_formats(case.images[0], geometry.kind, self.outputs)
        if len(refused) == len(self.outputs.formats) and not self.outputs.per_structure:
            raise SegmentationError("; ".join(refused.values()))
        with _memory_in_words("read and prepare it", "crop the volume, or end other programs"):
            prepared = prepare(self.models, case.images, case.id, case.frames)
        content = case.content
        seconds = time.perf_counter() - start
        return ReadCase(state, content, geometry, prepared.inputs, prepared.warnings, refused, seconds)

    def segment(self, case: InputCase, read: ReadCase | CaseRecord) -> SegmentedCase | CaseRecord:
        """Compute features in all passes of all networks, and from them the segmentation of the scan's own voxels.

        Raises NetworkError, RestoreError or SegmentationError.
        """
        if isinstance(read, CaseRecord):
            return read
        with _memory_in_words(
            "segment it", "try --device cpu, or bodyseg predict with --roi 96 96 96 and without --tta"
        ):
            return self._segmented(case, read)

    def _segmented(self, case: InputCase, read: ReadCase) -> SegmentedCase:
        start = time.perf_counter()
        self.say(f"{case.id}: network")
        network = _Stopwatch()
        is_windowed = any(self.inference.roi or model.window for model in self.models)
        share = 1.0 if is_windowed else NETWORK_SHARE  # windows are computed as their features are needed
        grid = (read.geometry.shape[:3], read.geometry.affine)
        features: list[FeatureMap | FeatureStream] = []
        self._say_share(case, 0)
        for number, (model, network_input) in enumerate(zip(self.models, read.inputs, strict=True)):

            def report(done: float, number: int = number) -> None:
                self._say_share(case, share * (number + done) / len(self.models))

            found = network.timed(scan_features)(model, network_input, self.inference, grid, report)
            if isinstance(found, FeatureStream):
                found = replace(found, slices=network.timed(found.slices))
            features.append(found)

        def report_slices(done: int, total: int) -> None:
            self._say_share(case, share + (1 - share) * done / total)

        if not is_windowed:
            self.say(f"{case.id}: onto its own grid")
        restored = restore(
            features,
            *grid,
            probabilities_of=self.outputs.probabilities,
            progress=None if is_windowed else report_slices,
        )
        seconds = {
            "read": read.seconds,
            "network": network.seconds,
            "restore": time.perf_counter() - start - network.seconds,
        }
        return SegmentedCase(case, read, restored, seconds)

    def _say_share(self, case: InputCase, share: float) -> None:
        if self.case_progress:
            self.case_progress(case.id, share)

    def write(self, segmented: SegmentedCase | CaseRecord) -> CaseRecord:
        """Clean the label map and write the case's files; the record comes last.

        What an earlier prediction wrote stays until all of the new files are on the disk.

        Raises SegmentationError, VolumeError (a preview can no longer read the scan), or FileError if the disk refuses.
        """
        if isinstance(segmented, CaseRecord):
            return segmented
        start = time.perf_counter()
        case, read, restored = segmented.case, segmented.read, segmented.restored
        segmentation = Segmentation(
            restored.segmentation,
            read.geometry.affine,
            self.outputs.class_names,
            case.images[0],
            read.geometry.kind,
            self.outputs.label_values,
            next(iter(case.frames), 0),
        )
        voxels_removed = clean(segmentation.array, segmentation.voxel_ml, self.postprocessing)
        files = [file for file in self.outputs.files(case.id) if file.kind not in read.refused]
        is_ct = self.models[0].intensities[0] == "ct"
        refused: dict[str, str] = {}
        warnings = list(read.warnings)
        written: dict[str, Path] = {}
        with renamed_together(partial(self._replace_earlier, case)) as on_disk:
            for file, reason, repairs in write_files(
                segmentation, files, probabilities=restored.probabilities, is_ct=is_ct
            ):
                warnings += repairs
                if reason:
                    refused[file.kind] = reason
                else:
                    written[file.path.relative_to(self.outputs.folder).as_posix()] = file.path
            if not written:
                raise SegmentationError("; ".join(refused.values()))
            seconds = {**segmented.seconds, "write": time.perf_counter() - start}
            record = replace(
                record_done(case, segmentation, {name: on_disk[path] for name, path in written.items()}, seconds),
                source_state=read.state,
                source_content=read.content,
                not_written={**read.refused, **refused},
                warnings=tuple(warnings),
                voxels_removed=voxels_removed,
                precision=tuple(computed_in(model, self.inference) for model in self.models),
                made_by=self.made_by,
            )
            write_json(self.outputs.record_file(case.id), record.to_document())
        self.written.add(case.id)
        warn_of_others(case, self.outputs, written.values())
        return record

    def _replace_earlier(self, case: InputCase, on_disk: Mapping[Path, Path]) -> None:
        """Remove a case's earlier result, now that its new files are on the disk, and need no more than a renaming."""
        for path, temporary in on_disk.items():
            self.claims.note_written(case.id, temporary, path)
        write_table(self.outputs, self.table, replace=True)
        remove_earlier(case, self.outputs, was_killed=self.claims.was_left(case.id))


@contextmanager
def _memory_in_words(what: str, remedy: str) -> Iterator[None]:
    """Raise SegmentationError where memory runs out: how torch, numpy and the system say so helps nobody."""
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        free = gigabytes(free_memory_bytes())
        raise SegmentationError(f"not enough memory to {what} ({free} free now); {remedy}") from error


class _Stopwatch:
    """Adds up the seconds that functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function, whose time counts."""

        def run(*arguments: Any) -> Result:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return run
