"""Join several data sets into one: classes and channels by name, cases under names of their own. Opens no file.

Each set's label files are read by its own table of classes. A class that a set does not name is not annotated in its
cases. Subjects of different sets are different people.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.console.text import some_of
from pipeline.datasets.class_table import ClassTable, plain_name
from pipeline.datasets.dataset import Case, Dataset, Folds, Part, Split
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.listing import list_cases, list_folds
from pipeline.datasets.rows import LabelReading, are_named
from pipeline.datasets.subjects import suspect_subjects
from transforms.io.label_values import ignore_index

_UNSAFE = re.compile(r"[^\w.-]+")
_LONGEST_NAME = 40  # of a data set, in front of a case's

_IF_SAME_PEOPLE = (
    "nothing, if these are different people; else give each of the data sets a split of its own in which all scans of "
    "a subject are in one part, or remove those that are twice"
)

_FIRST_PLACEHOLDER = 65536
"""The value of a class that a data set lacks: more than label files of 16 bits hold."""


def list_data_sets(roots: str | Path | Sequence[str | Path], layout: str | Sequence[str], **options: Any) -> Dataset:
    """List one data set, or several and join them.

    Args:
        roots: a folder or list file, or several.
        layout: see `list_cases`; of several data sets one for all, or one each.
        **options: see `list_cases`.

    Raises:
        DatasetError: a data set that `list_cases` refuses, or several that cannot be joined.
    """
    roots, layouts = _each(roots, layout)
    if len(roots) == 1:
        return list_cases(roots[0], layouts[0], **options)
    places = [Path(root).resolve() for root in roots]
    twice = [str(root) for n, root in enumerate(roots) if places[n] in places[:n]]
    if twice:
        raise DatasetError("dataset", twice[0], "every data set once", "it twice", "leave one of them out")
    fold = options.get("fold")
    if fold and not options.get("n_folds") and not list_own_folds(roots, layouts):
        remedy = "have their cases divided into folds with --data.folds 5, or leave data.fold out"
        raise DatasetError("dataset", roots[0], f"folds in all data sets, since data.fold is {fold}", "none", remedy)
    datasets = [list_cases(root, of_set, **options) for root, of_set in zip(roots, layouts, strict=True)]
    _refuse_indices(options.get("labels") or LabelReading(), datasets)
    return join(datasets)


def _refuse_indices(labels: LabelReading, datasets: Sequence[Dataset]) -> None:
    """Raise DatasetError where data.label_remap gives the index of a class that is not the same in all data sets."""
    numbered = {value: to for value, to in (labels.remap or {}).items() if to != 0 and not isinstance(to, str)}
    for value, index in numbered.items():
        meant = dict.fromkeys(dataset.classes.names[index] for dataset in datasets)
        if len(meant) > 1:
            raise DatasetError(
                "dataset", f"data.label_remap: {value}", "an index that is the same class in all data sets",
                f"{index}, which is {some_of(list(meant), 4)}",
                "write the name of the class, which all of the data sets must have, or ignore",
            )  # fmt: skip


def list_own_folds(
    roots: str | Path | Sequence[str | Path], layout: str | Sequence[str], *, split_file: str = ""
) -> tuple[int, ...]:
    """Return the numbers of the folds that the data sets bring; none where none of them brings any.

    Raises:
        DatasetError: folds that not all of several data sets bring, or others in each; see `list_folds`, too.
    """
    roots, layouts = _each(roots, layout)
    found = {root: list_folds(root, of_set, split_file=split_file) for root, of_set in zip(roots, layouts, strict=True)}
    if len(set(found.values())) > 1:
        shown = [f"{root}: {', '.join(map(str, numbers)) or 'none'}" for root, numbers in found.items()]
        raise DatasetError(
            "dataset", roots[0], "folds of their own, of the same numbers, in all data sets or in none",
            some_of(shown, 4), "give them to the others, too, or take them away (splits_final.json, a column of folds)",
        )  # fmt: skip
    return next(iter(found.values()))


def _each(
    roots: str | Path | Sequence[str | Path], layout: str | Sequence[str]
) -> tuple[Sequence[str | Path], Sequence[str]]:
    """The data sets and the layout of each. Raises DatasetError for layouts of another number."""
    if isinstance(roots, str | Path):
        roots = [roots]
    layouts = [layout] * len(roots) if isinstance(layout, str) else layout
    if len(layouts) != len(roots):
        found = f"{len(layouts)} for {len(roots)} data sets"
        raise DatasetError("dataset", "data.layout", "one layout, or one for each data set", found, "name one for each")
    return roots, layouts


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Join data sets that were listed one by one.

    Raises:
        DatasetError: channels of other names, or a name that is the background in one and a structure in another.
    """
    names = _names_of(datasets)
    channels, with_order = _joined_channels(datasets)
    table = _joined_table(datasets)
    cases, renamed = _joined_cases(datasets, names, table, with_order)
    split, folds, own_split = _joined_division(datasets, names, renamed)
    root = Path(os.path.commonpath([dataset.root.absolute() for dataset in datasets]))
    return Dataset(
        root,
        " + ".join(dict.fromkeys(dataset.layout for dataset in datasets)),
        cases=tuple(case for of_set in cases for case in of_set),
        classes=table,
        channel_names=channels,
        split=split,
        folds=folds,
        own_split=own_split,
        unlabelled=tuple(
            case.with_channels(order)
            for dataset, order in zip(datasets, with_order, strict=True)
            for case in dataset.unlabelled
        ),
        refused=tuple(
            DatasetError(e.kind, e.where, e.expected, e.found, e.remedy, ids.get(e.case, e.case))
            for dataset, ids in zip(datasets, renamed, strict=True)
            for e in dataset.refused
        ),
        warnings=(
            *(warning for dataset in datasets for warning in dataset.warnings),
            *_renamed_cases(renamed, root),
            *_shared_subjects(datasets, cases, split, root),
            *_similar_names(datasets, root),
            *_unnamed_channels(datasets, channels),
        ),
        parts=tuple(map(_part, names, datasets)),
    )


