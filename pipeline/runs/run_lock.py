"""One training at a time in a run folder: a lock that ends with its process, however that dies. Writes nothing else."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files.atomic import FileError, write_error
from pipeline.files.json_files import now
from pipeline.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

_TAKEN = frozenset({errno.EACCES, errno.EAGAIN})
_NO_LOCKS_HERE = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})


@contextmanager
def only_training_in(folder: RunFolder) -> Iterator[None]:
    """Keep every other training out of a run's folder; what a dead process left there hinders nobody.

    Makes the folder, and removes it again if nothing was put into it. On a file system without locks it warns.
    Raises FileError, with the process that trains there, or with what hinders writing.
    """
    try:
        folder.lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(folder.lock)
    except OSError as error:
        raise write_error(folder.path, error) from error
    if descriptor is None:
        raise FileError(
            f"{folder.path}: {_holder(folder.lock)} is training there now; wait for it or stop it, or give this run "
            "another --exp_name"
        )
    try:
        yield
    finally:
        _release(folder, descriptor)


def _locked(path: Path) -> int | None:
    """Open and lock the file; None: somebody else has it.

    A POSIX lock and no flock: data workers inherit an flock, and would hold it for seconds after a SIGKILL of the
    training. It also holds over NFS.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN | _NO_LOCKS_HERE:
                os.close(descriptor)
                raise
            if error.errno in _TAKEN:
                os.close(descriptor)
                return None
            log.warning("%s: this file system has no locks; do not start a second training there", path)
        if _is_still(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} (since {now()})".encode())
            return descriptor
        os.close(descriptor)  # its last holder ended, and removed it, between our opening and locking it


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        said = path.read_text(errors="replace")[:200].strip()
        return said if said.isprintable() and said else "another process"
    return "another process"


def _release(folder: RunFolder, descriptor: int) -> None:
    # whatever fails here must not hide how the training ended; closing the file frees the lock in any case
    with contextlib.suppress(OSError):
        if _is_still(folder.lock, descriptor):
            folder.lock.unlink()
    os.close(descriptor)
    for empty in (folder.resume, folder.checkpoints, folder.path):
        with contextlib.suppress(OSError):
            empty.rmdir()
