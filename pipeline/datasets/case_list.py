"""An explicit list of cases that a person wrote: cases.csv or cases.json. Its paths are the writer's own business.

Columns (CSV) or keys (JSON): case, image, label, and optionally subject and split. Relative paths start at the list's
folder; absolute ones are allowed. Several channels: separated by "|" in CSV, a list in JSON. An empty label is allowed
for split "test".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.datasets.class_table import find_table, parse_table, read_json, reconcile
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.rows import Given, Listing, Row, each, parse_split, read_csv
from transforms.io.load import volume_stem

_KEYS = {"case", "subject", "image", "label", "split"}


def read_list(root: Path, fold: int | None, given: Given) -> Listing:
    """Read a list file, or cases.csv / cases.json in a folder.

    A JSON list is an array of cases, or an object with "cases" and optionally "labels" and "channel_names". Without
    "labels" the class names are those of labels.json beside the list, else `given`.
    """
    path = root if root.is_file() else next((p for p in (root / "cases.csv", root / "cases.json") if p.is_file()), None)
    if path is None:
        raise DatasetError(f"{root}: expected cases.csv or cases.json, found neither; write one or name your list file")
    content = read_json(path) if path.suffix.lower() == ".json" else {"cases": read_csv(path)}
    content = {"cases": content} if isinstance(content, list) else content
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list) or not content["cases"]:
        raise DatasetError(f"{path}: expected a list of cases, found none")
    labels = content.get("labels")
    table = reconcile(parse_table(labels, path) if labels else find_table(path.parent), given, path)
    problems: list[str] = []
    rows = each(lambda numbered: _row(numbered[1], numbered[0], path), enumerate(content["cases"], start=1), problems)
    n_channels = len(rows[0].image) if rows else 1
    names = content.get("channel_names") or [f"image{i}" if i else "image" for i in range(n_channels)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path}: expected channel_names to be a list of names, found {str(names)[:60]!r}")
    return Listing(tuple(rows), table, tuple(names), tuple(problems))


def _row(item: Any, number: int, path: Path) -> Row:
    if not isinstance(item, dict) or not item.get("image"):
        raise DatasetError(f"{path}: expected an image for case number {number}, found {str(item)[:80]!r}")
    if unknown := item.keys() - _KEYS:
        raise DatasetError(f"{path}: unknown column {min(map(str, unknown))!r}, expected {', '.join(sorted(_KEYS))}")
    names = item["image"].split("|") if isinstance(item["image"], str) else item["image"]
    label, subject, split = item.get("label"), item.get("subject"), item.get("split")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in (*names, label or "", split or "")):
        raise DatasetError(f"{path}: expected image, label and split of case number {number} to be text")
    if any("\0" in name for name in (*names, label or "")):
        raise DatasetError(f"{path}: expected file names for case number {number}, found one with a zero byte")
    image = tuple(path.parent / name.strip() for name in names)
    case = str(item.get("case") or volume_stem(image[0]))
    split = parse_split(split, case, path)
    return Row(case, image, path.parent / label if label else None, split, str(subject) if subject else None)
