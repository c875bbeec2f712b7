"""Read and write strict JSON files."""

from __future__ import annotations

import json
import math
import numbers
import os
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pipeline.files.atomic import FileError, write_atomically
from pipeline.files.regular import read_regular


def now() -> str:
    """The local time as the files of a run write it: "YYYY-MM-DD HH:MM:SS"."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


LARGEST_JSON = 64 * 2**20
"""Bytes; ten thousand epochs take under 2 MB, so a larger file is not one of ours and is not read into memory."""

RESTORE_ADVICE = "restore the file from a copy, or leave this run out"


def plain(value: Any) -> Any:
    """Rebuild a record from dicts and lists, all the way down; numbers, texts and the keys of mappings stay."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def null_for_undefined(value: Any) -> Any:
    """Rebuild a value from JSON's own types: NaN and infinities become None, tuples lists, paths texts."""
    if isinstance(value, Mapping):
        return {str(key): null_for_undefined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_undefined(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document atomically as strict JSON in UTF-8; NaN and infinities become null."""
    text = json.dumps(null_for_undefined(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # a path that is not valid UTF-8 reaches us as lone surrogates: JSON can say those, as \udcXX, UTF-8 cannot
    write_atomically(path, lambda stream: stream.write(text.encode("utf-8", errors="backslashreplace")))


def read_json(path: Path, *, largest: int | None = LARGEST_JSON) -> dict[str, Any]:
    """Read one JSON object; raises FileError, with the file, for anything else: NaN, or over `largest` bytes, too."""
    try:
        document = json.loads(read_regular(path, largest).decode("utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}); {RESTORE_ADVICE}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: is not valid JSON ({error}); {RESTORE_ADVICE}") from error
    if not isinstance(document, dict):
        raise FileError(f"{path}: expected a JSON object, found {kind_of(document)}; {RESTORE_ADVICE}")
    return document


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is not JSON")


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), f"the number {value!r:.20}")
