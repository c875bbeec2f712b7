"""Locks between processes that share a cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.cache.entry import CannotWriteError
from pipeline.files.atomic import write_error


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold `path` as a lock; yield False at once where another process or thread has it and `wait` is false.

    It is the kernel's flock: a holder that dies, however it dies, lets go, so that no lock is ever stale.
    """
    descriptor = _take(path, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # explicitly: a forked child may share the open file
            os.close(descriptor)


def _take(path: Path, wait: bool) -> int | None:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise CannotWriteError(f"cache folder {write_error(path.parent, error)}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise CannotWriteError(
                f"cache folder {path.parent}: no file locks here ({error.strerror}); use a local disk"
            ) from error
        os.close(descriptor)  # its holder removed the file while we waited: begin again with the new one
