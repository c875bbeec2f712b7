"""Name an entry by the content of its source files, the chain's parameters and the versions of code and libraries."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.cache.entry import VERSION, CacheError
from pipeline.cache.folder import SOURCES
from pipeline.files.checked_lines import append_line, whole_lines
from pipeline.files.regular import sha256_of
from transforms.io.detached import files_behind, may_need_others

SETTLED_NS = 2_000_000_000
"""A file changed less long ago may change again without its time stamp changing; it is read again each time."""

LIBRARIES = ("monai", "torch", "numpy", "scipy", "SimpleITK", "nibabel", "pydicom")
"""What reads and resamples volumes beside our own code: another version may compute other voxels."""


class SourceIndex:
    """Content hashes of source files; a file whose size, times and inode are as they were is not read again.

    Reads its file when it is first asked. A data set of masks has a million lines: one index serves a process.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / SOURCES
        self._n_bytes_read = 0

    @functools.cached_property
    def _known(self) -> dict[tuple[str, int, int, int, int], str]:
        self._n_bytes_read = self._n_bytes()
        return dict(_index_lines(self._path))

    def read(self) -> None:
        """Read the file now, if that was not done."""
        _ = self._known

    def read_again(self) -> None:
        """Take over what other processes have hashed since this one read the file."""
        if self._n_bytes() != self._n_bytes_read:
            self._n_bytes_read = self._n_bytes()
            self._known.update(_index_lines(self._path))

    def _n_bytes(self) -> int:
        with contextlib.suppress(OSError):
            return self._path.stat().st_size
        return 0

    def content(self, path: str | os.PathLike[str], *, may_read: bool = True) -> str:
        """SHA-256 of a file's bytes, of the files in a folder, or of a header and its data file.

        Raises:
            OSError: a file cannot be read.
            LookupError: it is not known, and may not be read.
        """
        path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve would follow links whose target may be exchanged)
        status = path.stat()  # once a file: on a network disk each question takes a millisecond
        is_folder = stat.S_ISDIR(status.st_mode)
        if not is_folder and not may_need_others(path):
            return self._file_content(path, status, may_read)
        files = files_behind(path)
        contents = [self._file_content(file, file.stat(), may_read) for file in files]
        if files == [path]:
            return contents[0]
        # what a series' files are called says nothing; the order of header and data does
        return hashlib.sha256(json.dumps(sorted(contents) if is_folder else contents).encode()).hexdigest()

    def _file_content(self, path: Path, status: os.stat_result, may_read: bool) -> str:
        stamp = (str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        if stamp in self._known:
            return self._known[stamp]
        if not may_read:
            raise LookupError(path)
        content = sha256_of(path)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS:
            self._remember(stamp, content)
        return content

    def _remember(self, stamp: tuple[str, int, int, int, int], content: str) -> None:
        self._known[stamp] = content
        # a cache that may only be read still serves; its sources are then hashed at every start
        with contextlib.suppress(OSError):
            append_line(self._path, json.dumps([*stamp, content]))


@functools.cache
def code_version() -> str:
    """Identify the code that prepares: the transforms package without comments and docstrings, and its libraries."""
    spec = importlib.util.find_spec("transforms")
    roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    files = sorted((file.relative_to(root).as_posix(), file) for root in roots for file in Path(root).rglob("*.py"))
    code = [[name, without_comments(file.read_text(encoding="utf-8"))] for name, file in files]
    versions = [importlib.metadata.version(library).partition("+")[0] for library in LIBRARIES]
    return sha256([code, versions])[:16]


def identify_chain(key: Mapping[str, Any], n_classes: int) -> tuple[dict[str, Any], str]:
    """Return the parameters as JSON has them, and 16 hex digits for them, classes and code. Raises CacheError."""
    try:
        parameters = json.loads(json.dumps(dict(key), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CacheError(f"cache key: {error}; it takes plain numbers, strings, lists and mappings") from error
    return parameters, sha256([VERSION, code_version(), parameters, n_classes])[:16]


def contents_of(value: Any, sources: SourceIndex, *, may_read: bool = True) -> Any:
    """The value with every path replaced by what the file holds. Raises as `SourceIndex.content` does."""
    if isinstance(value, str | os.PathLike):
        return sources.content(value, may_read=may_read)
    if isinstance(value, list | tuple):
        return [contents_of(one, sources, may_read=may_read) for one in value]
    return int(value)


def sha256(value: Any) -> str:
    """SHA-256 (hex) of a value of plain types, the same in every process and on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def without_comments(source: str) -> str:
    """Return the code alone: comments, formatting and strings that only document change no voxel.

    A string that is a statement of its own documents, wherever it is: under a constant or a field, too.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            code = [statement for statement in body if not _only_documents(statement)]
            node.body = code or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _only_documents(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr):
        return False
    return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def _index_lines(path: Path) -> Iterator[tuple[tuple[str, int, int, int, int], str]]:
    """Every line that is whole and makes sense; the file of another one is hashed again."""
    with contextlib.suppress(OSError):
        for line in whole_lines(path):
            with contextlib.suppress(Exception):  # whatever a damaged line holds, its file is hashed again
                name, size, mtime, ctime, inode, content = json.loads(line)
                if re.fullmatch(r"[0-9a-f]{64}", content):
                    yield (str(name), int(size), int(mtime), int(ctime), int(inode)), content
