"""Match the classes of predictions and labels by name. Reads no voxels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Integer

from pipeline.console.text import some_of
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.errors import DatasetError
from transforms.io.label_values import ignore_index, label_dtype


@dataclass(frozen=True)
class CommonClasses:
    """The classes that are scored, background first, and how label files and prediction files write them down.

    Voxels of any other class count as background: what predictions cannot know is no error of theirs.
    """

    label: ClassTable
    """All classes of the label files."""
    prediction: ClassTable
    """All classes of the prediction files."""
    of_label: tuple[int, ...]
    """`of_label[c]` is the index of the scored class c in `label`."""
    of_prediction: tuple[int, ...]
    """The same for `prediction`."""

    @classmethod
    def same(cls, table: ClassTable) -> CommonClasses:
        """Labels and predictions write the same classes down in the same way; only labels have values to ignore."""
        every = tuple(range(len(table.names)))
        return cls(table, ClassTable(table.names, table.values), every, every)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The labels' names of the classes that are scored."""
        return tuple(self.label.names[c] for c in self.of_label)

    @cached_property
    def only_in_labels(self) -> tuple[str, ...]:
        """Names of the classes that the predictions do not know."""
        return _others(self.label, self.of_label, self.prediction)

    @cached_property
    def only_in_predictions(self) -> tuple[str, ...]:
        """Names of the classes that the labels do not know."""
        return _others(self.prediction, self.of_prediction, self.label)

    @cached_property
    def ignored(self) -> int | None:
        """The index of ignored voxels in a map of the scored classes; None if no voxels are ignored."""
        return ignore_index(len(self.names)) if self.label.ignores_voxels else None

    def label_lookup(self) -> Integer[np.ndarray, " n"] | None:
        """Index among the scored classes (uint8 or int32) of each index of a label as read; None where all are equal.

        As long as the highest index of a label needs, `ignore_index` of its classes included.
        """
        n_read = len(self.label.names)
        lookup = _lookup(self.of_label, n_read, ignore_index(n_read) if self.ignored is not None else n_read - 1)
        if lookup is not None and self.ignored is not None:
            lookup[ignore_index(n_read)] = self.ignored
        return lookup

    def prediction_lookup(self) -> Integer[np.ndarray, " n"] | None:
        """The same for a prediction, which has no ignored voxels."""
        return _lookup(self.of_prediction, len(self.prediction.names), len(self.prediction.names) - 1)


def _others(table: ClassTable, scored: Iterable[int], other: ClassTable) -> tuple[str, ...]:
    """Names of the classes that are not scored; not those that both tables have, which a person left out."""
    kept, known = set(scored), set(other.names)
    return tuple(name for c, name in enumerate(table.names) if c not in kept and name not in known)


def _lookup(common: tuple[int, ...], n_classes: int, highest: int) -> Integer[np.ndarray, " n"] | None:
    if common == tuple(range(n_classes)):
        return None
    lookup = np.zeros(highest + 1, dtype=label_dtype(len(common)))
    lookup[list(common)] = np.arange(len(common))
    return lookup


def match_by_name(label: ClassTable, prediction: ClassTable) -> CommonClasses:
    """Find the classes that both tables name; the background is common whatever it is called.

    Names are compared as they are, and where that finds nothing without regard to case, blanks and punctuation: the
    name of a mask's file often is a class's name without them ("Left kidney", left_kidney.nii.gz).

    Raises:
        DatasetError: not one class beside the background in common.
    """
    exact = {name: c for c, name in enumerate(prediction.names) if c}
    loose = _by_plain_name(prediction)
    distinct = _by_plain_name(label)
    names_of_label = set(label.names)
    pairs = [(0, 0)]
    for c, name in enumerate(label.names[1:], start=1):
        found = exact.get(name)
        if found is None and _plain(name) in distinct:
            found = loose.get(_plain(name))
            # A name that another class of the labels has in full is that class's.
            if found is not None and prediction.names[found] in names_of_label:
                found = None
        if found is not None:
            pairs.append((c, found))
    if len(pairs) == 1:
        held = f"the predictions hold {some_of(prediction.names[1:], 6)}, the labels {some_of(label.names[1:], 6)}"
        remedy = "rename the classes of the predictions or of the labels in their labels.json"
        nothing = f"no class in common: {held}"
        raise DatasetError("dataset", "predictions and labels", "classes of the same names", nothing, remedy)
    of_label, of_prediction = zip(*pairs, strict=True)
    return CommonClasses(label, prediction, of_label, of_prediction)


def _by_plain_name(table: ClassTable) -> dict[str, int]:
    """Class by name without case and punctuation; names that are then the same are left out."""
    plain = [_plain(name) for name in table.names]
    count = Counter(plain[1:])
    return {name: c for c, name in enumerate(plain) if c and count[name] == 1}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name).strip("_").casefold()
