"""Find out whether a case was already segmented in the same way, so that it need not be done again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from networks.sliding_window import STEP
from pipeline.files.atomic import FileError
from pipeline.files.json_files import read_json
from pipeline.inference.inputs import InputCase
from pipeline.inference.record import CaseRecord, content_of, record_failed
from pipeline.writers.outputs import OutputOptions
from pipeline.writers.segmentation import SegmentationError

log = logging.getLogger(__name__)


def reusable_record(
    case: InputCase, outputs: OutputOptions, made_by: Mapping[str, Any], *, renew: bool = False
) -> CaseRecord | None:
    """Judge a case's earlier result.

    A scan counts as the same by its files' names, sizes and times of change, however its path is spelled; where it lies
    elsewhere, or was put there since, by its content.

    Args:
        case: the scan.
        outputs: where its result would lie.
        made_by: what would make it now, see `provenance`.
        renew: a result that runs of these names made with weights that they no longer have is to be made again.

    Returns:
        The earlier record, as skipped; a failed record where another run, other settings or a person made the result,
        which is not overwritten unasked; None where the case is to be done: never finished, a file is missing, the scan
        was replaced, or its result is to be renewed.
    """
    path = outputs.record_file(case.id)
    if not path.exists():
        return None
    try:
        earlier = _read_record(path)
        is_of_these_weights = _made_alike(earlier, made_by)
        if not is_of_these_weights and not (renew and _made_alike(earlier, made_by, weights_matter=False)):
            reason = "this case was segmented by another run or with other settings"
            raise SegmentationError(f"{path}: {reason}; give --overwrite or another --output")
        is_whole = _is_whole(earlier, outputs.folder)
        is_current = _is_of_this_scan(earlier, case, path) and is_whole and is_of_these_weights
    except SegmentationError as error:
        return record_failed(case, error)
    except OSError:  # reading the scan, or writing the results, says what is wrong
        return None
    return replace(earlier, status="skipped") if is_current else None


def _read_record(path: Path) -> CaseRecord:
    try:
        return CaseRecord.from_document(read_json(path))
    except (FileError, SegmentationError) as error:
        reason = str(error) if isinstance(error, FileError) else f"{path}: {error}"
        raise SegmentationError(f"{reason}; or give --overwrite to make it again") from error


def _is_of_this_scan(earlier: CaseRecord, case: InputCase, path: Path) -> bool:
    """False where the scan was replaced. Raises SegmentationError where it is another scan, OSError."""
    before, now = [Path(image).resolve() for image in earlier.source], [image.resolve() for image in case.images]
    if earlier.source_state == case.state:
        # The same files in another order of channels are another scan.
        if before == now and not (earlier.source_content and case.was_touched_after(path.stat().st_mtime_ns)):
            return True
        if _has_same_content(earlier, case):
            return True
    if sorted(before) == sorted(now):
        return False
    raise SegmentationError(
        f"{path}: this case was segmented from another scan, {', '.join(earlier.source)}; "
        "give --overwrite or another --output"
    )


def _has_same_content(earlier: CaseRecord, case: InputCase) -> bool:
    content = case.content
    if earlier.source_content:
        return earlier.source_content == content
    try:
        return InputCase(case.id, tuple(map(Path, earlier.source))).content == content
    except OSError:
        log.warning(
            "case %s: taken for the scan that was segmented, %s, by its name, size and time alone, since that is gone",
            case.id, ", ".join(earlier.source),
        )  # fmt: skip
        return True


def _is_whole(earlier: CaseRecord, folder: Path) -> bool:
    """False where a file is missing. Raises SegmentationError where one holds something else by now, OSError."""
    for name in earlier.files:
        file = folder / name
        if not file.is_file():  # a record may name anything, a pipe too
            return False
        if name in earlier.contents and content_of(file) != earlier.contents[name]:
            raise SegmentationError(
                f"{file}: was changed after it was written; move it away to keep it, or give --overwrite to make it "
                "again"
            )
    return True


def _made_alike(earlier: CaseRecord, made_by: Mapping[str, Any], *, weights_matter: bool = True) -> bool:
    """Whether a result would be made in the same way again; by runs of the same names, where weights do not matter.

    "auto" is content with what another machine computed in; a precision by name is not.
    """
    asked_before, before = _without_precision(earlier.made_by or {})
    asked_now, now = _without_precision(made_by)
    if _without_weights(before) != _without_weights(now) or (weights_matter and not _of_same_weights(before, now)):
        return False
    used = earlier.precision or (asked_before,)  # earlier versions wrote what they used
    return asked_now in ("auto", asked_before) or all(one == asked_now for one in used)


def _of_same_weights(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the runs of two results had equal files, or files from which equal results follow."""
    pairs = zip(before["runs"], now["runs"], strict=True)
    ids = ("checkpoint_sha256", "results_id")
    return all(isinstance(one, dict) and any(one.get(key) == other[key] != "" for key in ids) for one, other in pairs)


def _without_precision(made_by: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    settings = dict(made_by.get("settings") or {})
    passes = dict(settings.get("passes") or {})
    asked = str(passes.pop("precision", ""))
    passes.setdefault("step", STEP)  # earlier versions had no other
    return asked, {**made_by, "settings": {**settings, "passes": passes}}


def _without_weights(made_by: Mapping[str, Any]) -> dict[str, Any]:
    runs = made_by.get("runs")
    if not isinstance(runs, list):
        return dict(made_by)
    return {**made_by, "runs": [run.get("name") if isinstance(run, dict) else run for run in runs]}
