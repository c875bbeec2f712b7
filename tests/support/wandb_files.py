"""What an offline run of Weights & Biases holds: a log of LevelDB's kind, a protocol buffer a record."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_HEADER, _BLOCK = 7, 32768
"""Bytes of the file's own header and of each record's, and of a block, which no record's header crosses."""

_FULL, _FIRST, _LAST = 1, 2, 4


class OfflineRun(NamedTuple):
    """The content of one file."""

    run_id: str
    project: str
    rows: list[dict[str, Any]]
    config: dict[str, Any]
    exit_code: int | None


def records(path: Path) -> Iterator[bytes]:
    """The records of a file."""
    content, position, parts = path.read_bytes(), _HEADER, b""
    while position + _HEADER <= len(content):
        if _BLOCK - position % _BLOCK < _HEADER:
            position += _BLOCK - position % _BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        position += _HEADER
        parts = (b"" if kind in (_FULL, _FIRST) else parts) + content[position : position + length]
        position += length
        if kind in (_FULL, _LAST):
            yield parts


def read_offline_run(path: Path) -> OfflineRun:
    """Read one run-ID.wandb."""
    from wandb.proto import wandb_internal_pb2  # optional

    found = OfflineRun("", "", [], {}, None)
    for content in records(path):
        record = wandb_internal_pb2.Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found = found._replace(run_id=record.run.run_id, project=record.run.project)
            found.config.update(_values(record.run.config.update))
        elif kind == "config":
            found.config.update(_values(record.config.update))
        elif kind == "history":
            found.rows.append(_values(record.history.item))
        elif kind == "exit":
            found = found._replace(exit_code=record.exit.exit_code)
    return found


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
