"""What a data set is: cases, class names, and which case is on which side. Opens no file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

Label = Path | tuple[tuple[int, Path], ...]
"""A label map, or (class index, mask) pairs of which later ones win where they overlap."""


class DatasetError(ValueError):
    """A data set that cannot be used as it lies: one line with the case or file, expected, found, what to do."""


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
    own, or None where it has none.
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
