"""The cases of one chain in a cache folder: which entry belongs to which case, and preparing one that is missing."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.cache.entry import (
    CacheError,
    CannotWriteError,
    DamagedEntryError,
    Entry,
    encode,
    read_entry,
    read_header,
    write_entry,
)
from pipeline.cache.folder import SUFFIX, open_folder
from pipeline.cache.key import SourceIndex, contents_of, identify_chain, sha256
from pipeline.cache.locks import locked
from pipeline.files.atomic import write_error
from transforms.chains import root_cause
from transforms.patches import PLACES_PER_CLASS

log = logging.getLogger(__name__)

TRIES = 5
"""How often an entry is prepared that is then gone again: somebody may prune the cache between writing and reading."""

T = TypeVar("T")


class CaseStore:
    """Cases prepared by a deterministic chain, each stored as one entry, named by what its source files hold.

    An index is a case's position in `items`. Every method raises CacheError where a source file cannot be read.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        chain: Callable[[Any], Any],
        *,
        folder: str | os.PathLike[str],
        key: Mapping[str, Any],
        n_classes: int,
        with_places: bool = False,
    ) -> None:
        """Open the folder, which is made if need be; for the arguments see `CachedDataset`.

        Raises:
            CacheError: `key` is not JSON-able, or the folder cannot be used.
        """
        self.items = [dict(item) for item in items]
        self.chain = chain
        self.folder = Path(folder)
        self.n_classes = n_classes
        self.with_places = with_places
        # Entries of one name must be alike, so places belong to the name.
        named_by = {**key, "places": PLACES_PER_CLASS} if with_places else key
        self.parameters, self.chain_id = identify_chain(named_by, n_classes)
        self._names: list[str | None] = [None] * len(self.items)
        self.sources = SourceIndex(self.folder)
        """What the source files hold; may be replaced by another index of the folder, which the process has read."""
        open_folder(self.folder)

    def __len__(self) -> int:
        """Count the cases."""
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the index of sources behind: another process reads it from the folder if it needs it."""
        return self.__dict__ | {"sources": SourceIndex(self.folder)}

    def case(self, index: int) -> str:
        """The id of a case."""
        return str(self.items[index]["case"])

    def path(self, index: int) -> Path:
        """The file of a case's entry, which need not exist; the sources are hashed the first time."""
        name = self._names[index]
        if name is None:
            name = self._names[index] = self._name(index)
        return self.folder / f"{name}{SUFFIX}"

    def is_in_place(self, index: int) -> bool:
        """Whether the entry has a whole header and its full length; mark it as used. Reading it checks the rest."""
        path = self.path(index)
        try:
            read_header(path)
        except (DamagedEntryError, OSError):
            return False
        with contextlib.suppress(OSError):  # a cache that may only be read still serves
            os.utime(path)
        return True

    def read(self, index: int, read: Callable[[Path], T]) -> T:
        """Read an entry with `read`; where it is missing or damaged, prepare it first.

        Raises:
            CacheError: the entry cannot be prepared or written; any error of the chain itself.
        """
        path = self.path(index)
        for _ in range(TRIES):
            try:
                return read(path)
            except (FileNotFoundError, NotADirectoryError):
                log.debug("case %s is not in the cache; preparing it", self.case(index))
            except DamagedEntryError as error:
                log.warning("case %s: %s; preparing it again", self.case(index), error)
            self.prepare(index, wait=True)
        return read(path)

    def prepare(self, index: int, *, wait: bool) -> bool:
        """Prepare an entry unless it has become whole; False if another process is at it and `wait` is false.

        Raises:
            CannotWriteError: the disk refuses.
            CacheError: the case's files changed while they were read; any error of the chain itself.
        """
        path = self.path(index)
        open_folder(self.folder)  # somebody may have removed it since, in the middle of a training
        with locked(path.with_suffix(".lock"), wait=wait) as alone:
            if not alone:
                return False
            with contextlib.suppress(DamagedEntryError, OSError):
                read_entry(path)
                return True
            entry, payload = self._prepared(index, path.stem)
            # The name was found before the files were read, hours ago in a large build: another content must not be
            # stored under it.
            if self._name(index) != path.stem:
                raise CacheError(f"case {self.case(index)}: its files have changed since they were hashed; start again")
            open_folder(self.folder)  # preparing a large case takes a minute
            try:
                write_entry(path, entry, payload)
            except OSError as error:
                raise CannotWriteError(f"cache entry {write_error(path, error)}") from error
            return True

    def _name(self, index: int) -> str:
        """Name the entry by the content of the source files, of which unchanged ones are not read again."""
        item = self.items[index]
        given = [name for name in ("image", "label") if item.get(name) is not None]
        try:
            content = {name: contents_of(item[name], self.sources) for name in given}
        except OSError as error:
            raise CacheError(f"case {self.case(index)}: {error.filename}: {error.strerror}") from error
        return f"{self.chain_id}-{sha256(content)[:32]}"

    def _prepared(self, index: int, name: str) -> tuple[Entry, np.ndarray]:
        case = self.case(index)
        try:
            prepared = self.chain(dict(self.items[index]))
            return encode(
                prepared,
                name=name,
                case=case,
                chain=self.parameters,
                n_classes=self.n_classes,
                with_places=self.with_places,
            )
        except Exception as error:
            root = root_cause(error)
            if isinstance(root, ValueError) and f"case {case}" not in str(root):
                raise CacheError(f"case {case}: {root}") from root
            if root is error:
                raise
            raise root from error
