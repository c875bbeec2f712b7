"""Class names and the values they have in label files, as data sets write them down. Reads no voxels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.datasets.errors import DatasetError

_TABLE_FILES = ("labels.json", "class_names.json", "dataset.json")
_MAX_JSON_BYTES = 256 * 2**20
_LARGEST_VALUE = 2**31 - 1


@dataclass(frozen=True)
class ClassTable:
    """Everything about the classes of a data set: their names and how label files write them down."""

    names: tuple[str, ...]
    """Names in class order, background first."""
    values: tuple[int, ...]
    """`values[c]` is the value of class c in the label files."""
    ignore_value: int | None = None
    """The value of voxels that are left out of loss and scores; None if no voxels are."""
    remap: Mapping[int, int] = field(default_factory=dict)
    """Class indices of further values of the label files, or of values that are to mean another class."""

    @property
    def class_of_value(self) -> dict[int, int]:
        """The class index of every known value of a label map; the ignore value has none."""
        values = {value: index for index, value in enumerate(self.values)} | dict(self.remap)
        return dict(sorted(values.items()))

    @property
    def known_values(self) -> frozenset[int]:
        """The values that a label map may hold: those of the classes, and the one to ignore."""
        return frozenset(self.class_of_value) | (frozenset() if self.ignore_value is None else {self.ignore_value})

    @classmethod
    def in_order(cls, names: Sequence[str], source: Path) -> ClassTable:
        """The table of names whose values are their places. Raises DatasetError for empty or double names."""
        return _checked(list(zip(range(len(names)), names, strict=True)), None, source)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises DatasetError for one that cannot be read or parsed."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise DatasetError(f"{path}: expected a list of cases, found {path.stat().st_size} bytes of JSON")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: cannot be read as JSON ({error}); repair the file") from error


def parse_table(labels: Any, source: Path) -> ClassTable:
    """Read a table of classes: {"liver": 1} (nnU-Net), {"1": "liver"} (Decathlon) or ["background", "liver"].

    Classes are ordered by value; a background is added where value 0 has no name. "ignore" is the value of voxels that
    count for nothing.

    Raises:
        DatasetError: overlapping regions ({"tumour": [1, 2]}), a name or value that stands twice, no names at all.
    """
    if isinstance(labels, list):
        pairs = list(enumerate(labels))
    elif isinstance(labels, dict):
        pairs = [_pair(key, value, source) for key, value in labels.items()]
    else:
        raise DatasetError(f'{source}: expected labels as {{"liver": 1, …}}, found {str(labels)[:60]!r}')
    ignored = [value for value, name in pairs if str(name).lower() == "ignore"]
    return _checked([pair for pair in pairs if pair[0] not in ignored], ignored[0] if ignored else None, source)


def _pair(key: str, value: Any, source: Path) -> tuple[int, str]:
    """Return (value, name) of an entry in either direction."""
    if isinstance(value, list):
        raise DatasetError(f"{source}: class {key!r} is a region of several values {value}; name plain classes instead")
    number, name = (value, key) if isinstance(value, int) and not isinstance(value, bool) else (key, value)
    try:
        return int(number), name
    except (TypeError, ValueError):
        raise DatasetError(f"{source}: expected a whole number for class {key!r}, found {value!r:.60}") from None


def _checked(pairs: list[tuple[int, Any]], ignore_value: int | None, source: Path) -> ClassTable:
    pairs = sorted(pairs, key=lambda pair: pair[0])
    if not any(value == 0 for value, _ in pairs):
        pairs = [(0, "background"), *pairs]
    for value, name in pairs:
        if not isinstance(name, str) or not name.strip():
            raise DatasetError(f"{source}: expected a name for label value {value}, found {name!r}")
    for what, items in (("label value", [value for value, _ in pairs]), ("class name", [name for _, name in pairs])):
        if twice := [item for item, count in Counter(items).items() if count > 1]:
            raise DatasetError(f"{source}: the {what} {twice[0]!r} stands {Counter(items)[twice[0]]} times")
    if pairs[-1][0] > _LARGEST_VALUE:
        found = str(pairs[-1][0])[:20]
        raise DatasetError(f"{source}: expected values up to {_LARGEST_VALUE}, found {found} for {pairs[-1][1]!r}")
    if pairs[0][0] < 0 or len(pairs) < 2:
        raise DatasetError(f"{source}: expected a background at 0 and at least one class above it, found {pairs[:3]}")
    return ClassTable(tuple(name for _, name in pairs), tuple(value for value, _ in pairs), ignore_value)


def find_table(folder: Path) -> ClassTable | None:
    """Return the table of labels.json, class_names.json or dataset.json ("labels") in a folder; None if absent."""
    for path in (folder / name for name in _TABLE_FILES):
        if path.is_file():
            content = read_json(path)
            if isinstance(content, dict) and isinstance(content.get("labels"), dict | list):
                return parse_table(content["labels"], path)
            if path.name != "dataset.json":
                return parse_table(content, path)
    return None


def reconcile(found: ClassTable | None, given: Sequence[str] | None, root: Path) -> ClassTable:
    """Join the data set's own table with the names the settings give; contradictions are refused.

    Raises:
        DatasetError: neither names the classes, or both do and differ.
    """
    if found is None and not given:
        raise DatasetError(
            f"{root}: the class names are unknown; write labels.json beside the data "
            '({"background": 0, "liver": 1, …}) or set data.class_names'
        )
    if found is None:
        return ClassTable.in_order(list(given or ()), root)
    if given and tuple(given) != found.names:
        at = next((i for i, pair in enumerate(zip(given, found.names, strict=False)) if pair[0] != pair[1]), None)
        where = f"class {at}: {given[at]!r} against {found.names[at]!r}" if at is not None else "one list is longer"
        raise DatasetError(
            f"{root}: data.class_names has {len(given)} names, the data set {len(found.names)}, and they differ "
            f"({where}); leave data.class_names out or make them equal"
        )
    return found


def resolve_remap(wanted: Mapping[int | str, int | str], names: Sequence[str]) -> dict[int, int]:
    """Turn what data.label_remap says into class indices: {7: "liver", 9: 0} -> {7: 3, 9: 0}.

    Args:
        wanted: class name or index for values of the label files (a number as a text counts, as JSON has it for keys).
        names: of the classes, background first.

    Raises:
        DatasetError: an unknown name or index.
    """
    return {int(value): _index_of(target, names, f"data.label_remap: {value}") for value, target in wanted.items()}


def _index_of(target: int | str, names: Sequence[str], where: str) -> int:
    if target in names:
        return list(names).index(str(target))
    if isinstance(target, int) and 0 <= target < len(names):
        return target
    known = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    raise DatasetError(
        f"{where}: expected a class or an index of 0 to {len(names) - 1}, found {target!r}; known: {known}"
    )
