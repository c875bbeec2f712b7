"""A cache folder: which files in it are ours, its size and pruning, and one process at a time.

A folder holds CACHEDIR.TAG (the convention by which backups skip it), sources.jsonl (what unchanged source files hash
to), inspections.jsonl (what was found in source files) and `<chain>-<content>.bodycase` entries, beside `.tmp` and
`.lock` files of those being built.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.entry import CacheError, CannotWriteError, DamagedEntryError, read_header
from pipeline.cache.locks import locked
from pipeline.console.text import some_of
from pipeline.files.atomic import write_error
from pipeline.files.regular import read_regular

SUFFIX = ".bodycase"
TAG = "CACHEDIR.TAG"
TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"  # fixed by https://bford.info/cachedir/
    "# bodyseg: prepared cases, made again when missing; `bodyseg cache prune` removes them\n"
)
OURS = re.compile(r"(?P<chain>[0-9a-f]{16})-[0-9a-f]{32}(\.bodycase|\.tmp|\.lock)")
NEW_OR_OURS, ELSEWHERE = "a new folder or a cache, which backups may skip", "name a folder of its own in data.cache_dir"
_ON_EVERY_DISK = ("lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini", "@eaDir")
_POLL_S = 0.2
SOURCES = "sources.jsonl"
"""What source files hash to, see `key`."""
INSPECTIONS = "inspections.jsonl"
"""What was found in source files, see `checks.remembered_checks`."""


@dataclass(frozen=True)
class ChainInfo:
    """The entries of one chain."""

    chain: str
    """16 hex digits, with which their names begin."""
    parameters: dict[str, Any] | None
    """The chain's parameters; None if no entry can be read."""
    n_entries: int
    n_bytes: int
    last_used: float
    """Unix time."""


@dataclass(frozen=True)
class CacheInfo:
    """What a cache folder holds."""

    folder: Path
    chains: tuple[ChainInfo, ...]
    """Most recently used first."""
    n_entries: int
    n_bytes: int
    free_bytes: int
    """Bytes left on its disk."""


@dataclass(frozen=True)
class Pruned:
    """What was removed."""

    files: tuple[Path, ...]
    """In the order of removal."""
    n_bytes: int
    """What that gave back."""


