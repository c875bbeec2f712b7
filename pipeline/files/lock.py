"""Lock a file between processes, also on network disks; a lock ends with its process, however that dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.files.atomic import write_error
from pipeline.files.json_files import now
from pipeline.files.regular import read_regular

log = logging.getLogger(__name__)

_TAKEN = frozenset({errno.EACCES, errno.EAGAIN})
_NO_LOCKS_HERE = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})
_POLL_S = 0.1
_LARGEST = 1 << 20
"""Bytes of a lock file that are read; a line of 100 a structure takes far less."""


@dataclass(frozen=True)
class Lock:
    """A locked file; it holds who locked it, and below that what its holder adds."""

    path: Path
    descriptor: int
    left: str = ""
    """What was in the file: its last holder was killed."""

    @property
    def left_lines(self) -> list[str]:
        """What its last holder had added."""
        return self.left.split("\n")[1:]

    def add(self, line: str) -> None:
        """Leave a line for the next holder, in case this process is killed. Raises OSError (a full disk)."""
        os.write(self.descriptor, f"\n{line}".encode())

    def release(self, *, keep: bool = False) -> None:
        """Let go, and remove the file unless it is to `keep` being taken for that of a process that was killed.

        Raises nothing: closing the file frees the lock in any case.
        """
        with contextlib.suppress(OSError):
            if not keep and _is_still(self.path, self.descriptor):
                self.path.unlink()
        os.close(self.descriptor)


def take_lock(path: Path) -> Lock | None:
    """Make and lock a file; None: another process holds it.

    A POSIX lock and no flock: child processes inherit an flock, and would hold it for seconds after a SIGKILL of their
    parent. It also holds over NFS, but not between threads of one process. Where the file system has no locks, a
    warning says so. Raises OSError if the file cannot be made.
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
            log.warning("%s: this file system has no locks; let one process at a time write there", path)
        if _is_still(path, descriptor):
            left = os.pread(descriptor, min(os.fstat(descriptor).st_size, _LARGEST), 0)
            lock = Lock(path, descriptor, left.decode(errors="replace"))
            holder = f"process {os.getpid()} on {socket.gethostname()} (since {now()})".encode()
            try:
                os.ftruncate(descriptor, os.write(descriptor, holder))
            except OSError:  # a full disk
                lock.release()
                raise
            return lock
        os.close(descriptor)  # its last holder ended, and removed it, between our opening and locking it


@contextlib.contextmanager
def alone(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Let one process in at a time; the others call `waiting` once, and wait where signals are answered.

    Raises FileError.
    """
    try:
        lock = take_lock(path)
        if lock is None:
            waiting()
        while lock is None:
            time.sleep(_POLL_S)
            lock = take_lock(path)
    except OSError as error:
        raise write_error(path.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock; raises OSError where the file cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _TAKEN
    finally:
        os.close(descriptor)
    return False


def lock_holder(path: Path) -> str:
    """Say who holds a lock, "process 4711 on host (since …)"; "another process" where the file does not say."""
    with contextlib.suppress(OSError):
        text = read_regular(path).decode(errors="replace").partition("\n")[0][:200].strip()
        return text if text.isprintable() and text else "another process"
    return "another process"


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
