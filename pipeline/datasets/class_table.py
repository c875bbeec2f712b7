"""Class names and the values they have in label files, as data sets write them down. Reads no voxels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.console.text import some_of
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.json_document import read_json
from transforms.io.label_values import ignore_index

TABLE_FILES = ("labels.json", "class_names.json", "dataset.json")
IGNORE = "ignore"
"""What the value of voxels is called that are left out of loss and scores."""
LARGEST_VALUE = 2**31 - 1
"""Of a class: the largest number of the widest type that label files are written in."""

_BACKGROUND = re.compile(
    r"(back(ground)?|bg|void|air|none|null|nothing|no[ _-]?label|un(labell?ed|known|defined|assigned|classified)|"
    r"clear|empty|exterior|outside|other|rest)([\W_].*)?|(.*[^0-9])?0",
    re.IGNORECASE,
)
"""What value 0 is called where a bare list of names begins with it."""


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
    """Class indices of further values of the label files, or of values that are to mean another class; those of
    values to ignore are `ignore_index(len(names))`."""
    states_values: bool = field(default=True, compare=False, repr=False)
    """Whether the data set wrote the values down; False for a bare list of names, which may be meant as an order."""
    lacking: tuple[int, ...] = ()
    """Classes that the data set does not name, of several that were joined; their values stand in no file."""

    @cached_property
    def class_of_value(self) -> dict[int, int]:
        """The class index of every known value of a label map; the ignore value has none."""
        own = {value: index for index, value in enumerate(self.values) if index not in self.lacking}
        values = own | dict(self.remap)
        return dict(sorted(values.items()))

    @cached_property
    def known_values(self) -> frozenset[int]:
        """The values that a label map may hold: those of the classes, and the one to ignore."""
        return frozenset(self.class_of_value) | (frozenset() if self.ignore_value is None else {self.ignore_value})

    @property
    def ignored_values(self) -> tuple[int, ...]:
        """The values of the label files that are left out of loss and scores, ascending."""
        remapped = {value for value, index in self.remap.items() if index == ignore_index(len(self.names))}
        return tuple(sorted(remapped if self.ignore_value is None else {*remapped, self.ignore_value}))

    @property
    def ignores_voxels(self) -> bool:
        """Whether any value of the label files is left out of loss and scores."""
        return bool(self.ignored_values)

    @classmethod
    def in_order(cls, names: Sequence[str], source: Path) -> ClassTable:
        """Return the table of names that have the values 0, 1, 2, …; "ignore" is no class, as in `parse_table`.

        Raises:
            DatasetError: empty names, a name twice, no class beside the background, or no background in front.

        >>> ClassTable.in_order(["background", "liver"], Path("labels.json")).values
        (0, 1)
        """
        return replace(parse_table(list(names), source), states_values=True)


def plain_name(name: str) -> str:
    """A name without regard to case, blanks and punctuation.

    >>> plain_name("Left kidney"), plain_name("left-kidney_")
    ('left_kidney', 'left_kidney')
    """
    return re.sub(r"[\W_]+", "_", name).strip("_").casefold()


def only_ones(names: Sequence[str], form: Callable[[str], str]) -> dict[str, int]:
    """Return the index of each name by its form; forms that several names have are left out.

    >>> only_ones(["Left kidney", "left_kidney", "Liver"], plain_name)
    {'liver': 2}
    """
    forms = [form(name) for name in names]
    count = Counter(forms)
    return {name: index for index, name in enumerate(forms) if count[name] == 1}


def parse_table(labels: Any, source: Path) -> ClassTable:
    """Read a table of classes: {"liver": 1} (nnU-Net), {"1": "liver"} (Decathlon) or ["background", "liver"].

    Classes are ordered by value; a background is added where value 0 has no name. "ignore" is the value of voxels that
    are left out of loss and scores.

    Raises:
        DatasetError: overlapping regions ({"tumour": [1, 2]}), a name or value twice, no names at all.

    >>> parse_table({"liver": 1, "spleen": 3, "ignore": 9}, Path("labels.json"))
    ClassTable(names=('background', 'liver', 'spleen'), values=(0, 1, 3), ignore_value=9, remap={}, lacking=())
    """
    if isinstance(labels, list):
        pairs = _in_order(labels, source)
    elif isinstance(labels, dict):
        pairs = [_pair(key, value, source) for key, value in labels.items()]
    else:
        remedy = "write the value of each class"
        raise DatasetError("dataset", source, 'labels as {"liver": 1, …}', f"{labels!r:.60}", remedy)
    ignored = [value for value, name in pairs if means_ignore(name)]
    if 0 in ignored:
        remedy = "give voxels that are to be ignored another value"
        raise DatasetError("dataset", source, 'a value above 0 for "ignore"', "0, which is the background", remedy)
    table = _table([pair for pair in pairs if not means_ignore(pair[1])], ignored[0] if ignored else None, source)
    _refuse_twice("label value", [*table.values, *dict.fromkeys(ignored)], source)
    further = dict.fromkeys(ignored[1:], ignore_index(len(table.names)))
    return replace(table, remap=further, states_values=isinstance(labels, dict))


def means_ignore(name: object) -> bool:
    """Say whether a name is not a class's but that of voxels that are left out of loss and scores."""
    return str(name).lower() == IGNORE


