"""The text headers of NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) files as fields. Reads no voxels.

What programs could read in different ways is refused: control characters, a field twice, a line that is not a field.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from transforms.io.errors import VolumeError

_HEADER_LIMIT = 2**20
# NRRD ends a line at a lone carriage return, C a text at a zero byte; nobody writes them, or other control characters.
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
# NRRD: a name up to the first ": ", in any case; "key:=value" and "# …" are remarks, "NRRD0004" is the first line.
_NRRD_FIELD = re.compile(r"([^:#][^:]*): [ \t]*(.*)")
_NRRD_REMARK = re.compile(r"NRRD\d{4}$|#|[^:]+:=|[^:]+:[^ ].*:=")
# MetaImage: both signs separate, and any number of them does; an empty value would be filled from the next line.
_META_FIELD = re.compile(r"([^=: \t][^=:]{0,199}?)[ \t]*[=:][ \t]*([^=: \t].*)")
_META_LOCAL = ("LOCAL", "Local", "local")  # no other spelling: ITK takes that for a file's name


def is_nrrd(path: Path) -> bool:
    """Whether a header is NRRD's by the file's name; the others are MetaImage's."""
    return path.suffix.lower() in (".nrrd", ".nhdr")


def read_header(path: Path) -> tuple[dict[str, str], str | None]:
    """Return a header's fields, and the name of the file that holds the voxels; None: they follow in the same file.

    The names of a NRRD's fields are in lower case without spaces, as it takes "datafile", too; upper and lower case of
    a MetaImage's differ, as they do for ITK.

    Raises:
        VolumeError: a line that is not a field, a field twice, control characters, no ElementDataFile at the end of a
            MetaImage's header.
        OSError: the file cannot be read.
    """
    if is_nrrd(path):
        fields = _nrrd_fields(path)
        return fields, fields.get("datafile")
    fields = _meta_fields(path)
    name = fields["ElementDataFile"]
    return fields, None if name in _META_LOCAL else name


def _nrrd_fields(path: Path) -> dict[str, str]:
    fields: list[tuple[str, str]] = []
    for line in header_lines(path):
        if not line:  # without one the file ends with its header: the voxels are elsewhere
            break
        field = _NRRD_FIELD.fullmatch(line)
        if field is not None:
            fields.append((field[1].lower().replace(" ", ""), field[2]))
        elif not _NRRD_REMARK.match(line):
            expected = 'lines like "name: value" in the header'
            raise VolumeError("unreadable", path, expected, repr(line[:80]), "save it again")
    return _once(fields, path)


def _meta_fields(path: Path) -> dict[str, str]:
    fields: list[tuple[str, str]] = []
    for line in header_lines(path):
        field = _META_FIELD.fullmatch(line)
        if field is None:
            expected = 'lines like "name = value" in the header'
            raise VolumeError("unreadable", path, expected, repr(line[:80]), "save it again")
        fields.append((field[1], field[2].rstrip(" \t")))
        if field[1] == "ElementDataFile":
            return _once(fields, path)
    remedy = "copy it again; it is truncated or damaged"
    raise VolumeError("unreadable", path, "ElementDataFile at the header's end", "none", remedy)


def header_end(path: Path) -> int:
    """Return the byte behind a header, where voxels follow in the same file. Raises OSError."""
    with path.open("rb") as file:
        for line in iter(file.readline, b""):
            if not line.strip(b"\r\n") if is_nrrd(path) else line.startswith(b"ElementDataFile"):
                break
        return file.tell()


def header_lines(path: Path) -> Iterator[str]:
    """Yield a header's lines, without their ends. Raises VolumeError for what programs end in different places."""
    n_read = 0
    with path.open("rb") as file:
        while raw := file.readline(_HEADER_LIMIT):
            n_read += len(raw)
            line = raw.removesuffix(b"\n").removesuffix(b"\r")
            if n_read >= _HEADER_LIMIT or _CONTROL.search(line):
                remedy = "copy it again; it is damaged"
                raise VolumeError("unreadable", path, "lines of text as a header", repr(line[:80]), remedy)
            yield os.fsdecode(line)  # as a file's name would be


def _once(fields: list[tuple[str, str]], path: Path) -> dict[str, str]:
    for name, count in Counter(name.lower() for name, _ in fields).items():
        if count > 1:  # which of them counts is not the same in every program
            raise VolumeError("unreadable", path, f"{name} once in the header", "it twice", "save it again")
    return dict(fields)
