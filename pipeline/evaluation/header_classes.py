"""What the headers of .seg.nrrd and DICOM SEG files say of their classes, which may have another value in each file."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.console.text import first_lines, one_line, some_of
from pipeline.datasets.class_table import ClassTable, means_ignore, parse_table, plain_name
from pipeline.datasets.dataset import Label
from pipeline.evaluation.class_matching import match_names
from pipeline.evaluation.label_maps import is_seg
from pipeline.evaluation.options import EvaluationError, Kind
from transforms.io.dicom_seg import segment_numbers
from transforms.io.errors import VolumeError
from transforms.io.segment_names import LARGEST_VALUE, segment_values


@dataclass(frozen=True)
class Headers:
    """The classes of files as their own headers name them."""

    table: ClassTable | None = None
    """The classes of all files; None where nothing names them."""
    own_tables: Mapping[str, ClassTable] = field(default_factory=dict)
    """By case, the classes of `table` with the values that they have in its file."""
    disagree: bool = False
    """Whether they disagree on the values, so that those in `table` are of no file."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """By case, why its values cannot be known."""
    notes: tuple[str, ...] = ()
    """What a reader has to know about how names in headers were taken."""


def read_headers(files: Mapping[str, Label], table: ClassTable | None, kind: Kind) -> Headers:
    """Read the names in headers, and find the classes that they mean.

    A segment that is not one of the classes counts as background, and is noted. A file without any of them is
    refused; only the numbers of a .seg.nrrd may be the values of the classes, whatever its segments are called.

    Args:
        files: by case.
        table: the classes, where something beside the files names them; None: those of all names in the headers.
        kind: what the files are.

    Raises:
        EvaluationError: files without names beside others whose headers do not agree on the values.
    """
    named: dict[str, dict[str, int]] = {}
    refused: dict[str, str] = {}
    for case, source in files.items():
        try:
            values = _header_values(source)
        except VolumeError as error:
            refused[case] = one_line(f"case {case}: {error}")
            continue
        if values:
            named[case] = values
    disagree = False
    if table is None and named:
        read = {case: file for case, file in files.items() if case not in refused}
        table, disagree = _table_of_headers(named, read)
    if table is None:
        return Headers(refused=refused)
    own_tables: dict[str, ClassTable] = {}
    taken: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case, values in named.items():
        names = list(values)
        class_of = {names[n]: table.names[c + 1] for c, n in match_names(table.names[1:], names).items()}
        is_by_value = not class_of and not is_seg(files[case]) and set(values.values()) == set(table.values[1:])
        if is_by_value:
            class_of = {name: table.names[table.class_of_value[value]] for name, value in values.items()}
        if not class_of:
            refused[case] = _unknown_names(case, files[case], values, table)
            continue
        own_tables[case] = _with_values(table, values, class_of)
        for name in names:
            if name != class_of.get(name) and not _is_ignored(name, table):
                taken[name, class_of.get(name, "")].append(case)
    lines = [_note(kind, name, meant, cases) for (name, meant), cases in taken.items()]
    notes = first_lines(lines, f"and {{}} more such names in headers of the {kind}s")
    return Headers(table, own_tables, disagree, refused, tuple(notes))


def _header_values(source: Label) -> dict[str, int]:
    """The value of each named segment; value 0 is the background in every file, whatever it is called."""
    if not isinstance(source, Path):
        return {}
    found = segment_numbers(source) if is_seg(source) else segment_values(source)
    return {name: value for name, value in (found or {}).items() if value}


def _table_of_headers(named: Mapping[str, Mapping[str, int]], files: Mapping[str, Label]) -> tuple[ClassTable, bool]:
    """The classes that headers name: with the headers' values, or in the order of their names where these disagree."""
    spelled = _spellings(named)
    pairs = {(spelled[name], value) for values in named.values() for name, value in values.items()}
    names, numbers = sorted({name for name, _ in pairs}), {value for _, value in pairs}
    if len(pairs) == len(names) == len(numbers):
        return parse_table(dict(pairs), Path("header")), False
    if unnamed := [case for case in files if case not in named]:
        raise EvaluationError(
            f"case {unnamed[0]}: {files[unnamed[0]]}: expected names of segments in its header, since the others give "
            "one name different values, found none; export it with names, or write a labels.json beside the files"
        )
    structures = [name for name in names if not means_ignore(name)]
    table = ClassTable.in_order(["background", *structures], Path("header"))
    return replace(table, ignore_value=len(table.names)) if len(structures) < len(names) else table, True


def _spellings(named: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """One spelling for names that differ in case or punctuation from file to file; two of one file stay two."""
    forms = [Counter(map(plain_name, values)) for values in named.values()]
    twice = {form for count in forms for form, n in count.items() if n > 1}
    names = sorted({name for values in named.values() for name in values})
    keys = {name: name if plain_name(name) in twice else plain_name(name) for name in names}
    spelling = {key: name for name, key in reversed(keys.items())}
    return {name: spelling[key] for name, key in keys.items()}


def _with_values(table: ClassTable, values: Mapping[str, int], class_of: Mapping[str, str]) -> ClassTable:
    """The classes with their values in a file: one that its header lacks gets a value that no segment can have."""
    value_of = {meant: values[name] for name, meant in class_of.items()}
    free = itertools.count(LARGEST_VALUE + 1)
    own = (0, *(value_of[name] if name in value_of else next(free) for name in table.names[1:]))
    others = [name for name in values if name not in class_of]
    ignored = [values[name] for name in others if _is_ignored(name, table)]
    background = {values[name]: 0 for name in others if not _is_ignored(name, table)}
    return ClassTable(table.names, own, ignored[0] if ignored else None, background)


def _is_ignored(name: str, table: ClassTable) -> bool:
    return means_ignore(name) and table.ignores_voxels


def _note(kind: Kind, name: str, meant: str, cases: list[str]) -> str:
    where = f"the {kind}s' segment {name} ({some_of(cases, 3)})"
    return f"{where} is taken for the class {meant}" if meant else f"{where} is no class: counted as background"


def _unknown_names(case: str, file: Label, values: Mapping[str, int], table: ClassTable) -> str:
    return (
        f"case {case}: {file}: expected segments with names of the classes ({some_of(table.names[1:], 5)}), found "
        f"{some_of(values, 5)}; rename the segments, or the classes in the labels.json beside the files"
    )
