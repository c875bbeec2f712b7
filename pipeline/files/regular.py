"""Open and read regular files, and nothing that would never end, as a pipe or a device does."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

MOST_READS = 10
"""Of a file that is replaced each time while it is read; a training replaces its checkpoint once an epoch at most."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it. Raises OSError: it cannot be opened, or is a folder, pipe or device."""
    return os.fdopen(_regular(path, os.O_RDONLY), "rb")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_with_sha256(path: Path, read: Callable[[Path], Result]) -> tuple[Result, str]:
    """Return what `read` makes of a file and the SHA-256 of the same bytes: again where it was replaced in between.

    Raises OSError where it is replaced each time, or `sha256_of` cannot read it, and what `read` raises.
    """
    for _ in range(MOST_READS):
        before = _version(path)
        result = read(path)
        try:
            digest = sha256_of(path)
        except FileNotFoundError:  # removed in between
            continue
        if _version(path) == before:
            return result, digest
    raise OSError(f"{path}: expected a file that stays, found another one after each reading; try again later")


def _version(path: Path) -> tuple[int, ...]:
    """What changes with any change of a file; () where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def append_to_regular(path: Path) -> BufferedWriter:
    """Open a file, or make it, to write to its end. Raises OSError as `open_regular` does."""
    return os.fdopen(_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def _regular(path: Path, flags: int) -> int:
    # opening a pipe must not wait for its other end
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """Return a file's bytes.

    Raises:
        OSError: it cannot be read, is a folder, pipe or device, or holds more than `most_bytes` (None: no limit).
    """
    with open_regular(path) as file:
        # Python sets aside as many bytes as are asked for, however few the file has.
        content = file.read(-1 if most_bytes is None else min(os.fstat(file.fileno()).st_size, most_bytes) + 1)
    if most_bytes is not None and len(content) > most_bytes:
        raise OSError(f"over {most_bytes >> 20} MB")
    return content