def refuse_ignore_mask(masks: Mapping[str, Path], remedy: str, case: str) -> None:
    """Raise DatasetError where a mask, by the name of its structure, is one of voxels that are to be left out."""
    for name, path in masks.items():
        if means_ignore(name):
            found = "one of voxels to be left out, which only a value of label maps can say"
            raise DatasetError("dataset", path, "masks of structures", found, remedy, case)


def _in_order(names: Sequence[Any], source: Path) -> list[tuple[int, Any]]:
    """Return (value, name) pairs of a bare list. Raises DatasetError where it begins with a structure's name."""
    if names and isinstance(names[0], str) and names[0].strip() and not _BACKGROUND.fullmatch(names[0].strip()):
        raise DatasetError(
            "dataset", source, "a list of class names that begins with the background", f"{names[0]!r} in front",
            f'put "background" in front, or name the values: {{{names[0]!r}: 0, …}}',
        )  # fmt: skip
    return list(enumerate(names))


def _pair(key: str, value: Any, source: Path) -> tuple[int, Any]:
    """Return (value, name) of an entry in either direction."""
    if isinstance(value, list):
        found = f"{key!r} is a region of several values {value}"
        remedy = f"name a class for each value in its place, and leave regions out: {_plain_classes(value)}"
        raise DatasetError("dataset", source, "one value for each class", found, remedy)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\d+", value) and not re.fullmatch(r"\s*\d+\s*", str(key)):
        value = int(value)  # {"liver": "1"}
    number, name = (value, key) if isinstance(value, int) and not isinstance(value, bool) else (key, value)
    try:
        return int(number), name
    except (TypeError, ValueError):
        expected, remedy = f"a whole number for class {key!r}", "write its value in the label files"
        raise DatasetError("dataset", source, expected, f"{value!r:.60}", remedy) from None


def _plain_classes(values: Sequence[Any]) -> str:
    """An example of a class for each value: "part_1": 1, "part_2": 2."""
    return ", ".join(f'"part_{value}": {value}' for value in values[:3]) + (", …" if values[3:] else "")


def _table(pairs: list[tuple[int, Any]], ignore_value: int | None, source: Path) -> ClassTable:
    """Return the table of (value, name) pairs, ordered by value, with a background."""
    pairs = sorted(pairs, key=lambda pair: pair[0])
    if not any(value == 0 for value, _ in pairs):
        pairs = [(0, "background"), *pairs]
    values = [value for value, _ in pairs]
    names = [name for _, name in pairs]
    for value, name in pairs:
        if not isinstance(name, str) or not name.strip():
            raise DatasetError(
                "dataset", source, f"a name for label value {value}", repr(name), "write a name, or leave the entry out"
            )
    _refuse_twice("label value", values, source)
    _refuse_twice("class name", names, source)
    if values[-1] > LARGEST_VALUE:
        raise DatasetError(
            "dataset", source, f"values up to {LARGEST_VALUE}", f"{str(values[-1])[:20]} for {names[-1]!r}",
            "correct the value",
        )  # fmt: skip
    if values[0] < 0 or len(pairs) < 2:
        raise DatasetError(
            "dataset", source, "a background at 0 and at least one class above it", f"{pairs[:3]}", "correct the table"
        )
    return ClassTable(tuple(names), tuple(values), ignore_value)


