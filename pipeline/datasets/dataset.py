"""Cases, splits and data sets as records. Opens no file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pipeline.console.text import some_of
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.errors import DatasetError
from transforms.io.errors import VolumeError

SPLITS = ("train", "val", "test")
"""The splits that cases are divided into, in the order in which they are written."""

Label = Path | tuple[tuple[int, Path], ...]
"""A label map, or one mask a structure: (class index, mask) pairs of which later ones win where they overlap."""


MissingMasks = Literal["not_annotated", "absent"]
"""What it means that a case has no mask of a structure of which other cases have one, as `data.missing_masks` says."""


def label_files(label: Label | None) -> tuple[Path, ...]:
    """Return the files of a label: one label map, or every mask; none for None."""
    if isinstance(label, Path):
        return (label,)
    return tuple(path for _, path in label or ())


def label_path(label: Label | None) -> Path | None:
    """Return where a label lies: the file of a label map, the folder that holds the masks; None without any file.

    >>> label_path(((1, Path("s1/segmentations/liver.nii.gz")), (2, Path("s1/segmentations/spleen.nii.gz"))))
    PosixPath('s1/segmentations')
    """
    if isinstance(label, Path):
        return label
    return label[0][1].parent if label else None


def check_annotated(
    case: str, label: Label | None, names: Sequence[str], annotated: Collection[int], n_voxels: Sequence[int]
) -> None:
    """Raise VolumeError where a label holds voxels of classes that it is said not to annotate: which of both is wrong?

    Args:
        case: its id.
        label: its label.
        names: of the classes, background first.
        annotated: indices of the annotated ones.
        n_voxels: the label's voxels of each class.
    """
    held = [c for c in range(1, len(names)) if n_voxels[c] and c not in annotated]
    if held:
        said = some_of([name for c, name in enumerate(names) if c and c in annotated], 8) or "nothing"
        raise VolumeError(
            "not_annotated", label_path(label) or "", f"voxels of the annotated classes alone ({said})",
            some_of([f"{n_voxels[c]} of {names[c]}" for c in held], 8),
            "name these classes as labelled, too, or leave them out of the label", case,
        )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One volume of a data set with its label."""

    id: str
    """Unique in its data set, and safe as a file name."""
    subject: str
    """Whose scan it is; scans of one subject never lie in different splits."""
    image: tuple[Path, ...]
    """One file or DICOM folder a channel, or the file whose `frames` are the channels."""
    label: Label | None
    held_out: bool = False
    """The data set keeps the case for testing without saying which cases validate."""
    annotated: tuple[int, ...] | None = None
    """Classes, background left out, that the label shows where they are; voxels of the others may be anything that the
    label calls background. None: all."""
    table: ClassTable | None = None
    """The classes with their values in its own label map, where these are not the data set's; None: they are."""
    frames: tuple[int, ...] = ()
    """The frame of the one image file that each channel is; none where each channel is a file."""

    def with_channels(self, order: Sequence[int]) -> Case:
        """The case with its channels in another order."""
        if self.frames:
            return replace(self, frames=tuple(self.frames[n] for n in order))
        return replace(self, image=tuple(self.image[n] for n in order))


@dataclass(frozen=True)
class Split:
    """Case ids of train, validation and test, each sorted."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    source: str
    """Where the division comes from, in words."""

    @classmethod
    def of_parts(cls, part_of: Mapping[str, str], source: str) -> Split:
        """Return the split of cases each of which is said to be in "train", "val" or "test".

        >>> Split.of_parts({"b": "train", "a": "train", "c": "val"}, source="by hand").train
        ('a', 'b')
        """
        ids = {name: tuple(sorted(case for case, part in part_of.items() if part == name)) for name in SPLITS}
        return cls(**ids, source=source)

    def items(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Iterate over ("train", ids), ("val", ids), ("test", ids)."""
        return ((name, getattr(self, name)) for name in SPLITS)

    def of(self, case: str) -> str | None:
        """Return which split a case is in, None where it is in none.

        >>> Split(train=("a", "b"), val=("c",), test=(), source="by hand").of("c")
        'val'
        """
        return self._name_of.get(case)

    def without(self, cases: Collection[str]) -> Split:
        """Leave some cases out."""
        kept = {name: tuple(case for case in ids if case not in cases) for name, ids in self.items()}
        return Split(**kept, source=self.source)

    def joined(self, other: Split) -> Split:
        """Put the division of other cases beside this one."""
        both = {name: tuple(sorted((*ids, *getattr(other, name)))) for name, ids in self.items()}
        return Split(**both, source=f"{self.source}; the others {other.source}")

    @cached_property
    def _name_of(self) -> dict[str, str]:
        return {case: name for name, cases in self.items() for case in cases}

    @property
    def hash(self) -> str:
        """Hex SHA-256 over the sorted ids of each split: equal for equal splits, wherever they come from."""
        ids = {name: sorted(cases) for name, cases in self.items()}
        return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Folds:
    """A division for cross-validation: in each fold some cases validate and the others train."""

    splits: Mapping[int, Split]
    """By the number of the fold, as data.fold names it, in the order of the numbers."""
    source: str
    """Where the division comes from, in words."""

    @property
    def hash(self) -> str:
        """Hex SHA-256 over the numbers and splits: equal for equal folds, wherever they come from."""
        hashes = {str(number): split.hash for number, split in self.splits.items()}
        return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()

    def without(self, cases: Collection[str]) -> Folds:
        """Leave some cases out of every fold."""
        return replace(self, splits={number: split.without(cases) for number, split in self.splits.items()})

    def twice_validated(self) -> tuple[str, int, int] | None:
        """A case that validates in two folds, and their numbers; None where every case does so once at most."""
        fold_of: dict[str, int] = {}
        for number, split in self.splits.items():
            for case in split.val:
                if case in fold_of:
                    return case, fold_of[case], number
                fold_of[case] = number
        return None


