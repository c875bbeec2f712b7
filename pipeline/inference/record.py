"""Record what was done with a case, in the JSON file that marks it as finished."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.compute.memory import peak_memory_bytes
from pipeline.console.text import one_line
from pipeline.files.json_files import plain
from pipeline.files.regular import sha256_of
from pipeline.inference.inputs import InputCase
from pipeline.inference.model import Model
from pipeline.inference.passes import InferenceOptions
from pipeline.inference.postprocessing import PostprocessingOptions
from pipeline.writers.outputs import OutputOptions
from pipeline.writers.segmentation import Segmentation, SegmentationError
from transforms.chains import root_cause
from transforms.io.grid import orientation, voxel_edges_mm

log = logging.getLogger(__name__)

Status = Literal["done", "skipped", "failed"]
"""Segmented now; already there and equal; not segmented."""


@dataclass(frozen=True)
class ClassVolume:
    """One class in a case's label map."""

    value: int
    """Its value in the label map."""
    name: str
    colour: tuple[int, int, int]
    """RGB, 0…255."""
    volume_ml: float


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a case's label map, which is its scan's own."""

    shape: tuple[int, ...]
    """Voxels (I, J, K)."""
    spacing_mm: tuple[float, ...]
    """Edge lengths of a voxel along i, j and k."""
    orientation: str
    """Where the axes run, "RAS" for example."""
    affine: list[list[float]]
    """4×4, voxel index -> world mm (RAS+)."""
    kind: str
    """Format of the scan: "nifti", "nrrd", "metaimage" or "dicom"."""


@dataclass(frozen=True)
class FileContent:
    """What a written file holds."""

    bytes: int
    """How many."""
    sha256: str
    """Of its bytes, in hex."""


@dataclass(frozen=True)
class CaseRecord:
    """What became of a case: the fields of its JSON file, in that order."""

    case: str
    """Its id, which its files bear."""
    status: Status
    source: tuple[str, ...]
    """Paths of the scan, one a channel."""
    error: str = ""
    """Why it failed, in one line; the facts below are then empty."""
    source_state: str = ""
    """`InputCase.state` from before the scan was read."""
    source_content: str = ""
    """`InputCase.content`; empty in records of earlier versions."""
    files: tuple[str, ...] = ()
    """What was written, relative to the output folder."""
    contents: Mapping[str, FileContent] = field(default_factory=dict)
    """What each of `files` held when it was written; empty in records of earlier versions."""
    not_written: Mapping[str, str] = field(default_factory=dict)
    """Formats that were asked for and cannot be written of this scan, and why."""
    warnings: tuple[str, ...] = ()
    """How the scan is unlike those that the networks were trained on, and what its DICOM SEG does not have as its
    series does."""
    geometry: Grid | None = None
    classes: tuple[ClassVolume, ...] = ()
    voxels_removed: int = 0
    """By postprocessing."""
    precision: tuple[str, ...] = ()
    """What each network computed in: "32", "bf16" or "16"."""
    seconds: Mapping[str, float] | None = None
    """Of "read", "network", "restore" and "write"."""
    peak_memory_mb: float = 0.0
    """MiB that this process held at most since it began, or last began a training."""
    peak_gpu_memory_mb: float | None = None
    """MiB that torch allocated on the GPU at most; None without one."""
    made_by: Mapping[str, Any] | None = None
    """What decides whether an equal result is the same: see `provenance`."""

    def to_document(self) -> dict[str, Any]:
        """The record as JSON has it."""
        document = plain(self)
        if self.status == "failed":
            return {name: document[name] for name in ("case", "status", "source", "error")}
        left_out = ("error", "peak_gpu_memory_mb") if self.peak_gpu_memory_mb is None else ("error",)
        return {name: value for name, value in document.items() if name not in left_out}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> CaseRecord:
        """Take a finished case's record as `to_document` made it. Raises SegmentationError for any other document."""
        try:
            return cls(
                case=str(document["case"]),
                status="done",
                source=tuple(map(str, document["source"])),
                source_state=str(document["source_state"]),
                source_content=str(document.get("source_content", "")),
                files=tuple(map(str, document["files"])),
                contents={
                    str(name): FileContent(int(one["bytes"]), str(one["sha256"]))
                    for name, one in document.get("contents", {}).items()
                },
                not_written={str(name): str(why) for name, why in document.get("not_written", {}).items()},
                geometry=Grid(**document["geometry"]),
                classes=tuple(ClassVolume(**one) for one in document["classes"]),
                warnings=tuple(map(str, document.get("warnings", ()))),
                voxels_removed=int(document["voxels_removed"]),
                seconds=dict(document["seconds"]),
                peak_memory_mb=float(document["peak_memory_mb"]),
                peak_gpu_memory_mb=document.get("peak_gpu_memory_mb"),
                precision=tuple(map(str, document.get("precision", ()))),
                made_by=dict(document["made_by"]),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise SegmentationError(
                f"expected the record of a segmented case, found another document ({error!r})"
            ) from error


def record_done(
    case: InputCase, segmentation: Segmentation, written: Mapping[str, Path], seconds: Mapping[str, float]
) -> CaseRecord:
    """What the files of a case, `written` by name, say for its record; the caller adds what it knows of the scan.

    Raises OSError if a file that was just written cannot be read.
    """
    affine = segmentation.affine
    values, volumes_ml = segmentation.values.tolist(), (segmentation.voxels * segmentation.voxel_ml).tolist()
    classes = zip(values, segmentation.class_names, map(tuple, segmentation.colours.tolist()), volumes_ml, strict=True)
    return CaseRecord(
        case=case.id,
        status="done",
        source=tuple(map(str, case.images)),
        files=tuple(written),
        contents={name: content_of(path) for name, path in written.items()},
        geometry=Grid(
            shape=segmentation.array.shape,
            spacing_mm=tuple(round(mm, 6) for mm in voxel_edges_mm(affine)),
            orientation=orientation(affine),
            affine=affine.tolist(),
            kind=segmentation.source_kind,
        ),
        classes=tuple(ClassVolume(*one) for one in classes),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        peak_memory_mb=round(peak_memory_bytes() / 2**20, 1),
        peak_gpu_memory_mb=_peak_gpu_memory_mb(),
    )


def record_failed(case: InputCase, error: Exception) -> CaseRecord:
    """The record of a case that failed, with the reason in one line."""
    log.debug("case %s failed", case.id, exc_info=error)
    cause = root_cause(error)
    message = one_line(cause).removeprefix(f"case {case.id}: ")  # the record says it
    if not isinstance(cause, ValueError | OSError):
        message = f"{type(cause).__name__}: {message}"
    return CaseRecord(case.id, "failed", tuple(str(path) for path in case.images), error=message)


def provenance(
    models: Sequence[Model],
    inference: InferenceOptions,
    postprocessing: PostprocessingOptions,
    outputs: OutputOptions,
) -> dict[str, Any]:
    """What decides whether an earlier result is the same one, as JSON: weights, settings, and which files there are."""
    document: dict[str, Any] = {
        "runs": [
            {"name": model.name, "checkpoint_sha256": model.sha256, "results_id": model.results_id} for model in models
        ],
        "settings": {"passes": asdict(inference), **asdict(postprocessing)},
        "formats": list(outputs.formats),
        "per_structure": outputs.per_structure,
        "probabilities": list(outputs.probabilities),
        "preview": outputs.preview,
    }
    if outputs.label_values not in ((), tuple(range(len(outputs.class_names)))):
        document["label_values"] = list(outputs.label_values)
    return json.loads(json.dumps(document))  # lists for tuples, as it comes back from a file


def _peak_gpu_memory_mb() -> float | None:
    return round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_initialized() else None


def content_of(path: Path) -> FileContent:
    """Read what a file holds. Raises OSError."""
    return FileContent(path.stat().st_size, sha256_of(path))
