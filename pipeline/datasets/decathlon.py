"""Read the Medical Segmentation Decathlon layout and MONAI datalists."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.datasets.class_table import ClassTable, find_table, parse_table
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.json_document import read_description
from pipeline.datasets.rows import (
    Listing,
    Request,
    Row,
    collect,
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

    "training" lists {"image", "label"} and maybe "fold"; "validation" and "test" where there are such cases.

    Raises:
        DatasetError: dataset.json cannot be read, or contradicts itself or the settings.
    """
    root, source = request.root, request.root / "dataset.json"
    description = read_description(root)
    rows: list[Row] = []
    problems: list[DatasetError] = []
    for part, split in _PARTS.items():
        entries = _entries(description, part, source)
        has_folds = request.with_folds and part == "training" and any(map(_has_fold, entries))
        rows += collect(partial(_row, root, split, has_folds), entries, problems)
    if not any(row.split == "val" for row in rows):
        rows = [replace(row, split=None if row.split == "train" else row.split) for row in rows]
    channels = description.get("modality", description.get("channel_names"))
    channel_names = parse_channel_names(channels, source) if channels else unnamed_channels(rows)
    classes = None if request.images_only else request.classes(_own_table(description, root))
    return Listing(tuple(rows), classes, channel_names, tuple(problems))


def lists_existing_images(description: dict[str, Any], root: Path, files: FileIndex) -> bool:
    """Say whether the training list of a dataset.json names images that exist."""
    rows = collect(partial(_row, root, None, False), _entries(description, "training", root / "dataset.json"), [])
    return any(files.is_file(path) or files.is_folder(path) for row in rows for path in row.image)


def _entries(description: dict[str, Any], part: str, source: Path) -> list[Any]:
    entries = description.get(part) or []
    if not isinstance(entries, list):
        raise DatasetError("dataset", source, f'"{part}" to be a list', f"{entries!r:.60}", "write a list of cases")
    return entries


def _has_fold(entry: Any) -> bool:
    return isinstance(entry, dict) and "fold" in entry


def _own_table(description: dict[str, Any], root: Path) -> ClassTable | None:
    labels = description.get("labels")
    return parse_table(labels, root / "dataset.json") if labels else find_table(root)


def _row(root: Path, split: str | None, has_folds: bool, entry: Any) -> Row:
    """Return the row of an entry; where the list `has_folds`, the entry must have one."""
    source = root / "dataset.json"
    if isinstance(entry, str | list):
        entry = {"image": entry}
    if not isinstance(entry, dict) or not entry.get("image"):
        expected = 'entries like {"image": …, "label": …}'
        raise DatasetError("dataset", source, expected, f"{str(entry)[:80]!r}", "name the files of each case")
    names = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    image = tuple(path_inside(root, name, source) for name in names)
    label = entry.get("label")
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    case = parse_name(entry.get("case")) or parse_name(entry.get("id")) or volume_stem(image[0])
    return Row(
        case,
        image,
        label=path_inside(root, label, source) if label else None,
        split=split,
        subject=parse_name(entry.get("subject")) or parse_name(entry.get("subject_id")),
        fold=parse_fold(entry.get("fold"), case, source) if has_folds else None,
    )