@dataclass(frozen=True)
class Part:
    """One of several data sets that were joined."""

    name: str
    """What it is called in names of cases and in messages."""
    root: Path
    layout: str
    n_cases: int
    class_names: tuple[str, ...]
    """Of the classes that it names, without the background; the others are not annotated in its cases."""
    split_source: str
    """Where its own division comes from, in words."""

    @property
    def in_words(self) -> str:
        """What it brings."""
        classes = some_of(self.class_names, 8)
        return f"{self.name}: {self.n_cases} cases, layout {self.layout}, split {self.split_source}; names {classes}"


@dataclass(frozen=True)
class Dataset:
    """A listed and checked data set."""

    root: Path
    """Its folder, or the file that lists its cases; of several data sets the folder that holds them all."""
    layout: str
    """How it lies on disk, as `data.layout` names it."""
    cases: tuple[Case, ...]
    """Every case that may train, validate or test: those with a label."""
    classes: ClassTable
    """Names and label-file values of its classes, background first."""
    channel_names: tuple[str, ...]
    """Names of the image channels, in the order of `Case.image`."""
    split: Split | None = None
    """The data set's own division, None where it has none."""
    folds: Folds | None = None
    """The data set's own division for cross-validation, of which `split` is a fold; None where it has none."""
    own_split: Split | None = None
    """Of several data sets the division of those that have one, where others have none and are to be divided."""
    unlabelled: tuple[Case, ...] = ()
    """Images that the data set keeps for testing without a label."""
    refused: tuple[DatasetError, ...] = ()
    """What is wrong with each case, or entry, that was left out."""
    warnings: tuple[DatasetError, ...] = ()
    """What is odd about it, but keeps no case from being used."""
    parts: tuple[Part, ...] = ()
    """The data sets that were joined; none where it is one."""

    @property
    def is_partly_labelled(self) -> bool:
        """Whether some label does not annotate all classes."""
        return any(case.annotated is not None for case in self.cases)

    def case(self, name: str) -> Case:
        """The case of this id. Raises KeyError where there is none."""
        return self._by_id[name]

    @cached_property
    def _by_id(self) -> dict[str, Case]:
        return {case.id: case for case in self.cases}

    def annotated_in(self, case: str) -> frozenset[int]:
        """The classes, background left out, that the label of a case annotates."""
        return self._annotated_in[case]

    def annotated_names(self) -> dict[str, frozenset[str]]:
        """By case the names of the classes that its label annotates, for the cases that do not annotate all."""
        names = self.classes.names
        return {
            case.id: frozenset(names[index] for index in case.annotated)
            for case in self.cases
            if case.annotated is not None
        }

    def n_annotated(self, cases: Collection[str]) -> dict[str, int]:
        """How many of these cases annotate each class but the background, by its name."""
        shown = [self.annotated_in(case) for case in cases]
        return {name: sum(c in of_case for of_case in shown) for c, name in enumerate(self.classes.names) if c}

    @cached_property
    def _annotated_in(self) -> dict[str, frozenset[int]]:
        every = frozenset(range(1, len(self.classes.names)))
        return {case.id: every if case.annotated is None else frozenset(case.annotated) for case in self.cases}
