"""Segmenting many cases: reading the next and writing the last while the network works on one; a bad case stops nobody.

Knows the order of things. The network's passes are `inference`'s, the way back `transforms.restore`'s, the files
`segmentation_files`', what is said of a case `prediction_record`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.console.progress import CaseProgress
from pipeline.files.json_files import write_json
from pipeline.inference import record as prediction_record
from pipeline.inference.inputs import InputCase
from pipeline.inference.model import Model
from pipeline.inference.passes import Passes, Prepared, feature_maps, prepare
from pipeline.inference.postprocessing import clean
from pipeline.inference.record import earlier, failed
from pipeline.writers.outputs import (
    Wanted,
    check_formats,
    check_no_source_is_overwritten,
    check_table,
    make_room,
    write_files,
    write_table,
)
from pipeline.writers.preview import write_preview
from pipeline.writers.segmentation import Segmentation
from transforms.io.grid import Geometry, VolumeError
from transforms.io.load import read_geometry
from transforms.restore import FeatureMap, Restored, restore

__all__ = ["InputCase", "Settings", "segment_cases"]

NETWORK_SHARE = 0.7
"""How much of a case's progress the network's passes are; the way back is the rest."""

Progress = Callable[[int, int, str], None]
"""Called with cases finished, cases in all, and what is being done."""


@dataclass(frozen=True)
class Settings:
    """What decides the voxels of the result, beside the networks. `keep_largest` holds class indices."""

    passes: Passes = field(default_factory=Passes)
    keep_largest: tuple[int, ...] = ()
    min_volume_ml: float = 0.0


@dataclass(frozen=True, eq=False)
class _Read:
    """A case as the reading thread hands it over."""

    geometry: Geometry
    state: str
    prepared: list[Prepared]
    seconds: float


def segment_cases(
    models: Sequence[Model],
    cases: Sequence[InputCase],
    wanted: Wanted,
    settings: Settings,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> list[dict[str, Any]]:
    """Segment the cases and write what is wanted of each; one record a case, in order.

    A record says "status" (done, skipped because an equal one is there, failed), and "error" where it failed, else
    geometry, volumes, files, timings and memory. One case's files are written while the next goes through the network.

    Raises SegmentationError before anything is written if an output would overwrite an input, or the folder holds
    label maps of other classes.
    """
    check_no_source_is_overwritten({case.id: case.files for case in cases if not case.error}, wanted)
    check_table(wanted, {case.id for case in cases}, overwrite=overwrite)
    write_table(wanted, replace=False)
    made_by = prediction_record.made_by(models, asdict(settings), wanted)
    batch = _Batch(models, wanted, settings, made_by, len(cases), progress, case_progress)
    open_cases, records = [], {}
    for case in cases:
        record = None if overwrite or case.error else earlier(case, wanted, made_by)
        if record is None:
            open_cases.append(case)
        else:
            records[case.id] = record
    batch.finished = len(records)
    records.update(batch.run(open_cases))
    return [records[case.id] for case in cases]


class _Batch:
    """One run over the open cases; holds what every case needs."""

    def __init__(
        self,
        models: Sequence[Model],
        wanted: Wanted,
        settings: Settings,
        made_by: dict[str, Any],
        n_cases: int,
        progress: Progress | None,
        case_progress: CaseProgress | None,
    ) -> None:
        self.models, self.wanted, self.settings, self.made_by = models, wanted, settings, made_by
        self.n_cases, self.finished = n_cases, 0
        self._progress, self._case_progress = progress, case_progress

    def run(self, cases: Sequence[InputCase]) -> dict[str, dict[str, Any]]:
        """Records by case id."""
        records: dict[str, dict[str, Any]] = {}
        writing: tuple[InputCase, Future] | None = None
        with ThreadPoolExecutor(1, "reading") as reader, ThreadPoolExecutor(1, "writing") as writer:
            reading = reader.submit(self.read, cases[0]) if cases else None
            for number, case in enumerate(cases):
                assert reading is not None
                current = reading
                self.say(f"{case.id}: reading")
                try:
                    read = current.result()
                    reading = reader.submit(self.read, cases[number + 1]) if number + 1 < len(cases) else None
                    restored, seconds = self.segment(case, read)
                except Exception as error:  # whatever is wrong with one case, the others are not to suffer
                    records[case.id] = failed(case, error)
                    self.finished += 1
                    if current is reading and number + 1 < len(cases):
                        reading = reader.submit(self.read, cases[number + 1])
                    continue
                if writing:  # one label map waits to be written at most
                    self.settle(writing, records)
                writing = case, writer.submit(self.write, case, read, restored, seconds)
                del read, restored
            if writing:
                self.settle(writing, records)
        return records

    def settle(self, writing: tuple[InputCase, Future], records: dict[str, dict[str, Any]]) -> None:
        """Wait for a case's files."""
        case, future = writing
        try:
            records[case.id] = future.result()
        except Exception as error:
            records[case.id] = failed(case, error)
        self.finished += 1
        self.say(f"{case.id}: {records[case.id]['status']}")

    def say(self, what: str) -> None:
        if self._progress:
            self._progress(self.finished, self.n_cases, what)

    def say_share(self, case: InputCase, share: float) -> None:
        if self._case_progress:
            self._case_progress(case.id, share)

    def read(self, case: InputCase) -> _Read:
        """What the reading thread does."""
        start = time.perf_counter()
        if case.error:
            raise VolumeError(case.error)
        state = case.state
        geometry = read_geometry(case.images[0])
        check_formats(case.images[0], geometry.kind, self.wanted)
        prepared = prepare(self.models, case.images, case.id)
        return _Read(geometry, state, prepared, time.perf_counter() - start)

    def segment(self, case: InputCase, read: _Read) -> tuple[Restored, dict[str, float]]:
        """What the main thread does: the network, then the way back."""
        start = time.perf_counter()
        self.say(f"{case.id}: network")
        maps = self.maps(case, read)
        middle = time.perf_counter()
        self.say(f"{case.id}: onto its own grid")
        restored = restore(
            maps,
            read.geometry.shape[:3],
            read.geometry.affine,
            probabilities_of=self.wanted.probabilities,
            progress=lambda done, total: self.say_share(case, NETWORK_SHARE + (1 - NETWORK_SHARE) * done / total),
        )
        seconds = {"read": read.seconds, "network": middle - start, "restore": time.perf_counter() - middle}
        return restored, seconds

    def maps(self, case: InputCase, read: _Read) -> list[FeatureMap]:
        """All passes of all networks."""
        passes, maps = self.settings.passes, []
        n_passes = len(self.models) * 2 ** len(passes.mirrored)
        self.say_share(case, 0)
        for model, prepared in zip(self.models, read.prepared, strict=True):
            for one in feature_maps(model, prepared, passes):
                maps.append(one)
                self.say_share(case, NETWORK_SHARE * len(maps) / n_passes)
        return maps

    def write(self, case: InputCase, read: _Read, restored: Restored, seconds: dict[str, float]) -> dict[str, Any]:
        """What the writing thread does; the record comes last."""
        start = time.perf_counter()
        geometry = read.geometry
        segmentation = Segmentation(
            restored.segmentation, geometry.affine, self.wanted.class_names, case.images[0], geometry.kind
        )
        removed = clean(
            segmentation.array,
            segmentation.voxel_ml,
            keep_largest=self.settings.keep_largest,
            min_volume_ml=self.settings.min_volume_ml,
        )
        make_room(case.id, self.wanted)
        write_table(self.wanted, replace=True)
        write_files(segmentation, restored.probabilities, case.id, self.wanted)
        if self.wanted.preview:
            first = read.prepared[0]
            write_preview(segmentation, first.image[0].numpy(), first.affine, self.wanted.preview_file(case.id))
        seconds = {**seconds, "write": time.perf_counter() - start}
        record = prediction_record.done(
            case, segmentation, self.wanted, self.made_by, state=read.state, voxels_removed=removed, seconds=seconds
        )
        write_json(self.wanted.record_file(case.id), record)
        return record
