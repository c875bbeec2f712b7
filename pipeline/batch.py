"""Segmenting many cases: reading the next and writing the last while the network works on one; a bad case stops nobody.

Knows the order of things and the record that marks a finished case. The network's passes are `inference`'s, the way
back `transforms.restore`'s, the files `segmentation_files`'.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch

from pipeline.cases import list_cases
from pipeline.clean import clean
from pipeline.inference import Model, Passes, Prepared, feature_maps, prepare
from pipeline.layouts import recognise
from pipeline.preview import write_preview
from pipeline.run_folder import RunFolderError, read_json, write_json
from pipeline.segmentation import Segmentation, SegmentationError
from pipeline.segmentation_files import Wanted, check_no_source_is_overwritten, write_files
from pipeline.volumes import list_sources
from transforms.dicom import series_files
from transforms.load import Geometry, read_geometry, volume_kind
from transforms.restore import Restored, restore

log = logging.getLogger(__name__)

Status = Literal["done", "skipped", "failed"]
Progress = Callable[[int, int, str], None]
"""Called with cases finished, cases in all, and what is being done."""


@dataclass(frozen=True)
class InputCase:
    """A volume to segment: the name of its outputs, and one path a channel."""

    id: str
    images: tuple[Path, ...]


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
    prepared: list[Prepared]
    seconds: float


def list_inputs(paths: Iterable[Path | str]) -> tuple[InputCase, ...]:
    """List the cases below some paths: volumes, DICOM folders, folder trees, or data sets in a layout of training.

    Of a data set all images are taken, labelled or not, with the data set's own case ids.

    Raises:
        VolumeError, DatasetError: a path that holds none; SegmentationError: two cases of one name.
    """
    found: list[InputCase] = []
    plain: list[Path] = []
    for path in map(Path, paths):
        if _is_dataset(path):
            dataset = list_cases(path)
            found += [InputCase(case.id, case.image) for case in (*dataset.cases, *dataset.unlabelled)]
        else:
            plain.append(path)
    if plain:
        found += [InputCase(source.id, (source.path,)) for source in list_sources(plain)]
    if twice := [name for name, n in Counter(case.id.lower() for case in found).items() if n > 1]:
        same = " and ".join(str(case.images[0]) for case in found if case.id.lower() == twice[0])
        raise SegmentationError(f"{same}: both would be called {twice[0]}; predict them into two folders")
    return tuple(found)


def _is_dataset(path: Path) -> bool:
    if not path.is_dir() or volume_kind(path) == "dicom":
        return False
    try:
        recognise(path)
    except ValueError:
        return False
    return True


def segment_cases(
    models: Sequence[Model],
    cases: Sequence[InputCase],
    wanted: Wanted,
    settings: Settings,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Segment the cases and write what is wanted of each; one record a case, in order.

    A record says "status" (done, skipped because an equal one is there, failed), and "error" where it failed, else
    geometry, volumes, files, timings and memory. One case's files are written while the next goes through the network.

    Raises SegmentationError before anything is written if an output would overwrite an input.
    """
    check_no_source_is_overwritten({case.id: _files_of(case) for case in cases}, wanted)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    made_by = _made_by(models, settings, wanted)
    batch = _Batch(models, wanted, settings, made_by, len(cases), progress)
    open_cases, records = [], {}
    for case in cases:
        record = None if overwrite else _earlier(case, wanted, made_by)
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
    ) -> None:
        self.models, self.wanted, self.settings, self.made_by = models, wanted, settings, made_by
        self.n_cases, self.finished = n_cases, 0
        self._progress = progress

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
                    records[case.id] = _failure(case, error)
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
            records[case.id] = _failure(case, error)
        self.finished += 1
        self.say(f"{case.id}: {records[case.id]['status']}")

    def say(self, what: str) -> None:
        if self._progress:
            self._progress(self.finished, self.n_cases, what)

    def read(self, case: InputCase) -> _Read:
        """What the reading thread does."""
        start = time.perf_counter()
        geometry = read_geometry(case.images[0])
        prepared = prepare(self.models, case.images, case.id)
        return _Read(geometry, prepared, time.perf_counter() - start)

    def segment(self, case: InputCase, read: _Read) -> tuple[Restored, dict[str, float]]:
        """What the main thread does: the network, then the way back."""
        start = time.perf_counter()
        self.say(f"{case.id}: network")
        passes = self.settings.passes
        pairs = zip(self.models, read.prepared, strict=True)
        maps = [one for model, prepared in pairs for one in feature_maps(model, prepared, passes)]
        middle = time.perf_counter()
        restored = restore(
            maps,
            read.geometry.shape[:3],
            read.geometry.affine,
            probabilities_of=self.wanted.probabilities,
            progress=lambda done, total: self.say(f"{case.id}: {100 * done // total} % on its own grid"),
        )
        seconds = {"read": read.seconds, "network": middle - start, "restore": time.perf_counter() - middle}
        return restored, seconds

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
        write_files(segmentation, restored.probabilities, case.id, self.wanted)
        if self.wanted.preview:
            first = read.prepared[0]
            write_preview(segmentation, first.image[0].numpy(), first.affine, self.wanted.preview_file(case.id))
        seconds = {**seconds, "write": time.perf_counter() - start}
        record = _record(case, segmentation, removed, seconds, self.wanted, self.made_by)
        write_json(self.wanted.record_file(case.id), record)
        return record


