"""Suggest what the values of labels that belong to no class may mean, as far as the data support it. Opens no file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from pipeline.checks.case_check import CheckedCase
from pipeline.config.files import write_yaml
from pipeline.datasets.dataset import Dataset

MANY_VALUES = 50
"""Unknown values in one label: so many classes were not forgotten, it is an image instead of a label."""

_STRAY = 20  # a value with fewer voxels than the smallest class of its label, by this factor, is stray
_SIZES = 8.0  # a class's volume differs by less than this factor from what it is in other labels


def suggest_remap(cases: Sequence[CheckedCase], dataset: Dataset) -> dict[int, str]:
    """Guess what unknown values mean: class names by value, for data.label_remap; one table for all labels.

    A value is taken for a class only where its label lacks as many of the classes that it annotates as it has values
    too many (a mask stored as 0 and 255 for the classes 0 and 1), and there is one way alone to take each for a class
    that, where other labels hold it, is of a similar size there: a left and a right kidney could be either. A value is
    taken for background only where it has a few stray voxels. Of everything else, and where labels disagree, nothing is
    said.
    """
    if dataset.parts:  # a value means another class in each data set
        return {}
    table = dataset.classes
    sizes_ml = _class_sizes_ml(cases, len(table.names))
    guesses: dict[int, set[str]] = defaultdict(set)
    refused: set[int] = set()
    for case in cases:
        unknown = sorted(case.unknown_values.keys() - table.known_values)
        if not unknown or len(unknown) > MANY_VALUES:
            continue
        meant = _meant(case, unknown, dataset, sizes_ml)
        for value in unknown:
            if value in meant:
                guesses[value].add(meant[value])
            else:
                refused.add(value)
    clear = sorted(value for value, names in guesses.items() if len(names) == 1 and value not in refused)
    return {value: next(iter(guesses[value])) for value in clear}


def write_remap(remap: Mapping[int, str]) -> str:
    """Write a table as YAML takes it in one line: {7: liver, 255: background}."""
    return write_yaml(dict(remap), in_one_line=True).strip()


def _class_sizes_ml(cases: Sequence[CheckedCase], n_classes: int) -> np.ndarray:
    """Median volume of every class over the labels that hold it, NaN where none does."""
    rows = [case.label.class_voxels * case.label.voxel_ml for case in cases if case.label is not None]
    sizes = np.full(n_classes, np.nan)
    for index in range(n_classes):
        held = [row[index] for row in rows if row[index]]
        if held:
            sizes[index] = float(np.median(held))
    return sizes


def _meant(case: CheckedCase, unknown: Sequence[int], dataset: Dataset, sizes_ml: np.ndarray) -> dict[int, str]:
    counts, table = case.unknown_values, dataset.classes
    present = {table.class_of_value.get(value) for value in counts}
    lacking = sorted(dataset.annotated_in(case.case) - present)
    known = [counts[value] for value in counts if table.class_of_value.get(value)]
    stray = {value: table.names[0] for value in unknown if known and counts[value] * _STRAY < min(known)}
    rest = [value for value in unknown if value not in stray and value > 0]
    if rest and len(rest) == len(lacking):
        fitting = {value: {c for c in lacking if _fits(counts[value], case, sizes_ml[c])} for value in rest}
        return stray | {value: table.names[index] for value, index in only_assignment(fitting).items()}
    return stray


def only_assignment(fitting: Mapping[int, Collection[int]]) -> dict[int, int]:
    """Give every value a class of its own among those that fit it; empty where there is no way, or more than one.

    Where there is one way alone, some value has one class left at every step (Lovász and Plummer, Matching Theory).

    Example:
        >>> only_assignment({7: {2}, 9: {1, 2}}), only_assignment({7: {1, 2}, 9: {1, 2}})
        ({7: 2, 9: 1}, {})
    """
    left = {value: set(classes) for value, classes in fitting.items()}
    pairs: dict[int, int] = {}
    while left:
        value = next((value for value, classes in left.items() if len(classes) == 1), None)
        if value is None:
            return {}
        (pairs[value],) = left.pop(value)
        left = {other: classes - {pairs[value]} for other, classes in left.items()}
    return pairs


def _fits(n_voxels: int, case: CheckedCase, usual_ml: float) -> bool:
    """Whether a structure of so many voxels is as large as the class is elsewhere; True where no label holds it."""
    if np.isnan(usual_ml) or not case.images:
        return True
    ml = n_voxels * float(np.prod(case.images[0].spacing_mm)) / 1000
    return usual_ml / _SIZES < ml < usual_ml * _SIZES
