"""A data set's own division for cross-validation: nnU-Net's splits_final.json, or a fold for every training case."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.console.text import some_of
from pipeline.datasets.dataset import Folds, Split
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.json_document import read_json
from pipeline.datasets.rows import Listing, Row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnFolds:
    """What a data set says about its folds; no case is checked yet."""

    source: str
    """The file, or what in which file."""
    split_of: Mapping[int, Mapping[str, str]]
    """For each fold, in order, "train", "val" or "test" by case id; what a fold leaves out is not used in it."""
    labelled: frozenset[str]
    """The cases with a label."""

    def check_number(self, fold: int) -> None:
        """Raise DatasetError where there is no fold of this number."""
        if fold not in self.split_of:
            numbers = list(self.split_of)
            found = f"{len(numbers)} folds, {some_of([str(number) for number in numbers], 12)}"
            raise DatasetError("dataset", self.source, f"fold {fold} (data.fold)", found, "choose one of these")

    def rows_of(self, fold: int, rows: Sequence[Row]) -> list[Row]:
        """Give rows their split in a fold; cases that it leaves out stay unused, as in nnU-Net."""
        split_of = self.split_of[fold]
        return [replace(row, split=split_of[row.id]) for row in rows if row.id in split_of]

    def name_of(self, fold: int) -> str:
        """Say which fold of what it is."""
        return f"fold {fold} of {self.source}"

    def with_others(self, fold: int, split: Split, refused: Collection[str]) -> Folds:
        """Return all folds, one of which was checked; the others are as the data set has them, without what is refused.

        Each is checked when it is its turn: it may use cases that the others do not.
        """
        splits = {}
        for number, split_of in self.split_of.items():
            usable = {case: part for case, part in split_of.items() if case in self.labelled and case not in refused}
            splits[number] = split if number == fold else Split.of_parts(usable, self.name_of(number))
        return Folds(splits, self.source)


def own_folds(listing: Listing, root: Path, split_file: str = "") -> OwnFolds | None:
    """Return a data set's own folds; None where it has none.

    Args:
        listing: what its reader found.
        root: the data set, for messages.
        split_file: a file like nnU-Net's splits_final.json that a person names, which comes before everything else.

    Raises:
        DatasetError: a file of folds that cannot be read, or names a case that is not there or in two parts; a
            training case without a fold where others have one.
    """
    labelled = frozenset(row.id for row in listing.rows if row.label is not None)
    if split_file or listing.splits_file:
        path = Path(split_file) if split_file else listing.splits_file
        assert path is not None
        tests = {row.id: "test" for row in listing.rows if row.split == "test"}
        folds = OwnFolds(str(path), {n: tests | split_of for n, split_of in enumerate(_read_splits(path))}, labelled)
        _check_cases(folds, listing)
        return folds
    alike = {row.id: row.split for row in listing.rows if row.fold is None and row.split == "val"}
    alike |= {row.id: row.split for row in listing.rows if row.split == "test"}  # a list may number these, too
    numbers = sorted({row.fold for row in listing.rows if row.fold is not None and row.id not in alike})
    if not numbers:
        return None
    pool = [row for row in listing.rows if row.id not in alike]
    without = [row.id for row in pool if row.fold is None]
    if without:
        expected, remedy = "a fold for every training case", "number all of them or none"
        raise DatasetError("dataset", root, expected, f"none for case {some_of(without, 3)}", remedy)
    split_of = {n: alike | {row.id: "val" if row.fold == n else "train" for row in pool} for n in numbers}
    return OwnFolds(f"the cases' own folds in {root}", split_of, labelled)


def _read_splits(path: Path) -> list[dict[str, str]]:
    """Return "train" or "val" by case for each fold of a file like splits_final.json. Raises DatasetError."""
    folds = read_json(path)
    if not isinstance(folds, list) or not folds:
        expected, remedy = 'a list of folds like {"train": [...], "val": [...]}', "write one, as nnU-Net does"
        raise DatasetError("dataset", path, expected, f"{folds!r:.60}", remedy)
    return [_read_fold(path, number, lists) for number, lists in enumerate(folds)]


def _read_fold(path: Path, number: int, lists: Any) -> dict[str, str]:
    if not isinstance(lists, dict) or not all(isinstance(lists.get(name), list) for name in ("train", "val")):
        expected, remedy = f'fold {number} to hold lists "train" and "val"', "write both lists"
        raise DatasetError("dataset", path, expected, f"{lists!r:.60}", remedy)
    train = {str(case) for case in lists["train"]}
    val = {str(case) for case in lists["val"]}
    if train & val:
        raise DatasetError(
            "subject_in_two_splits", path, "every case in train or in val",
            f"case {min(train & val)} is in train and in val of fold {number}", "remove it from one of them",
        )  # fmt: skip
    return dict.fromkeys(sorted(train), "train") | dict.fromkeys(sorted(val), "val")


def _check_cases(folds: OwnFolds, listing: Listing) -> None:
    """Refuse a case of a file of folds without a row, unless the listing's problems already say why there may be none.

    Says which cases are in no fold.
    """
    known = {row.id for row in listing.rows}
    for number, split_of in folds.split_of.items():
        unknown = split_of.keys() - known
        if unknown and not listing.problems:
            raise DatasetError(
                "dataset", folds.source, "cases of the data set",
                f"case {min(unknown)} of fold {number}, which has no image there",
                "add the image or remove the case from the fold",
            )  # fmt: skip
    named = {case for split_of in folds.split_of.values() for case in split_of}
    unused = [row.id for row in listing.rows if row.id not in named]
    if unused:
        logger.warning(
            "%s: %d cases are in no fold and stay unused (%s)", folds.source, len(unused), some_of(unused, 3)
        )