def _record(
    case: InputCase,
    segmentation: Segmentation,
    removed: int,
    seconds: dict[str, float],
    wanted: Wanted,
    made_by: dict[str, Any],
) -> dict[str, Any]:
    affine = segmentation.affine
    table = zip(segmentation.class_names, segmentation.colours, segmentation.voxels, strict=True)
    return {
        "case": case.id,
        "status": "done",
        "source": [str(path) for path in case.images],
        "files": [str(path.relative_to(wanted.folder)) for path in wanted.files(case.id)],
        "geometry": {
            "shape": list(segmentation.array.shape),
            "spacing_mm": [round(float(mm), 6) for mm in np.linalg.norm(affine[:3, :3], axis=0)],
            "orientation": "".join(nib.aff2axcodes(affine)),
            "affine": affine.tolist(),
            "kind": segmentation.source_kind,
        },
        "classes": [
            {"value": value, "name": name, "colour": colour.tolist(), "volume_ml": float(n) * segmentation.voxel_ml}
            for value, (name, colour, n) in enumerate(table)
        ],
        "voxels_removed": removed,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_mb": round(_peak_memory_mb(), 1),
        "made_by": made_by,
    }


def _peak_memory_mb() -> float:
    """MiB this process held at most, since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _made_by(models: Sequence[Model], settings: Settings, wanted: Wanted) -> dict[str, Any]:
    """What decides whether an earlier result is the same one: weights, settings, and what was written."""
    document = {
        "runs": [{"name": model.name, "checkpoint_sha256": _sha256(model.path)} for model in models],
        "settings": asdict(settings),
        "formats": list(wanted.formats),
        "per_structure": wanted.per_structure,
        "probabilities": list(wanted.probabilities),
        "preview": wanted.preview,
    }
    return json.loads(json.dumps(document))  # lists for tuples, as it comes back from a file


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _earlier(case: InputCase, wanted: Wanted, made_by: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished case, as skipped; None where it is still to be done."""
    path = wanted.record_file(case.id)
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except RunFolderError as error:
        return _failure(case, SegmentationError(f"{error}; or give --overwrite"))
    if record.get("made_by") != made_by or record.get("source") != [str(image) for image in case.images]:
        return _failure(
            case,
            SegmentationError(
                f"{path}: this case was segmented by another run, with other settings or from another file; "
                "give --overwrite or another --output"
            ),
        )
    return {**record, "status": "skipped"} if all(file.exists() for file in wanted.files(case.id)) else None


def _failure(case: InputCase, error: Exception) -> dict[str, Any]:
    log.debug("case %s failed", case.id, exc_info=error)
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        message = "not enough memory; try --roi 96 96 96, --device cpu, or without --tta"
    elif not isinstance(error, ValueError | OSError):
        message = f"{type(error).__name__}: {message}"
    return {"case": case.id, "status": "failed", "source": [str(p) for p in case.images], "error": message}


def _files_of(case: InputCase) -> list[Path]:
    """The image files of a case; a broken series is reported when it is read, so here its folder stands for it."""
    files: list[Path] = []
    for path in case.images:
        try:
            files += series_files(path) if path.is_dir() else [path]
        except ValueError:
            files.append(path)
    return files
