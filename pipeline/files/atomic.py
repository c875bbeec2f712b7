"""Write a file whole or not at all, remove what killed writers left, and say why a disk refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO


class FileError(ValueError):
    """A file or folder that cannot be named, written, read or continued: one line with path, fault and remedy."""

    is_input_error = True


_KEPT: ContextVar[dict[Path, Path] | None] = ContextVar("kept", default=None)
"""See `renamed_together`."""

UNFINISHED = ".writing"
"""Ends the name of a file being written; only a kill leaves one behind."""

_THIS_PROCESS = secrets.token_hex(3)
"""Tells this process from an earlier one of the same number, as containers start them."""

_HALF_WRITTEN = re.compile(
    r"\.(?P<name>.*)\.[0-9a-f]{8}\.(?P<host>[A-Za-z0-9-]*)\.(?P<process>\d+)\.(?P<token>[0-9a-f]+)\.[0-9a-f]+"
    + re.escape(UNFINISHED),
    re.DOTALL,
)
"""Name of a file being written: hidden, and below 255 bytes; see `_beginning`."""

_ABANDONED_S = 3600.0
"""Seconds after which a half-written file of another host counts as left by a dead process; writing takes seconds."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {
    **dict.fromkeys(_NO_SPACE, "free space on that disk"),
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose a disk that takes larger files",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make the folder writable or choose another one"),
    errno.ENOTDIR: "name another folder",
    errno.ENOENT: "there is no such folder (any more)",
}


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace the file at path, at one stroke, by what `write` puts into the binary stream it is given.

    Whoever opens the path, at any instant and also after a kill or a power cut, finds the old file or the new one,
    whole. The new file's mode follows the umask, as any file's does (mkstemp would hide it from the group).

    Raises:
        FileError: the disk refuses; the old file is then untouched and nothing is left beside it.
    """
    path = Path(path)
    name = f"{_beginning(path)}{os.getpid()}.{_THIS_PROCESS}.{secrets.token_hex(6)}{UNFINISHED}"
    try:
        replace_durably(path, path.with_name(name), write)
    except BaseException as error:
        if refusal := disk_error(error):
            raise write_error(path, refusal, untouched=os.path.lexists(path)) from error
        raise


@contextlib.contextmanager
def renamed_together(before: Callable[[dict[Path, Path]], object]) -> Iterator[dict[Path, Path]]:
    """Keep the files that this thread writes inside under temporary names until all are on the disk, then rename them.

    A renaming takes no space and changes neither size nor times of a file. Where anything fails, none of them stays.

    Args:
        before: called when all are on the disk, before the first is renamed; takes what is given inside.

    Yields:
        The temporary names, by the final ones, of the files that are on the disk.

    Raises:
        FileError: the disk refuses a renaming.
    """
    kept: dict[Path, Path] = {}
    renamed: list[Path] = []
    token = _KEPT.set(kept)
    try:
        try:
            yield kept
        finally:
            _KEPT.reset(token)
        before(kept)
        for path, temporary in kept.items():
            try:
                temporary.replace(path)
                renamed.append(path)
                _sync_folder(path.parent)
            except OSError as error:
                raise write_error(path, error) from error
    except BaseException:
        for path in [*renamed, *kept.values()]:
            with contextlib.suppress(FileError):
                remove_durably(path)
        raise


def replace_durably(path: Path, temporary: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write the new file `temporary`, flush it to the disk, rename it to path and make the renaming durable, too.

    Whatever `write` or the disk raises is passed on, and `temporary` removed. See `renamed_together`.
    """
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if (kept := _KEPT.get()) is not None:
            if path in kept:
                kept[path].unlink()
            kept[path] = temporary
            return
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _beginning(path: Path) -> str:
    """How the temporary names of a file begin that processes of this host write.

    A long name is cut, so its checksum tells it from others that begin alike.
    """
    name = path.name.encode(errors="replace")
    return f".{name[:120].decode(errors='ignore')}.{zlib.crc32(name):08x}.{_this_host()}."


def _this_host() -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())[:40]


def remove_half_written(path: Path) -> None:
    """Remove what killed processes had begun to write of a file; or of any file in path, where it is a folder.

    What a living process of this host writes stays, and what another host's has written to within the last hour.
    Raises OSError.
    """
    if path.is_dir():
        candidates = list(path.glob(f".*{UNFINISHED}"))
    else:
        beginning = _beginning(path).removesuffix(f"{_this_host()}.")
        candidates = [half for half in path.parent.glob(f".*{UNFINISHED}") if half.name.startswith(beginning)]
    for half in candidates:
        if _is_abandoned(half):
            half.unlink(missing_ok=True)


def _is_abandoned(half: Path) -> bool:
    """Whether nobody writes a half-written file any more; False for a file with another kind of name."""
    parts = _HALF_WRITTEN.fullmatch(half.name)
    if parts is None:
        return False
    if parts["host"] == _this_host():
        return not _is_alive(int(parts["process"]), parts["token"])
    try:
        return time.time() - half.stat().st_mtime > _ABANDONED_S
    except FileNotFoundError:
        return False


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


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, where it is missing. Raises FileError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def check_writable(folder: Path) -> None:
    """Check, before hours of work, that files could be written into a folder, which need not exist; makes nothing.

    Raises:
        FileError: it is a file, lies below one, or may not be written.
    """
    try:
        nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"expected a folder, found that {nearest} is not one")
        if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)}: {nearest}")
    except OSError as error:
        raise write_error(folder, error) from None


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


def full_disk_error(error: BaseException) -> FileError | None:
    """Word an error that only a full or read-only disk causes, wherever it came from; None for any other."""
    if not isinstance(error, OSError) or error.errno not in (*_NO_SPACE, errno.EROFS):
        return None
    return write_error(Path(error.filename if isinstance(error.filename, str) else "a temporary file"), error)


def write_error(path: Path, error: OSError, *, untouched: bool = False) -> FileError:
    """Word a disk's refusal: which file or folder, why, what to do, and whether an old file is there, `untouched`."""
    reason = error.strerror or error
    remedy = _REMEDIES.get(error.errno or 0, "check the folder")
    kept = "; the old file is untouched" if untouched else ""
    return FileError(f"{path}: cannot be written ({reason}); {remedy}{kept}")
