"""What a data set is: cases, class names, and which case is on which side. Opens no file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from transforms.io.errors import InputError

Label = Path | tuple[tuple[int, Path], ...]
"""A label map, or (class index, mask) pairs of which later ones win where they overlap."""


class DatasetError(InputError):
    """A data set that cannot be used as it lies: kind, where, expected, found, remedy, case, as `InputError` has them.

    `lines` has one line a fault; `parts` an error a fault, several where `all_of` joined them.
    """

    def __init__(
        self, kind: str, where: object = "", expected: str = "", found: str = "", remedy: str = "", case: str = ""
    ) -> None:
        if not remedy:  # a message of one string: until every caller names the fields
            kind, expected, found, remedy = "dataset", "a data set that can be used", kind, "correct it"
            self._text = found
        super().__init__(kind, where, expected, found, remedy, case)
        self.parts: tuple[DatasetError, ...] = (self,)

    @classmethod
    def all_of(cls, errors: Sequence[DatasetError]) -> Self:
        """Return one error for all of these (at least one), in their order."""
        parts = tuple(part for error in errors for part in error.parts)
        joined = cls(*parts[0].args)
        joined.parts = parts
        return joined

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each fault."""
        return tuple(getattr(part, "_text", None) or InputError.__str__(part) for part in self.parts)

    def __str__(self) -> str:
        """All lines."""
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Case:
    """One volume to learn from: its id (unique, safe as a file name), its subject, image channels and label.

    `held_out` is True where the data set keeps the case for testing without saying which cases validate.
    """

    id: str
    subject: str
    image: tuple[Path, ...]
    label: Label | None
    held_out: bool = False


@dataclass(frozen=True)
class Split:
    """Case ids of the three sides, each sorted, and where the division comes from."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    source: str

    @property
    def hash(self) -> str:
        """Hex SHA-256 over the sorted ids of each side: equal for equal splits, wherever they come from."""
        sides = {"test": sorted(self.test), "train": sorted(self.train), "val": sorted(self.val)}
        return hashlib.sha256(json.dumps(sides, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A listed and checked data set.

    `label_values[c]` is the value of class c in the label files; `class_names[0]` is the background. `unlabelled` holds
    the images that the data set keeps for testing without a label; `cases` all others. `split` is the data set's
    own, or None where it has none. `label_remap` gives class indices to further values of the label files, or to values
    that shall mean something else. `refused` says by case what was wrong with those left out.
    """

    root: Path
    layout: str
    cases: tuple[Case, ...]
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    channel_names: tuple[str, ...]
    ignore_value: int | None = None
    split: Split | None = None
    unlabelled: tuple[Case, ...] = ()
    label_remap: Mapping[int, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_of_value(self) -> dict[int, int]:
        """The class index of every known value of a label map; the ignore value has none."""
        values = {value: index for index, value in enumerate(self.label_values)} | dict(self.label_remap)
        return dict(sorted(values.items()))

    @property
    def known_values(self) -> frozenset[int]:
        """The values that a label map may hold: those of the classes, and the one to ignore."""
        return frozenset(self.class_of_value) | (frozenset() if self.ignore_value is None else {self.ignore_value})
