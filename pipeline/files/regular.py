"""Read a whole file of bounded size, and nothing that would never end, as a pipe or a device does."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """Return a file's bytes.

    Raises:
        OSError: it cannot be read, is a folder, pipe or device, or holds more than `most_bytes` (None: no limit).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe must not wait for a writer
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        # Python sets aside as many bytes as are asked for, however few the file has.
        content = file.read(-1 if most_bytes is None else min(status.st_size, most_bytes) + 1)
    if most_bytes is not None and len(content) > most_bytes:
        raise OSError(f"over {most_bytes >> 20} MB")
    return content