def _part(name: str, dataset: Dataset) -> Part:
    source = dataset.split.source if dataset.split else "none of its own"
    return Part(name, dataset.root, dataset.layout, len(dataset.cases), dataset.classes.names[1:], source)


def _names_of(datasets: Sequence[Dataset]) -> list[str]:
    """A name for each data set: that of its folder or list, with a number where others are called alike."""
    found = [dataset.root.resolve() for dataset in datasets]
    found = [path.parent if path.is_file() and path.stem == "cases" else path for path in found]
    plain = [_UNSAFE.sub("_", path.stem if path.is_file() else path.name) for path in found]
    cut = [name.strip("._-")[:_LONGEST_NAME] or "set" for name in plain]
    count = Counter(cut)
    return [f"{name}_{cut[: n + 1].count(name)}" if count[name] > 1 else name for n, name in enumerate(cut)]


# Channels -------------------------------------------------------------------------------------------------------------


def _joined_channels(datasets: Sequence[Dataset]) -> tuple[tuple[str, ...], list[list[int]]]:
    """The channels of all, and for each data set which of its channels comes where. Raises DatasetError.

    A single channel without a name is taken for the single one of the others.
    """
    first = next((d for d in datasets if are_named(d.channel_names)), datasets[0])
    wanted = [plain_name(name) for name in first.channel_names]
    orders = []
    for dataset in datasets:
        found = [plain_name(name) for name in dataset.channel_names]
        if len(found) == len(wanted) == 1 and not are_named(dataset.channel_names):
            found = wanted
        if sorted(found) != sorted(wanted) or len(set(found)) < len(found):
            raise DatasetError(
                "dataset", dataset.root, f"the channels of {first.root}, {', '.join(first.channel_names)}",
                ", ".join(dataset.channel_names),
                "name the channels alike, in its dataset.json or a list of cases with channel_names; data sets of "
                "other channels cannot be trained on together",
            )  # fmt: skip
        orders.append([found.index(name) for name in wanted])
    return first.channel_names, orders


def _unnamed_channels(datasets: Sequence[Dataset], channels: Sequence[str]) -> Iterator[DatasetError]:
    for dataset in datasets:
        if are_named(channels) and not are_named(dataset.channel_names):
            yield DatasetError(
                "channel_unnamed", dataset.root, "a name for its channel, as the other data sets have one",
                f"none; it is taken for {channels[0]}", "nothing, if it is; else leave the data set out",
            )  # fmt: skip


# Classes --------------------------------------------------------------------------------------------------------------


