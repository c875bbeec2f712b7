"""Read nnU-Net's raw layout."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.datasets.class_table import parse_table, read_json, reconcile
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.rows import Given, Listing, Row, each, list_visible, parse_channel_names, read_description
from transforms.io.load import volume_kind

logger = logging.getLogger(__name__)


def read_nnunet(root: Path, fold: int | None, given: Given) -> Listing:
    """Read the nnU-Net raw layout: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, splits_final.json for `fold`.

    Cases of imagesTs are test cases, labelled where labelsTs holds them. See nnU-Net's documentation/dataset_format.md.
    """
    description = read_description(root)
    channels = parse_channel_names(description.get("channel_names", description.get("modality")), root / "dataset.json")
    ending = description.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or volume_kind(f"x{ending}") is None:
        raise DatasetError(f"{root / 'dataset.json'}: expected file_ending to be a volume's, found {ending!r}")
    table = reconcile(parse_table(description.get("labels"), root / "dataset.json"), given, root)
    problems: list[str] = []
    listed = partial(_nnunet_rows, root, ending=ending, n_channels=len(channels), problems=problems)
    rows = listed("Tr", with_labels=fold is not None)
    if fold is not None:
        rows = _with_fold(rows, root / "splits_final.json", fold, has_problems=bool(problems))
    tests = listed("Ts", with_labels=fold is not None, split="test")
    return Listing((*rows, *tests), table, channels, tuple(problems))


def _nnunet_rows(
    root: Path,
    part: str,
    *,
    ending: str,
    n_channels: int,
    problems: list[str],
    with_labels: bool,
    split: str | None = None,
) -> list[Row]:
    def named(path: Path) -> tuple[str, int, Path]:
        match = re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", path.name)
        if match is None:
            raise DatasetError(f"{path}: expected a name like CASE_0000{ending}; rename it or move it away")
        return match[1], int(match[2]), path

    def row(case: str) -> Row:
        found = images.get(case, {})
        if found and sorted(found) != list(range(n_channels)):
            numbers = ", ".join(f"_{number:04d}" for number in sorted(found))
            raise DatasetError(f"case {case}: expected {n_channels} channel files from _0000 on, found {numbers}")
        return Row(case, tuple(path for _, path in sorted(found.items())), labels.get(case), split)

    images: dict[str, dict[int, Path]] = {}
    for case, number, path in each(named, list_visible(root / f"images{part}"), problems):
        images.setdefault(case, {})[number] = path
    files = list_visible(root / f"labels{part}") if with_labels else ()
    labels = {path.name.removesuffix(ending): path for path in files}
    return each(row, sorted(images.keys() | labels.keys()), problems)


def _with_fold(rows: list[Row], path: Path, fold: int, *, has_problems: bool) -> list[Row]:
    """Give rows the split that splits_final.json has for them; cases it leaves out stay unused, as in nnU-Net.

    A case of the file that is no row is an error, unless `has_problems` already says why there may be none.
    """
    if not path.is_file():
        return rows
    folds = read_json(path)
    if not isinstance(folds, list) or not 0 <= fold < len(folds):
        n_folds = len(folds) if isinstance(folds, list) else "no list of"
        raise DatasetError(f"{path}: expected fold {fold} (data.fold), found {n_folds} folds")
    chosen = folds[fold]
    if not isinstance(chosen, dict) or not all(isinstance(chosen.get(split), list) for split in ("train", "val")):
        raise DatasetError(f'{path}: expected fold {fold} to hold lists "train" and "val"')
    split_of = {str(case): split for split in ("train", "val") for case in chosen[split]}
    if both := set(map(str, chosen["train"])) & set(map(str, chosen["val"])):
        raise DatasetError(f"{path}: case {min(both)} is in train and in val of fold {fold}")
    if (unknown := split_of.keys() - {row.id for row in rows}) and not has_problems:
        raise DatasetError(f"{path}: case {min(unknown)} of fold {fold} has no image in imagesTr")
    if unused := sum(row.id not in split_of for row in rows):
        logger.warning("%s: %d cases are neither in train nor in val of fold %d and stay unused", path, unused, fold)
    return [replace(row, split=split_of[row.id]) for row in rows if row.id in split_of]
