"""Read an explicit list of cases that a person wrote: cases.csv or cases.json. It may name any file of the machine.

Columns (CSV) or keys (JSON): image, label, and optionally case, subject, split, fold and labelled. Relative paths start
at the list's folder; absolute ones are allowed. Several channels: separated by "|" in CSV, a list in JSON. An empty
label is allowed for split "test". With a fold for every case, data.fold says which ones validate; the others train.
"labelled" names the classes that the label annotates, separated as channels are, where these are not all: of the others
it does not say where they are.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.console.text import some_of
from pipeline.datasets.class_table import ClassTable, table_of_list
from pipeline.datasets.csv_table import read_csv
from pipeline.datasets.decathlon import is_datalist, read_msd
from pipeline.datasets.entry_keys import KEYS, with_usual_keys
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import has_volume_name
from pipeline.datasets.json_document import read_json
from pipeline.datasets.rows import (
    Listing,
    Request,
    Row,
    collect,
    only_label,
    parse_fold,
    parse_name,
    parse_split,
    unnamed_channels,
    with_slashes,
)
from transforms.io.load import volume_stem

FILE_NAMES = ("cases.csv", "cases.tsv", "cases.json")
"""What a list in the folder of a data set is called."""


def read_list(request: Request) -> Listing:
    """Read a list file, or cases.csv / cases.json in a folder.

    A JSON list is an array of cases, or an object with "cases" and optionally "labels" and "channel_names". Without
    "labels" the class names are those of labels.json beside the list, else those of the settings. A MONAI datalist
    ({"training": [...]}) is read as `read_msd` does.

    Raises:
        DatasetError: no list, one without cases, or one that does not name the classes.
    """
    path = _list_file(request)
    content = _content(path, images_only=request.images_only)
    if is_datalist(content):
        return read_msd(replace(request, root=path))
    problems: list[DatasetError] = []
    classes = None if request.images_only else request.classes(table_of_list(content, path))
    rows = collect(lambda entry: _row(entry[1], entry[0], path, classes), content["cases"], problems)
    channel_names = content.get("channel_names") or list(unnamed_channels(rows))
    if not isinstance(channel_names, list) or not all(isinstance(name, str) for name in channel_names):
        remedy = "write one name for each image channel"
        raise DatasetError("dataset", path, "channel_names to be a list of names", f"{channel_names!r:.60}", remedy)
    return Listing(tuple(rows), classes, tuple(channel_names), tuple(problems))


def _list_file(request: Request) -> Path:
    if request.files.is_file(request.root):
        return request.root
    for path in (request.root / name for name in FILE_NAMES):
        if request.files.is_file(path):
            return path
    remedy = "write one or name your list file"
    raise DatasetError("dataset", request.root, "cases.csv or cases.json", "neither", remedy)


def _content(path: Path, *, images_only: bool) -> dict[str, Any]:
    """The list as an object whose "cases" are pairs of a place in the file ("row 3", "case number 2") and an entry."""
    if path.suffix.lower() != ".json":
        content: Any = {"cases": [(f"row {line}", cells) for line, cells in read_csv(path)]}
    else:
        content = read_json(path, keys_twice=images_only)
        if isinstance(content, list):
            content = {"cases": content}
        if isinstance(content, dict) and isinstance(content.get("cases"), list):
            numbered = enumerate(content["cases"], start=1)
            content = {**content, "cases": [(f"case number {number}", entry) for number, entry in numbered]}
    if is_datalist(content):
        return content
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list) or not content["cases"]:
        found = f"an object with {some_of(sorted(content), 3)}" if isinstance(content, dict) and content else "none"
        found = "none" if isinstance(content, dict) and "cases" in content else found
        remedy = 'write one entry for each case: {"cases": [{"image": …, "label": …}, …]}, or in CSV a line'
        raise DatasetError("dataset", path, "a list of cases", found, remedy)
    _refuse_without_images(content["cases"], path)
    return content


def _refuse_without_images(cases: list[tuple[str, Any]], path: Path) -> None:
    """Refuse a table none of whose columns names images, once for all of its rows."""
    entries = [entry for _, entry in cases if isinstance(entry, dict)]
    names = list(dict.fromkeys(str(key) for entry in entries for key in entry))
    if entries and len(entries) == len(cases) and not any("image" in with_usual_keys(e, path) for e in entries):
        found, remedy = some_of(names, 8) or "none", "rename the one that names the images to image"
        if any(has_volume_name(Path(name)) for name in names):
            remedy = "write a line above the first file that names the columns, such as case,image,label"
        raise DatasetError("dataset", path, f"columns or keys of {', '.join(KEYS)}", found, remedy)


def _row(entry: Any, place: str, path: Path, classes: ClassTable | None) -> Row:
    if isinstance(entry, str | list):  # images alone, to be segmented
        entry = {"image": entry}
    if isinstance(entry, dict):
        entry = with_usual_keys(entry, path)
    if not isinstance(entry, dict) or not entry.get("image"):
        raise DatasetError("dataset", path, f"an image for {place}", f"{str(entry)[:80]!r}", "name its image file")
    unknown = sorted(str(key) for key in entry.keys() - set(KEYS))
    if unknown:
        meant = difflib.get_close_matches(unknown[0], KEYS, n=1, cutoff=0.8)
        remedy = f"rename it to {meant[0]}, or remove it" if meant else "remove it"
        raise DatasetError("dataset", path, f"only {', '.join(KEYS)}", f"unknown column {unknown[0]!r}", remedy)
    images = entry["image"].split("|") if isinstance(entry["image"], str) else entry["image"]
    label = only_label(entry.get("label"), path, place)
    split = entry.get("split") or ""
    if not isinstance(images, list) or not all(isinstance(text, str) for text in (*images, label, split)):
        found, remedy = f"{str(entry)[:80]!r}", "write texts"
        raise DatasetError("dataset", path, f"image, label and split of {place} to be text", found, remedy)
    if any("\0" in name for name in (*images, label)):
        raise DatasetError("dataset", path, f"file names for {place}", "one with a zero byte", "correct the name")
    image = tuple(_file(name, path) for name in images)
    case = parse_name(entry.get("case")) or volume_stem(image[0])
    return Row(
        case,
        image,
        label=_file(label, path) if label else None,
        split=parse_split(split, case, path),
        subject=parse_name(entry.get("subject")),
        fold=parse_fold(entry.get("fold"), case, path),
        annotated=None if classes is None else _annotated(entry.get("labelled"), case, path, classes),
    )


def _annotated(labelled: Any, case: str, path: Path, classes: ClassTable) -> tuple[str, ...] | None:
    """The classes that a label annotates; None for all. Raises DatasetError for anything but names of classes."""
    if labelled is None or labelled == "":
        return None
    names = labelled.split("|") if isinstance(labelled, str) else labelled
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        found, remedy = f"{str(labelled)[:80]!r}", "write texts"
        raise DatasetError("dataset", path, "labelled to be names of classes", found, remedy, case)
    given = {name.strip() for name in names} - {"", classes.names[0]}
    if unknown := sorted(given - set(classes.names)):
        known = some_of(classes.names[1:])
        raise DatasetError(
            "dataset", path, f"classes under labelled ({known})", repr(unknown[0]), "correct the name", case
        )
    if not given:
        expected, remedy = "a class beside the background under labelled", "leave labelled out if all are annotated"
        raise DatasetError("dataset", path, expected, f"{str(labelled)[:80]!r}", f"{remedy}, else the case", case)
    return tuple(name for name in classes.names if name in given)


def _file(name: str, path: Path) -> Path:
    """The file that a list names: from its folder on, from the user's own ("~/"), or by an absolute path."""
    name = with_slashes(name.strip())
    return Path(name).expanduser() if name.startswith("~/") else path.parent / name