def open_folder(folder: Path) -> None:
    """Make the folder and its tag where they are missing.

    Raises CannotWriteError if it cannot, CacheError if the tag is another's, or if files of other kinds lie in a folder
    without one: backups would skip them, too.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / TAG).exists():
            if others := others_in(folder):
                raise CacheError(
                    f"cache folder {folder}: expected {NEW_OR_OURS}, found one that holds {some_of(others, 3)}; "
                    f"{ELSEWHERE}"
                )
            fresh = folder / f"{TAG}.{uuid.uuid4().hex}"
            fresh.write_text(TAG_TEXT)
            fresh.replace(folder / TAG)
    except OSError as error:
        raise CannotWriteError(f"cache folder {write_error(folder, error)}") from error
    if not _is_ours(folder):
        raise CacheError(f"cache folder {folder} is another program's cache (see its {TAG}); name another folder")


def others_in(folder: Path) -> list[str]:
    """Names in a folder, which is there, that keep it from becoming a cache; none in a cache. Raises OSError.

    What is ours, hidden, or made by systems on every disk keeps none.
    """
    if (folder / TAG).exists():
        return []
    names = sorted(path.name for path in folder.iterdir())
    ours = {name for name in names if name in (SOURCES, INSPECTIONS) or OURS.fullmatch(name)}
    return [name for name in names if name not in {*ours, *_ON_EVERY_DISK} and not name.startswith((".", TAG))]


def cache_info(folder: str | os.PathLike[str]) -> CacheInfo:
    """Say what a cache folder holds. Raises CacheError if it is not one of ours."""
    folder = _known(folder)
    groups: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for path, status in _ours(folder, SUFFIX):
        groups.setdefault(path.name.partition("-")[0], []).append((path, status))
    chains = sorted((_chain_info(chain, files) for chain, files in groups.items()), key=lambda one: -one.last_used)
    return CacheInfo(
        folder=folder,
        chains=tuple(chains),
        n_entries=sum(one.n_entries for one in chains),
        n_bytes=sum(one.n_bytes for one in chains),
        free_bytes=shutil.disk_usage(folder).free,
    )


def prune(folder: str | os.PathLike[str], max_bytes: int, *, keep_chain: str | None = None) -> Pruned:
    """Remove least recently used entries until `max_bytes` are left, and what killed builds left behind.

    Entries of `keep_chain` count but stay. Only files with our names in a folder with our tag are touched; 0 empties
    it. A reader that holds an entry keeps its voxels; a training that misses one builds it again.

    Raises CacheError if the folder is not one of ours, or may not be written.
    """
    folder = _known(folder)
    try:
        removed = _remove_leftovers(folder)
        entries = sorted(_ours(folder, SUFFIX), key=lambda entry: entry[1].st_mtime_ns)
        excess = sum(status.st_size for _, status in entries) - max_bytes
        for path, status in entries:
            if excess <= 0:
                break
            if keep_chain is None or not path.name.startswith(f"{keep_chain}-"):
                path.unlink(missing_ok=True)
                removed.append((path, status.st_size))
                excess -= status.st_size
        if not _ours(folder, SUFFIX):
            for name in (SOURCES, INSPECTIONS):
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise CannotWriteError(f"cache folder {write_error(folder, error)}") from error
    return Pruned(tuple(path for path, _ in removed), sum(size for _, size in removed))


@contextlib.contextmanager
def one_at_a_time(folder: Path, group: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Let the processes of a group in one after another; `waiting` is called once where another one is in.

    Raises CacheError where the folder cannot be used.
    """
    open_folder(folder)
    name = hashlib.sha256(group.encode()).hexdigest()
    path = folder / f"{name[:16]}-{name[16:48]}.lock"
    said = False
    while True:
        with locked(path, wait=False) as alone:
            if alone:
                yield
                return
        if not said:
            waiting()
            said = True
        time.sleep(_POLL_S)  # and not in the kernel, where no signal would be answered


def _known(folder: str | os.PathLike[str]) -> Path:
    folder = Path(folder)
    if not os.path.lexists(folder):
        raise CacheError(f"{folder}: there is no such folder; name the cache folder of a training with --cache_dir")
    if not _is_ours(folder):
        raise CacheError(f"{folder} is not a cache folder of bodyseg: it has no {TAG} of ours; nothing was touched")
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        return read_regular(folder / TAG, 2 * len(TAG_TEXT)) == TAG_TEXT.encode()
    except OSError:
        return False


def _ours(folder: Path, suffix: str) -> list[tuple[Path, os.stat_result]]:
    """Regular files with one of our names, links not followed; one that vanishes meanwhile is left out."""
    found = []
    with os.scandir(folder) as files:
        for file in files:
            if file.name.endswith(suffix) and OURS.fullmatch(file.name):
                with contextlib.suppress(FileNotFoundError):
                    found.append((folder / file.name, file.stat(follow_symlinks=False)))
    return [(path, status) for path, status in found if stat.S_ISREG(status.st_mode)]


def _remove_leftovers(folder: Path) -> list[tuple[Path, int]]:
    """Remove half-written entries and locks whose builder is dead, which taking the lock proves."""
    removed = []
    names = {path.stem: 0 for suffix in (".tmp", ".lock") for path, _ in _ours(folder, suffix)}
    for name in names:
        with locked(folder / f"{name}.lock", wait=False) as alone:
            temporary = folder / f"{name}.tmp"
            if alone and temporary.exists():
                removed.append((temporary, temporary.stat().st_size))
                temporary.unlink()
    return removed


def _chain_info(chain: str, files: list[tuple[Path, os.stat_result]]) -> ChainInfo:
    parameters = None
    for path, _ in files:
        with contextlib.suppress(DamagedEntryError, OSError):
            parameters = read_header(path).chain
            break
    last_used = max(status.st_mtime for _, status in files)
    return ChainInfo(chain, parameters, len(files), sum(status.st_size for _, status in files), last_used)
