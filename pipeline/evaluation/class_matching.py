"""Which classes predictions and labels have in common: matched by name, the others left out by name. Reads no voxels.

Where the names on either side come from is `pairing`'s.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.console.text import some_of
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.errors import DatasetError
from transforms.io.label_values import ignore_index


@dataclass(frozen=True)
class CommonClasses:
    """The classes that are scored, and how each side writes its own down.

    `names` are the labels' names of what both sides hold, background first, in the labels' order; `of_prediction[c]`
    and `of_label[c]` are the indices of class c in the tables of the two sides. Voxels of any other class count as
    background: what one side cannot know is no error of the other.
    """

    label: ClassTable
    prediction: ClassTable
    of_label: tuple[int, ...]
    of_prediction: tuple[int, ...]

    @classmethod
    def same(cls, table: ClassTable) -> CommonClasses:
        """Both sides write the same classes down in the same way; only labels have values to ignore."""
        every = tuple(range(len(table.names)))
        return cls(table, ClassTable(table.names, table.values), every, every)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the classes that are scored."""
        return tuple(self.label.names[c] for c in self.of_label)

    @cached_property
    def only_in_labels(self) -> tuple[str, ...]:
        """Names of the classes that the predictions do not know."""
        return _others(self.label, self.of_label)

    @cached_property
    def only_in_predictions(self) -> tuple[str, ...]:
        """Names of the classes that the labels do not know."""
        return _others(self.prediction, self.of_prediction)

    @cached_property
    def ignored(self) -> int | None:
        """The index of voxels that count for nothing, in a map of the classes that are scored; None for none."""
        return None if self.label.ignore_value is None else ignore_index(len(self.names))

    def label_lookup(self) -> np.ndarray | None:
        """Index among the scored classes of each index of a label as read; None where they are the same."""
        n_read = len(self.label.names)
        lookup = _lookup(self.of_label, n_read, ignore_index(n_read) if self.ignored is not None else n_read - 1)
        if lookup is not None and self.ignored is not None:
            lookup[ignore_index(n_read)] = self.ignored
        return lookup

    def prediction_lookup(self) -> np.ndarray | None:
        """The same for a prediction."""
        return _lookup(self.of_prediction, len(self.prediction.names), len(self.prediction.names) - 1)


def _others(table: ClassTable, common: Iterable[int]) -> tuple[str, ...]:
    kept = set(common)
    return tuple(name for c, name in enumerate(table.names) if c not in kept)


def _lookup(common: tuple[int, ...], n_classes: int, highest: int) -> np.ndarray | None:
    if common == tuple(range(n_classes)):
        return None
    lookup = np.zeros(highest + 1, dtype=np.uint8 if len(common) <= 255 else np.int32)
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
    known = _by_plain_name(label)
    pairs = [(0, 0)]
    for c, name in enumerate(label.names[1:], start=1):
        plain = _plain(name)
        found = exact.get(name, loose.get(plain) if plain in known else None)
        # A name that the label has in full is not taken by one that only resembles it.
        if found is not None and (name in exact or prediction.names[found] not in label.names):
            pairs.append((c, found))
    if len(pairs) == 1:
        raise DatasetError(
            "predictions and labels have no class in common: "
            f"the predictions hold {some_of(prediction.names[1:], 6)}, the labels {some_of(label.names[1:], 6)}; "
            "rename one side's classes in its labels.json"
        )
    of_label, of_prediction = zip(*pairs, strict=True)
    return CommonClasses(label, prediction, of_label, of_prediction)


def _by_plain_name(table: ClassTable) -> dict[str, int]:
    """Class by name without case and punctuation; names that are then the same are left out."""
    plain = [_plain(name) for name in table.names]
    count = Counter(plain[1:])
    return {name: c for c, name in enumerate(plain) if c and count[name] == 1}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name).strip("_").casefold()
