"""Hand what one process found out about the data to the others of its training on this machine.

A data set of masks has a million files. Each process would list them, ask the system about each and read what is
remembered of each, one process after another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import psutil
from rich.console import Console

from pipeline.cache.folder import one_at_a_time
from pipeline.compute.ranks import STARTED_BY, THIS_PROGRAM, read_rank
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config
from pipeline.files.atomic import FileError, remove_half_written, write_atomically
from pipeline.training.prepared_data import PreparedData

_KEPT_S = 24 * 3600.0
"""Age from which a file is that of a killed training: the others take it within minutes, or list for themselves."""


@contextmanager
def in_turn(cache_dir: Path, console: Console) -> Iterator[None]:
    """Let one process of a training prepare the data while those that torchrun or SLURM started beside it wait.

    Each machine has its own turn: its cache may lie on its own disk. No process waits in a collective meanwhile, which
    would give up after half an hour. The next one finds what the first has prepared and has no progress to show.
    """
    here = read_rank()
    if here.world_size == 1 or here.started_by == THIS_PROGRAM:
        console.quiet |= here.rank > 0
        yield
        return

    def waiting() -> None:
        console.print(f"Process {here.rank} waits for another one that prepares the data", highlight=False)
        console.quiet = True

    group = f"{socket.gethostname()} {here.address}:{here.port}"
    with one_at_a_time(cache_dir, group, waiting):
        yield
    console.quiet = here.rank > 0


class HandOver(contextlib.AbstractContextManager):
    """A file between the processes of one training, in a folder of this machine that its user alone can enter.

    It is Python's own format, which can run code: hence the folder. Where there is no such folder, or anything else is
    amiss, each process lists for itself. The file is gone when the training ends; that of a killed one goes when
    another training leaves its own, a day later or more.
    """

    _trained_until: ClassVar[float] = 0.0
    """When this process's last training ended; what was left before is not of the next one."""

    def __init__(self, n_here: int) -> None:
        """Begin, before anything is listed.

        Args:
            n_here: processes of the training on this machine.
        """
        here = read_rank()
        self._began = time.time()
        self._is_alone = n_here == 1
        self._starts_others = here.world_size == 1
        self._is_started = STARTED_BY in os.environ
        self._group: list[float | str] = [here.address, here.port]
        if self._starts_others or self._is_started:  # the others start later, so the starter's own life names them
            starter = int(os.environ.get(STARTED_BY, os.getpid()))
            with contextlib.suppress(psutil.NoSuchProcess):
                self._group = [starter, psutil.Process(starter).create_time()]
        self._left: Path | None = None

    def __exit__(self, *error: object) -> None:
        """Remove what was left."""
        HandOver._trained_until = time.time()
        if self._left is not None:
            with contextlib.suppress(OSError):
                self._left.unlink(missing_ok=True)

    def take(self, config: Config) -> PreparedData | None:
        """Return what another process has left for a training of these settings; None: nothing since this one began."""
        path = None if self._starts_others else self._path(config)
        if path is None:
            return None
        with contextlib.suppress(Exception):  # absent, or damaged in whatever way
            began, prepared = pickle.loads(path.read_bytes())  # noqa: S301  in a folder of this user alone
            if self._is_started or began >= max(psutil.Process().create_time(), HandOver._trained_until):
                return prepared if isinstance(prepared, PreparedData) else None
        return None

    def leave(self, config: Config, prepared: PreparedData) -> None:
        """Leave it for the others, if there are any."""
        path = self._path(config)
        if path is None:
            return
        prepared.contents(), prepared.lost_classes()  # asked of every case's entry once, and kept
        self._left = path
        with contextlib.suppress(OSError, FileError):  # a full disk: the others list for themselves
            _remove_left_behind(path.parent)
            write_atomically(path, lambda stream: pickle.dump((self._began, prepared), stream))

    def _path(self, config: Config) -> Path | None:
        folder = None if self._is_alone else _private_folder()
        named = json.dumps([self._group, as_mapping(config)])
        return folder and folder / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.data"


def _remove_left_behind(folder: Path) -> None:
    """Remove what killed trainings have left in the folder. Raises OSError."""
    remove_half_written(folder)
    for path in folder.glob("*.data"):
        if time.time() - path.stat().st_mtime > _KEPT_S:
            path.unlink(missing_ok=True)


def _private_folder() -> Path | None:
    """A folder for files of this user's processes, made if need be; None where others could put files into it."""
    folder = Path(tempfile.gettempdir(), f"bodyseg-{os.geteuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return folder if is_private else None
