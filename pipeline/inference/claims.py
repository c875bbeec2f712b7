"""Share an output folder between processes: a case that one of them works on is left alone by the others."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from pipeline.files.atomic import FileError, make_folder, remove_half_written, write_error
from pipeline.files.lock import Lock, lock_holder, take_lock
from pipeline.writers.outputs import OutputOptions


class CaseTakenError(ValueError):
    """Another process works on a case; the message says which."""

    is_input_error = True


class CaseClaims:
    """The cases of an output folder that this process works on, each by a lock of its own; a context manager.

    A claim ends with its process, however that dies. A case is claimed before its earlier result is judged and released
    after its record is written, so that files and record are always one process's.
    """

    def __init__(self, outputs: OutputOptions) -> None:
        self._outputs = outputs
        self._locks: dict[str, Lock] = {}

    def claim(self, case: str) -> None:
        """Take a case.

        Raises:
            CaseTakenError: another process has it. FileError: the folder cannot be written.
        """
        path = self._outputs.lock_file(case)
        make_folder(path.parent)
        try:
            lock = take_lock(path)
        except PermissionError as error:
            if not os.access(path, os.F_OK):
                raise write_error(path.parent, error) from error
            raise CaseTakenError(
                f"another user segments this case into {self._outputs.folder} or was stopped over it; run the same "
                f"command again when that has ended, or have {path.name} removed there"
            ) from error
        except OSError as error:
            raise write_error(path.parent, error) from error
        if lock is None:
            raise CaseTakenError(
                f"{lock_holder(path)} segments this case into {self._outputs.folder} now; run the same command again "
                "when that has ended"
            )
        self._locks[case] = lock
        for line in lock.left_lines:  # until the case is finished
            lock.add(line)

    def remove_left(self, case: str) -> None:
        """Remove the lock of a finished case whose process was killed right after the record or while it made the case
        again, and what that one had begun to write, unless the lock is held."""
        with contextlib.suppress(CaseTakenError, FileError, OSError):
            if self._outputs.lock_file(case).exists():
                self.claim(case)
                self.release(case)
                for folder in {file.path.parent for file in self._outputs.files(case)}:
                    remove_half_written(folder)

    def note_written(self, case: str, temporary: Path, path: Path) -> None:
        """Note in the lock of a claimed case that a file of it is about to be renamed to `path`; see `is_of_killed`.

        Raises OSError.
        """
        self._locks[case].add(self._note(temporary, path))

    def was_left(self, case: str) -> bool:
        """Whether the process that had a claimed case before was killed over it."""
        return case in self._locks and bool(self._locks[case].left)

    def is_of_killed(self, case: str, path: Path) -> bool:
        """Whether a process that was killed over a claimed case wrote this file, and nobody changed it since."""
        return case in self._locks and self._note(path, path) in self._locks[case].left_lines

    def _note(self, file: Path, path: Path) -> str:
        status = file.stat()
        return json.dumps([path.relative_to(self._outputs.folder).as_posix(), status.st_size, status.st_mtime_ns])

    def release(self, case: str) -> None:
        """Let go of a case; of one that is not claimed, nothing happens.

        The lock's file stays where a process was killed over the case and its record is still missing: what that one
        had written of it is to be replaced by whoever finishes the case.
        """
        lock = self._locks.pop(case, None)
        if lock is not None:
            lock.release(keep=bool(lock.left) and not self._outputs.record_file(case).exists())

    def __enter__(self) -> CaseClaims:
        return self

    def __exit__(self, *_: object) -> None:
        for case in list(self._locks):
            self.release(case)
