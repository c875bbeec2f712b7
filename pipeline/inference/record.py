"""The record of a segmented case: what was done and by what; written last, so that it marks a finished case.

Decides whether an earlier record still holds. Segments and writes nothing itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch

from pipeline.files.atomic import FileError
from pipeline.files.json_files import read_json
from pipeline.inference.inputs import InputCase
from pipeline.inference.model import Model
from pipeline.writers.outputs import Wanted
from pipeline.writers.segmentation import Segmentation, SegmentationError

log = logging.getLogger(__name__)

Status = Literal["done", "skipped", "failed"]


def done(
    case: InputCase,
    segmentation: Segmentation,
    wanted: Wanted,
    made_by: dict[str, Any],
    *,
    state: str,
    voxels_removed: int,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The record of a finished case: geometry, volumes in ml, files, timings in s, the peak of memory in MiB.

    `state` is `case.state` from before it was read.
    """
    affine = segmentation.affine
    table = zip(segmentation.class_names, segmentation.colours, segmentation.voxels, strict=True)
    return {
        "case": case.id,
        "status": "done",
        "source": [str(path) for path in case.images],
        "source_state": state,
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
        "voxels_removed": voxels_removed,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        **_peak_memory(),
        "made_by": made_by,
    }


def failed(case: InputCase, error: Exception) -> dict[str, Any]:
    """The record of a case that failed, with the reason in one line."""
    log.debug("case %s failed", case.id, exc_info=error)
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        message = "not enough memory; try --roi 96 96 96, --device cpu, or without --tta"
    elif not isinstance(error, ValueError | OSError):
        message = f"{type(error).__name__}: {message}"
    return {"case": case.id, "status": "failed", "source": [str(p) for p in case.images], "error": message}


def earlier(case: InputCase, wanted: Wanted, made_by: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished case, as skipped; None where it is still to be done, or again: a file has gone, or the
    scan was replaced. What another run or other settings made is not overwritten unasked: a failure."""
    path = wanted.record_file(case.id)
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except FileError as error:
        return failed(case, SegmentationError(f"{error}; or give --overwrite"))
    if record.get("made_by") != made_by or record.get("source") != [str(image) for image in case.images]:
        return failed(
            case,
            SegmentationError(
                f"{path}: this case was segmented by another run, with other settings or from another file; "
                "give --overwrite or another --output"
            ),
        )
    try:
        is_whole = all(file.exists() for file in wanted.files(case.id)) and record.get("source_state") == case.state
    except OSError:  # reading the scan says what is wrong with it
        return None
    return {**record, "status": "skipped"} if is_whole else None


def made_by(models: Sequence[Model], settings: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """What decides whether an earlier result is the same one: weights, settings, and what was written."""
    document = {
        "runs": [{"name": model.name, "checkpoint_sha256": _sha256(model.path)} for model in models],
        "settings": dict(settings),
        "formats": list(wanted.formats),
        "per_structure": wanted.per_structure,
        "probabilities": list(wanted.probabilities),
        "preview": wanted.preview,
    }
    return json.loads(json.dumps(document))  # lists for tuples, as it comes back from a file


def _peak_memory() -> dict[str, float]:
    """MiB this process held at most since it began, and on a GPU what torch allocated there at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"peak_memory_mb": round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10, 1)}
    if torch.cuda.is_initialized():
        found["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
