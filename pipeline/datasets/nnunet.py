"""Read nnU-Net's raw layout."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.datasets.class_table import parse_table
from pipeline.datasets.dataset import Label
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.json_document import read_description, read_json
from pipeline.datasets.rows import Listing, Request, Row, collect, parse_channel_names
from transforms.io.load import volume_kind, volume_stem

logger = logging.getLogger(__name__)

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
"""A file's name without suffix: the case and the number of the image channel."""


def read_nnunet(request: Request) -> Listing:
    """Read the nnU-Net raw layout: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, splits_final.json.

    Cases of imagesTs are test cases, labelled where labelsTs holds them. See nnU-Net's documentation/dataset_format.md.

    Raises:
        DatasetError: dataset.json or splits_final.json cannot be read or contradicts the files or the settings.
    """
    source = request.root / "dataset.json"
    description = read_description(request.root)
    channel_names = parse_channel_names(description.get("channel_names", description.get("modality")), source)
    ending = _file_ending(description, source)
    classes = None if request.images_only else request.classes(parse_table(description.get("labels"), source))
    problems: list[DatasetError] = []
    rows = _read_part(request, "Tr", ending, len(channel_names), problems)
    splits_file = request.root / "splits_final.json"
    if not request.images_only and request.files.is_file(splits_file):
        split_of = _read_fold(splits_file, request.fold)
        rows = _with_fold(rows, split_of, splits_file, request.fold, has_problems=bool(problems))
    tests = _read_part(request, "Ts", ending, len(channel_names), problems)
    return Listing((*rows, *(replace(row, split="test") for row in tests)), classes, channel_names, tuple(problems))


def has_channel_number(path: Path) -> bool:
    """Say whether a volume's name ends in a channel number: CASE_0000.nii.gz."""
    return _CHANNEL.fullmatch(volume_stem(path)) is not None


def has_all_channels(paths: Iterable[Path]) -> bool:
    """Say whether every volume has a channel number and every case all of them from _0000 on; False for no volume.

    >>> has_all_channels([Path("amos_0001.nii.gz"), Path("amos_0004.nii.gz")])
    False
    >>> has_all_channels([Path("a_0000.nii.gz"), Path("a_0001.nii.gz"), Path("b_0000.nii.gz"), Path("b_0001.nii.gz")])
    True
    """
    channels: dict[str, list[int]] = {}
    for path in paths:
        match = _CHANNEL.fullmatch(volume_stem(path))
        if match is None:
            return False
        channels.setdefault(match["case"], []).append(int(match["channel"]))
    return bool(channels) and all(sorted(numbers) == list(range(len(numbers))) for numbers in channels.values())


def _file_ending(description: dict[str, Any], source: Path) -> str:
    ending = description.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or volume_kind(f"x{ending}") is None:
        raise DatasetError("dataset", source, "file_ending to be a volume's", repr(ending), 'write ".nii.gz", say')
    return ending


def _read_part(request: Request, part: str, ending: str, n_channels: int, problems: list[DatasetError]) -> list[Row]:
    """The cases of imagesTr and labelsTr (part "Tr"), or of imagesTs and labelsTs."""

    def numbered(path: Path) -> tuple[str, int, Path]:
        match = re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", path.name)
        if match is None:
            raise DatasetError(
                "dataset", path, f"a name like CASE_0000{ending}", path.name, "rename it or move it away"
            )
        return match[1], int(match[2]), path

    def row(case: str) -> Row:
        channels = images.get(case, {})
        if channels and sorted(channels) != list(range(n_channels)):
            numbers = ", ".join(f"_{number:04d}" for number in sorted(channels))
            expected, remedy = f"{n_channels} channel files from _0000 on", "add the missing ones or remove the case"
            raise DatasetError("dataset", "", expected, numbers, remedy, case)
        return Row(case, tuple(path for _, path in sorted(channels.items())), labels.get(case))

    images: dict[str, dict[int, Path]] = {}
    for case, number, path in collect(numbered, request.files.visible(request.root / f"images{part}"), problems):
        images.setdefault(case, {})[number] = path
    labels: dict[str, Label] = {}
    if not request.images_only:
        labels = {
            path.name.removesuffix(ending): path for path in request.files.visible(request.root / f"labels{part}")
        }
    return collect(row, sorted(images.keys() | labels.keys()), problems)


def _read_fold(path: Path, fold: int) -> dict[str, str]:
    """Return "train" or "val" for the cases that a fold of splits_final.json names. Raises DatasetError."""
    folds = read_json(path)
    if not isinstance(folds, list) or not 0 <= fold < len(folds):
        found = f"{len(folds)} folds" if isinstance(folds, list) else "no list of folds"
        raise DatasetError("dataset", path, f"fold {fold} (data.fold)", found, "choose a fold from 0 on that it has")
    lists = folds[fold]
    if not isinstance(lists, dict) or not all(isinstance(lists.get(name), list) for name in ("train", "val")):
        found = f"{lists!r:.60}"
        raise DatasetError("dataset", path, f'fold {fold} to hold lists "train" and "val"', found, "write both lists")
    train = {str(case) for case in lists["train"]}
    val = {str(case) for case in lists["val"]}
    if train & val:
        raise DatasetError(
            "subject_in_two_splits", path, "every case in train or in val",
            f"case {min(train & val)} is in train and in val of fold {fold}", "remove it from one of them",
        )  # fmt: skip
    return dict.fromkeys(train, "train") | dict.fromkeys(val, "val")


def _with_fold(rows: list[Row], split_of: dict[str, str], path: Path, fold: int, *, has_problems: bool) -> list[Row]:
    """Give rows the split of a fold; cases that it leaves out stay unused, as in nnU-Net.

    A case of the fold that is no row is an error, unless `has_problems` already says why there may be none.
    """
    unknown = split_of.keys() - {row.id for row in rows}
    if unknown and not has_problems:
        raise DatasetError(
            "dataset", path, "cases of imagesTr", f"case {min(unknown)} of fold {fold}, which has no image there",
            "add the image or remove the case from the fold",
        )  # fmt: skip
    unused = sum(row.id not in split_of for row in rows)
    if unused:
        logger.warning("%s: %d cases are neither in train nor in val of fold %d and stay unused", path, unused, fold)
    return [replace(row, split=split_of[row.id]) for row in rows if row.id in split_of]
