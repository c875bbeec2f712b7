"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import secrets
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class FileError(ValueError):
    """A file or folder that cannot be named, written, read or continued: one line with path, fault and remedy."""

    is_input_error = True


UNFINISHED = ".writing"
"""Ends the name of a file being written; only a kill leaves one behind, and the run's next start removes it."""

_THIS_PROCESS = secrets.token_hex(3)
"""Tells this process from an earlier one of the same number, as containers start them."""

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space on that disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make the folder writable or choose another one"),
}


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace the file at path, at one stroke, by what `write` puts into the binary stream it is given.

    Whoever opens the path, at any instant and also after a kill or a power cut, finds the old file or the new one,
    whole. The new file's mode follows the umask, as any file's does (mkstemp would hide it from the group). Raises
    FileError where the disk refuses; the old file is then untouched and nothing is left beside it.
    """
    path = Path(path)
    temporary = path.with_name(f"{_beginning(path)}{os.getpid()}.{_THIS_PROCESS}.{secrets.token_hex(6)}{UNFINISHED}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if refusal := disk_error(error):
            raise write_error(path, refusal) from error
        raise


def _beginning(path: Path) -> str:
    """How the temporary names of a file begin that processes of this host write: hidden, and below 255 bytes.

    A long name is cut, so its checksum tells it from others that begin alike.
    """
    name = path.name.encode(errors="replace")
    host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())[:40]
    return f".{name[:120].decode(errors='ignore')}.{zlib.crc32(name):08x}.{host}."


def remove_half_written(path: Path) -> None:
    """Remove what killed processes of this host had begun to write of a file.

    Those of living ones stay, and those of other hosts, of which nothing is known here.
    """
    for half in path.parent.glob(f"{glob.escape(_beginning(path))}*{UNFINISHED}"):
        process, token = [*half.name.removeprefix(_beginning(path)).split("."), ""][:2]
        if process.isdecimal() and not _is_alive(int(process), token):
            half.unlink(missing_ok=True)


def _is_alive(process: int, token: str) -> bool:
    if process == os.getpid():
        return token == _THIS_PROCESS
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def remove_durably(path: Path) -> None:
    """Remove a file, if it is there, so that it is gone after a power cut, too. Raises FileError."""
    try:
        path.unlink()
        _sync_folder(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, error) from error


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, except on network file systems that cannot sync a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def disk_error(error: BaseException | None) -> OSError | None:
    """Find the OSError behind an exception: torch.save answers a full disk with an unrelated RuntimeError on top."""
    while isinstance(error, Exception) and not isinstance(error, OSError):
        # raised "from None", an error has no more to do with what went before
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error if isinstance(error, OSError) else None


def write_error(path: Path, error: OSError) -> FileError:
    """Word a disk's refusal: which file or folder, why, and what to do."""
    reason, remedy = error.strerror or error, _REMEDIES.get(error.errno or 0, "see to that folder")
    return FileError(f"{path}: cannot be written ({reason}); {remedy}; the old file is untouched")
