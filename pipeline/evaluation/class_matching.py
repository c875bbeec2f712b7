"""Match the classes of predictions and labels by name. Reads no voxels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Integer

from pipeline.console.text import some_of
from pipeline.datasets.class_table import ClassTable, only_ones, plain_name
from pipeline.datasets.errors import DatasetError
from pipeline.writers.segmentation import segment_label
from transforms.io.label_values import ignore_index, label_dtype


@dataclass(frozen=True)
class CommonClasses:
    """The classes that are scored, background first, and how label files and prediction files write them down.

    Voxels of any other class count as background: what predictions cannot know is not counted against them.
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
        return _lookup(self.of_label, self.label, self.ignored)

    def prediction_lookup(self) -> Integer[np.ndarray, " n"] | None:
        """The same for a prediction; voxels that it would ignore count as background."""
        return _lookup(self.of_prediction, self.prediction, 0 if self.prediction.ignores_voxels else None)


def _others(table: ClassTable, scored: Iterable[int], other: ClassTable) -> tuple[str, ...]:
    """Names of the classes that are not scored; not those that both tables have, which a person left out."""
    kept, known = set(scored), set(other.names)
    return tuple(name for c, name in enumerate(table.names) if c not in kept and name not in known)


def _lookup(scored: tuple[int, ...], read: ClassTable, ignored: int | None) -> Integer[np.ndarray, " n"] | None:
    """Index among the `scored` classes of each class that is read; None where all are equal.

    ignored: what voxels become that the file marks as to be ignored; None: there are none.
    """
    n_read = len(read.names)
    if scored == tuple(range(n_read)) and ignored != 0:
        return None
    lookup = np.zeros(n_read if ignored is None else ignore_index(n_read) + 1, dtype=label_dtype(len(scored)))
    lookup[list(scored)] = np.arange(len(scored))
    if ignored is not None:
        lookup[ignore_index(n_read)] = ignored
    return lookup


def match_by_name(label: ClassTable, prediction: ClassTable) -> CommonClasses:
    """Find the classes that both tables name; the background is common whatever it is called.

    See `match_names` for how names are compared.

    Raises:
        DatasetError: not one class beside the background in common.
    """
    found = match_names(label.names[1:], prediction.names[1:])
    pairs = [(0, 0), *((c + 1, found[c] + 1) for c in sorted(found))]
    if len(pairs) == 1:
        held = f"the predictions hold {some_of(prediction.names[1:], 6)}, the labels {some_of(label.names[1:], 6)}"
        remedy = "rename the classes of the predictions or of the labels in their labels.json"
        nothing = f"no class in common: {held}"
        raise DatasetError("dataset", "predictions and labels", "classes of the same names", nothing, remedy)
    of_label, of_prediction = zip(*pairs, strict=True)
    return CommonClasses(label, prediction, of_label, of_prediction)


def match_names(wanted: Sequence[str], found: Sequence[str]) -> dict[int, int]:
    """Find names among others: for each index in `wanted` that in `found`, where there is one.

    Names are compared as they are; where that finds nothing without regard to case, blanks and punctuation, since the
    name of a mask's file often is a class's name without them ("Left kidney", left_kidney.nii.gz); then as far as a
    DICOM SEG has them. A name that two would match so, or that is another wanted one in full, matches none.

    >>> match_names(["liver", "Left kidney"], ["left_kidney", "liver", "tumour"])
    {0: 1, 1: 0}
    """
    indices = {name: index for index, name in enumerate(found)}
    matched = {index: indices[name] for index, name in enumerate(wanted) if name in indices}
    in_full = set(wanted)
    for form in (plain_name, lambda name: plain_name(segment_label(name))):
        others = only_ones(found, form)
        for name, index in only_ones(wanted, form).items():
            if index not in matched and name in others and found[others[name]] not in in_full:
                matched[index] = others[name]
    return matched
