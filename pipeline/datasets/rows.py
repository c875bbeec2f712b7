"""A case as its data set writes it down: rows, safe paths inside a data set, CSV tables."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from pipeline.datasets.class_table import ClassTable, read_json
from pipeline.datasets.dataset import Label
from pipeline.datasets.errors import DatasetError

_SPLIT_OF_WORD = {
    "train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip


_MAX_CSV_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """A case as its data set writes it down."""

    id: str
    image: tuple[Path, ...]
    label: Label | None
    split: str | None = None
    """"train", "val" or "test"; None where the data set does not say."""
    subject: str | None = None
    """None where the data set does not say."""


@dataclass(frozen=True)
class Listing:
    """What a layout's reader found; `problems` says in one line what is wrong with each entry that gave no row."""

    rows: tuple[Row, ...]
    table: ClassTable
    channel_names: tuple[str, ...]
    problems: tuple[str, ...] = ()


Given = Sequence[str] | None
Reader = Callable[[Path, int | None, Given], Listing]
"""Folder, fold and class names wanted -> listing. No fold: images alone are wanted, without split and labels."""
Item = TypeVar("Item")
Made = TypeVar("Made")


def each(make: Callable[[Item], Made], items: Iterable[Item], problems: list[str]) -> list[Made]:
    """Return what `make` makes of the items; the message of each that it refuses is added to `problems`."""
    made = []
    for item in items:
        try:
            made.append(make(item))
        except DatasetError as error:
            problems.append(str(error))
    return made


def leaves(path: Path, root: Path, seen: dict[Path, bool]) -> bool:
    """Say whether a link leads a path below `root` out of it; `root` itself may be one, since the user named it.

    `seen` remembers folders: a data set has a hundred thousand masks in a thousand folders.
    """
    there = root.resolve()
    if path.parent not in seen:
        seen[path.parent] = not path.parent.resolve().is_relative_to(there)
    return seen[path.parent] or (path.is_symlink() and not path.resolve().is_relative_to(there))


def inside(root: Path, name: Any, source: Path) -> Path:
    """Return root / name for a name out of a data set's own file; refuse one that leads out of the data set."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise DatasetError(f"{source}: expected a file name, found {str(name)[:80]!r}")
    plain = Path(os.path.normpath(name))
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or plain.parts[:1] == ("..",):
        raise DatasetError(f"{source}: {name!r} leads out of the data set; list such files in a cases.csv of your own")
    return root / plain


def parse_split(word: str | None, case: str, source: Path) -> str | None:
    """Return "train", "val" or "test" for a word of a split column, None for an empty one."""
    if not word:
        return None
    if word.lower() not in _SPLIT_OF_WORD:
        raise DatasetError(f"case {case}: expected a split of train, val or test, found {word!r} in {source}")
    return _SPLIT_OF_WORD[word.lower()]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return a table's rows by column name (lower case); "," and ";" both separate."""
    try:
        if path.stat().st_size > _MAX_CSV_BYTES:
            raise DatasetError(f"{path}: expected a table of cases, found {path.stat().st_size} bytes")
        text = path.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0]
        lines = list(csv.reader(io.StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ","))
    except DatasetError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV ({error}); repair the file") from error
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    columns = [cell.strip().lower() for cell in lines[0]] if lines else []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise DatasetError(f"{path}: expected {len(columns)} columns in row {number}, found {len(line)}")
    return [dict(zip(columns, (cell.strip() for cell in line), strict=True)) for line in lines[1:]]


def read_description(root: Path) -> dict[str, Any]:
    description = read_json(root / "dataset.json")
    if not isinstance(description, dict):
        raise DatasetError(f"{root / 'dataset.json'}: expected an object with labels, found {str(description)[:60]!r}")
    return description


def parse_channel_names(channels: Any, source: Path) -> tuple[str, ...]:
    """Return channel names in order of their numbers: {"0": "CT"}, ["CT"] or "CT"."""
    if isinstance(channels, dict) and channels.keys() == {str(i) for i in range(len(channels))}:
        channels = [channels[str(i)] for i in range(len(channels))]
    channels = [channels] if isinstance(channels, str) else channels
    if not isinstance(channels, list) or not channels or not all(isinstance(name, str) for name in channels):
        raise DatasetError(f'{source}: expected channel_names like {{"0": "CT"}}, found {str(channels)[:60]!r}')
    return tuple(channels)


def list_folders(root: Path) -> list[Path]:
    return [path for path in list_visible(root) if path.is_dir()]


def list_visible(folder: Path) -> Iterable[Path]:
    """Return what a folder holds, sorted, without hidden files ("._case.nii.gz" of a Mac's archive)."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
