"""Remove what an earlier prediction of a case wrote, so that none of it lies beside the new result."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from pathlib import Path

from pipeline.console.text import some_of
from pipeline.files.atomic import FileError, remove_durably, remove_half_written
from pipeline.files.json_files import read_json
from pipeline.inference.claims import CaseClaims
from pipeline.inference.inputs import InputCase
from pipeline.inference.record import CaseRecord, FileContent, content_of
from pipeline.writers.outputs import OutputOptions
from pipeline.writers.segmentation import SegmentationError

log = logging.getLogger(__name__)


def remove_earlier(case: InputCase, outputs: OutputOptions, *, was_killed: bool = True) -> None:
    """Remove, for good, the files that a case's record names and that hold what it says, then the record, and what a
    killed process left half-written.

    In this order, so that after a kill between two of them the record still names the others. Until the new record is
    written the case counts as unfinished, so that a failure or kill between two files leaves none of them under a
    record that does not describe it. Raises FileError.

    was_killed: False where no process was killed over this case since the output folder was tidied. A folder of fifty
        thousand results takes a tenth of a second to look through, which is not done for every case.
    """
    record = outputs.record_file(case.id)
    try:
        contents = CaseRecord.from_document(read_json(record)).contents
    except (FileError, SegmentationError):  # none, or a damaged one, which is to be made again
        contents = {}
    for path in _results_there(case, outputs):
        if _holds(path, contents.get(path.relative_to(outputs.folder).as_posix())):
            remove_durably(path)
            with contextlib.suppress(OSError):  # the folders of a case that hold something else stay
                for folder in path.relative_to(outputs.folder).parents[:-1]:
                    (outputs.folder / folder).rmdir()
    remove_durably(record)
    paths = [*(file.path for file in outputs.files(case.id)), record]
    for path in [path for path in paths if was_killed and path.parent == outputs.folder]:
        remove_half_written(path)
    for folder in sorted({path.parent for path in paths} - {outputs.folder}):
        remove_half_written(folder)


def refuse_others(case: InputCase, outputs: OutputOptions, claims: CaseClaims) -> None:
    """Raise SegmentationError where files of another origin have the names of a case's results: no record names them,
    nor does the lock that a killed process left."""
    if outputs.record_file(case.id).exists():
        return
    files = [file.path for file in outputs.files(case.id)]
    there = [path for path in files if path.exists() and not claims.is_of_killed(case.id, path)]
    if there:
        raise SegmentationError(
            f"{there[0]}: is there already and is no finished result of this case (it has no "
            f"{outputs.record_file(case.id).name}); move it away or choose another --output, or give --overwrite to "
            "replace it"
        )


def warn_of_others(case: InputCase, outputs: OutputOptions, written: Collection[Path]) -> None:
    """Warn of files that others would take for the result of a case and that are not of those just `written`."""
    others = [path for path in _results_there(case, outputs) if path not in written]
    if others:
        names = some_of([path.relative_to(outputs.folder) for path in others], 3)
        log.warning(
            "case %s: in %s, %s may be taken for this result, but is of another origin or was changed, so it was left; "
            "move it away", case.id, outputs.folder, names,
        )  # fmt: skip


def _results_there(case: InputCase, outputs: OutputOptions) -> list[Path]:
    sources = {path.resolve() for path in case.files}
    return [path for path in outputs.files_there(case.id) if path.resolve() not in sources]


def _holds(path: Path, content: FileContent | None) -> bool:
    try:
        return content is not None and content_of(path) == content
    except OSError:
        return False