def _joined_table(datasets: Sequence[Dataset]) -> ClassTable:
    """The classes of all by name, the first data set's first; their values where all agree on them, else 0, 1, 2, …"""
    background = datasets[0].classes.names[0]
    for dataset, other in ((one, two) for one in datasets for two in datasets):
        if dataset.classes.names[0] in other.classes.names[1:]:
            name = dataset.classes.names[0]
            raise DatasetError(
                "dataset", other.root, "every name to mean the same in all data sets",
                f"{name!r} as a structure, which is the background of {dataset.root}", "rename one of the two",
            )  # fmt: skip
    names = [background, *dict.fromkeys(name for dataset in datasets for name in dataset.classes.names[1:])]
    values: dict[str, set[int]] = defaultdict(set)
    for dataset in datasets:
        for name, value in zip(dataset.classes.names[1:], dataset.classes.values[1:], strict=True):
            values[name].add(value)
    one_each = [min(values[name]) for name in names[1:] if len(values[name]) == 1]
    if len(set(one_each)) < len(names) - 1:
        one_each = list(range(1, len(names)))
    ignore_value = None
    if any(dataset.classes.ignores_voxels for dataset in datasets):
        ignore_value = max(255, max(one_each) + 1)  # of no class
    return ClassTable(tuple(names), (0, *one_each), ignore_value)


def _own_table(own: ClassTable, joined: ClassTable, place: Mapping[int, int]) -> ClassTable:
    """The joined classes with the values that they have in the label files of one data set; place: see `_place_of`."""
    value_of = {place[index]: value for index, value in enumerate(own.values)}
    free = (value for value in range(_FIRST_PLACEHOLDER, 2 * _FIRST_PLACEHOLDER) if value not in own.known_values)
    values = tuple(value_of[c] if c in value_of else next(free) for c in range(len(joined.names)))
    remap = {value: place[index] for value, index in own.remap.items()}
    lacking = tuple(c for c in range(len(joined.names)) if c not in value_of)
    return ClassTable(joined.names, values, own.ignore_value, remap, lacking=lacking)


def _place_of(own: ClassTable, joined: ClassTable) -> dict[int, int]:
    """The joined index of each class of a data set, and of what it ignores."""
    place = {index: joined.names.index(name) for index, name in enumerate(own.names) if index}
    return {0: 0, **place, ignore_index(len(own.names)): ignore_index(len(joined.names))}


def _similar_names(datasets: Sequence[Dataset], root: Path) -> Iterator[DatasetError]:
    """Warn of names that differ in their spelling alone: they are classes of their own."""
    spellings: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for dataset in datasets:
        for name in dataset.classes.names[1:]:
            spellings[tuple(sorted(plain_name(name).split("_")))].setdefault(name, str(dataset.root))
    pairs = [
        " and ".join(f"{name} ({of})" for name, of in names.items()) for names in spellings.values() if len(names) > 1
    ]
    if pairs:
        yield DatasetError(
            "similar_names", root, "one spelling for the name of a class in all data sets", some_of(pairs, 5),
            "rename them alike in the tables of the data sets if they mean the same: as it is, each is a class of its "
            "own, not annotated in the other's cases",
        )  # fmt: skip


# Cases ----------------------------------------------------------------------------------------------------------------


def _joined_cases(
    datasets: Sequence[Dataset], names: Sequence[str], table: ClassTable, orders: Sequence[Sequence[int]]
) -> tuple[list[list[Case]], list[dict[str, str]]]:
    """The cases of each data set as those of the joined one, and for each data set what its cases are called now."""
    # Those that were refused, too: a case is called the same once they are repaired.
    of_sets = [[*(c.id for c in d.cases), *(error.case for error in d.refused if error.case)] for d in datasets]
    new_id = _without_clashes(of_sets, names, "_")
    new_subject = _without_clashes([[case.subject for case in dataset.cases] for dataset in datasets], names, "/")
    joined = []
    for n, dataset in enumerate(datasets):
        place = _place_of(dataset.classes, table)
        own = _own_table(dataset.classes, table, place)
        everything = tuple(sorted(place[index] for index in range(1, len(dataset.classes.names))))
        lacks = len(everything) < len(table.names) - 1
        joined.append(
            [
                replace(
                    case.with_channels(orders[n]),
                    id=new_id[n][case.id],
                    subject=new_subject[n][case.subject],
                    label=_placed(case.label, place.__getitem__),
                    annotated=(everything if lacks else None)
                    if case.annotated is None
                    else tuple(sorted(place[index] for index in case.annotated)),
                    table=own if isinstance(case.label, Path) and own != table else None,
                )
                for case in dataset.cases
            ]
        )
    return joined, new_id


def _placed(label: Any, place: Callable[[int], int]) -> Any:
    """A label whose masks, if it has any, are under the joined classes, in their order."""
    if isinstance(label, tuple):
        return tuple(sorted((place(index), path) for index, path in label))
    return label