def _refuse_twice(what: str, items: Sequence[Any], source: Path) -> None:
    item, count = Counter(items).most_common(1)[0]
    if count > 1:
        raise DatasetError(
            "dataset", source, f"every {what} once", f"{what} {item!r} {count} times", "keep one of them"
        )


def find_table(folder: Path) -> ClassTable | None:
    """Return the table of labels.json, class_names.json or dataset.json ("labels") in a folder; None if absent.

    The record of a case that was segmented, which may be called "labels", is passed over.

    Raises:
        DatasetError: such a file cannot be read, or holds no table of classes.
    """
    for path in (folder / name for name in TABLE_FILES):
        if path.is_file():
            content = read_json(path)
            if isinstance(content, dict) and {"case", "made_by"} <= content.keys():
                continue
            if isinstance(content, dict) and isinstance(content.get("labels"), dict | list):
                return parse_table(content["labels"], path)
            if path.name != "dataset.json":
                return parse_table(content, path)
    return None


def table_of_list(content: Mapping[str, Any], path: Path) -> ClassTable | None:
    """Return the table under "labels" of a list of cases, else that of a file beside it; None if absent.

    Raises:
        DatasetError: see `parse_table` and `find_table`.
    """
    labels = content.get("labels")
    return parse_table(labels, path) if labels else find_table(path.parent)


def reconcile(found: ClassTable | None, given: Sequence[str], root: Path) -> ClassTable:
    """Join the data set's own table with the names that the settings give (empty: none).

    Raises:
        DatasetError: neither names the classes, or both do and differ.
    """
    if not given:
        if found is not None:
            return found
        raise DatasetError(
            "no_class_names", root, "names of the classes", "none",
            'write labels.json beside the data ({"background": 0, "liver": 1, …}), which bodyseg check --write_labels '
            "begins, or set data.class_names",
        )  # fmt: skip
    if found is None:
        return ClassTable.in_order(given, root)
    named = tuple(name for name in given if not means_ignore(name))
    if named != found.names or (len(named) < len(given) and not found.ignores_voxels):
        raise DatasetError(
            "dataset", root, f"data.class_names to be the data set's own {len(found.names)} names",
            f"{len(given)} names that differ ({_first_difference(given, found.names)})",
            "leave data.class_names out or make them equal",
        )  # fmt: skip
    return found


def _first_difference(given: Sequence[str], own: Sequence[str]) -> str:
    for index, (name, own_name) in enumerate(zip(given, own, strict=False)):
        if name != own_name:
            return f"class {index}: {name!r} against {own_name!r}"
    return "one list is longer"


def resolve_remap(remap: Mapping[int | str, int | str], names: Sequence[str]) -> dict[int, int]:
    """Turn what data.label_remap says into class indices.

    Args:
        remap: class name or index for values of the label files (a number as a text counts, as JSON has it for keys);
            "ignore" leaves their voxels out of loss and scores.
        names: of the classes, background first.

    Raises:
        DatasetError: an unknown name or index.

    >>> resolve_remap({7: "liver", "9": 0}, ["background", "liver"])
    {7: 1, 9: 0}
    >>> resolve_remap({5: "ignore"}, ["background", "liver"])
    {5: 255}
    """
    return {int(value): _index_of(target, names, f"data.label_remap: {value}") for value, target in remap.items()}


def _index_of(target: int | str, names: Sequence[str], where: str) -> int:
    if target in names:
        return list(names).index(str(target))
    if means_ignore(target):
        return ignore_index(len(names))
    if isinstance(target, int) and 0 <= target < len(names):
        return target
    raise DatasetError(
        "dataset", where, f"a class, ignore, or an index of 0 to {len(names) - 1}", repr(target),
        f"choose one of {some_of(names)}",
    )  # fmt: skip
