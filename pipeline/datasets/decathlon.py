"""Read the Medical Segmentation Decathlon layout and MONAI datalists."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from pipeline.datasets.class_table import table_of_list
from pipeline.datasets.entry_keys import with_usual_keys
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.json_document import read_description
from pipeline.datasets.rows import (
    Listing,
    Request,
    Row,
    collect,
    only_label,
    parse_channel_names,
    parse_fold,
    parse_name,
    path_inside,
    unnamed_channels,
)
from transforms.io.load import volume_stem

_PARTS = {"training": "train", "validation": "val", "test": "test", "testing": "test"}
"""Keys of dataset.json that list cases, and their split. Without "validation" and folds, "training" is divided."""


def read_msd(request: Request) -> Listing:
    """Read a Decathlon dataset.json or MONAI datalist.

    "training" lists {"image", "label"} and maybe "fold"; "validation" and "test" where there are such cases. A datalist
    may have another name than dataset.json where the request names the file itself; it may then name any file.

    Raises:
        DatasetError: dataset.json cannot be read, or contradicts itself or the settings.
    """
    source = request.root if request.files.is_file(request.root) else request.root / "dataset.json"
    description = read_description(request.root, keys_twice=request.images_only)
    rows: list[Row] = []
    problems: list[DatasetError] = []
    for part, split in _PARTS.items():
        entries = _entries(description, part, source)
        has_folds = request.with_folds and part == "training" and any(map(_has_fold, entries))
        rows += collect(partial(_row, source, split, has_folds), entries, problems)
    if not any(row.split == "val" for row in rows):
        rows = [replace(row, split=None if row.split == "train" else row.split) for row in rows]
    channels = description.get("modality", description.get("channel_names"))
    channel_names = parse_channel_names(channels, source) if channels else unnamed_channels(rows)
    classes = None if request.images_only else request.classes(table_of_list(description, source))
    return Listing(tuple(rows), classes, channel_names, tuple(problems))


def is_datalist(content: Any) -> bool:
    """Say whether the content of a JSON file is a MONAI datalist: an object with lists "training", "testing", …"""
    return isinstance(content, dict) and any(isinstance(content.get(part), list) for part in _PARTS)


def lists_existing_images(description: dict[str, Any], root: Path, files: FileIndex) -> bool:
    """Say whether the training list of a dataset.json names images that exist."""
    source = root / "dataset.json"
    rows = collect(partial(_row, source, None, False), _entries(description, "training", source), [])
    return any(files.is_file(path) or files.is_folder(path) for row in rows for path in row.image)


def _entries(description: dict[str, Any], part: str, source: Path) -> list[Any]:
    entries = description.get(part) or []
    if not isinstance(entries, list):
        raise DatasetError("dataset", source, f'"{part}" to be a list', f"{entries!r:.60}", "write a list of cases")
    return entries


def _has_fold(entry: Any) -> bool:
    return isinstance(entry, dict) and "fold" in entry


def _row(source: Path, split: str | None, has_folds: bool, entry: Any) -> Row:
    """Return the row of an entry; where the list `has_folds`, the entry must have one."""
    if isinstance(entry, str | list):
        entry = {"image": entry}
    if isinstance(entry, dict):
        entry = with_usual_keys(entry, source)
    if not isinstance(entry, dict) or not entry.get("image"):
        expected = 'entries like {"image": …, "label": …}'
        raise DatasetError("dataset", source, expected, f"{str(entry)[:80]!r}", "name the files of each case")
    names = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    image = tuple(_file(name, source) for name in names)
    case = parse_name(entry.get("case")) or volume_stem(image[0])
    label = only_label(entry.get("label"), source, f"case {case}")
    return Row(
        case,
        image,
        label=_file(label, source) if label else None,
        split=split,
        subject=parse_name(entry.get("subject")),
        fold=parse_fold(entry.get("fold"), case, source) if has_folds else None,
    )


def _file(name: Any, source: Path) -> Path:
    """The file that a list names: below its folder, or anywhere where a person has named the list itself."""
    if source.name != "dataset.json" and isinstance(name, str) and PurePath(name).is_absolute() and "\0" not in name:
        return Path(name)
    return path_inside(source.parent, name, source)