def _without_clashes(of_sets: Sequence[Sequence[str]], names: Sequence[str], between: str) -> list[dict[str, str]]:
    """For each data set what its ids are called in all together: as they are, or behind its name if others have it."""
    count = Counter(given for ids in of_sets for given in set(ids))
    taken = {given for given, n in count.items() if n == 1}
    renamed: list[dict[str, str]] = []
    for ids, name in zip(of_sets, names, strict=True):
        found = {}
        for given in dict.fromkeys(ids):
            found[given] = given
            if count[given] > 1:
                prefixed = f"{name}{between}{given}"
                while prefixed in taken:
                    prefixed = f"{name}{between}{prefixed}"
                taken.add(prefixed)
                found[given] = prefixed
        renamed.append(found)
    return renamed


def _renamed_cases(renamed: Sequence[Mapping[str, str]], root: Path) -> Iterator[DatasetError]:
    changed = [new for of_set in renamed for old, new in of_set.items() if new != old]
    if changed:
        yield DatasetError(
            "case_renamed", root, "every case to have a name of its own in all data sets together",
            f"{len(changed)} that share one; they are called {some_of(changed, 4)}", _IF_SAME_PEOPLE,
        )  # fmt: skip


def _shared_subjects(
    datasets: Sequence[Dataset], joined: Sequence[Sequence[Case]], split: Split | None, root: Path
) -> Iterator[DatasetError]:
    """Warn of names of subjects in several data sets whose cases may come, or are, in different splits; not where they
    are those of the cases, of which `_renamed_cases` warns. Cases without a stated subject that look like scans of one
    are of one name."""
    cases_of: dict[str, dict[str, Case]] = defaultdict(dict)
    sets_of: dict[str, set[Path]] = defaultdict(set)
    for dataset, cases in zip(datasets, joined, strict=True):
        for own, case in zip(dataset.cases, cases, strict=True):
            cases_of[own.subject][case.id] = own
            sets_of[own.subject].add(dataset.root)
    for group in suspect_subjects(list(cases_of)):
        if any(own.id == name for name in group.cases for own in cases_of[name].values()):
            cases_of[group.name] = {case: own for name in group.cases for case, own in cases_of[name].items()}
            sets_of[group.name] = set().union(*(sets_of[name] for name in group.cases))
    shared = [
        f"{subject} ({some_of(list(cases), 3)})"
        for subject, cases in cases_of.items()
        if len(sets_of[subject]) > 1
        and any(own.id != subject for own in cases.values())
        and not (split is not None and len({split.of(case) for case in cases}) == 1)
    ]
    if shared:
        yield DatasetError(
            "shared_subjects", root, "subjects of different data sets to have different names, or one split",
            f"{len(shared)} in several, which count as different people: {some_of(shared, 4)}", _IF_SAME_PEOPLE,
        )  # fmt: skip


# Division -------------------------------------------------------------------------------------------------------------


def _joined_division(
    datasets: Sequence[Dataset], names: Sequence[str], renamed: Sequence[Mapping[str, str]]
) -> tuple[Split | None, Folds | None, Split | None]:
    """Return split and folds where every data set has its own, and else the splits of those that have one."""
    sets = list(zip(names, datasets, renamed, strict=True))
    owners = [(name, dataset.split, ids) for name, dataset, ids in sets if dataset.split is not None]
    own = _joined_split(owners)
    if own is None or len(owners) < len(sets):
        return None, None, own
    of_sets = [dataset.folds for dataset in datasets]
    known = [folds for folds in of_sets if folds is not None]
    numbers = {tuple(folds.splits) for folds in known}
    if len(known) < len(of_sets) or len(numbers) > 1:
        return own, None, None
    splits = {
        number: _joined_split(
            [(name, folds.splits[number], ids) for (name, _, ids), folds in zip(sets, known, strict=True)]
        )
        for number in numbers.pop()
    }
    source = "; ".join(f"{name}: {folds.source}" for (name, _, _), folds in zip(sets, known, strict=True))
    return own, Folds({number: split for number, split in splits.items() if split is not None}, source), None


def _joined_split(owners: Sequence[tuple[str, Split, Mapping[str, str]]]) -> Split | None:
    """The splits of several data sets as one; None without any."""
    if not owners:
        return None
    part_of = {
        ids[case]: part for _, split, ids in owners for part, cases in split.items() for case in cases if case in ids
    }
    return Split.of_parts(part_of, "; ".join(f"{name}: {split.source}" for name, split, _ in owners))
