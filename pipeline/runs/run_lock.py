"""Let one training at a time work in a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.files.atomic import FileError, write_error
from pipeline.files.lock import lock_holder, take_lock
from pipeline.runs.run_folder import RunFolder


@contextmanager
def only_training_in(folder: RunFolder) -> Iterator[None]:
    """Keep every other training out of a run's folder; a lock left by a dead process is ignored.

    Makes the folder, and removes it again if nothing was put into it. On a file system without locks it warns.
    Raises FileError, with the process that trains there, or with why it cannot be written.
    """
    try:
        folder.lock.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder.lock)
    except OSError as error:
        raise write_error(folder.path, error) from error
    if lock is None:
        raise FileError(
            f"{folder.path}: {lock_holder(folder.lock)} is training there now; wait for it or stop it, or give this "
            "run another --exp_name"
        )
    try:
        yield
    finally:
        lock.release()
        for empty in (folder.resume, folder.checkpoints, folder.path):
            with contextlib.suppress(OSError):
                empty.rmdir()
