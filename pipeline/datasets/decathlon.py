"""Read the Medical Segmentation Decathlon layout and MONAI datalists."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.datasets.class_table import find_table, parse_table, reconcile
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.rows import Given, Listing, Row, each, inside, parse_channel_names, read_description
from transforms.io.load import volume_stem


def read_msd(root: Path, fold: int | None, given: Given) -> Listing:
    """Read a Decathlon dataset.json or MONAI datalist.

    "training" lists {"image", "label"} and maybe "fold"; "validation" and "test" where there are such cases.
    """
    description = read_description(root)
    source = root / "dataset.json"
    labels = description.get("labels")
    table = reconcile(parse_table(labels, source) if labels else find_table(root), given, root)
    rows: list[Row] = []
    problems: list[str] = []
    for part, split in (("training", "train"), ("validation", "val"), ("test", "test"), ("testing", "test")):
        items = description.get(part) or []
        if not isinstance(items, list):
            raise DatasetError(f'{source}: expected "{part}" to be a list, found {str(items)[:60]!r}')
        folded = (
            fold is not None and split == "train" and any(isinstance(item, dict) and "fold" in item for item in items)
        )
        rows += each(partial(_msd_row, root, split, fold if folded else None), items, problems)
        if folded and not problems and not any(row.split == "val" for row in rows):
            raise DatasetError(f"{source}: expected training cases of fold {fold} (data.fold), found none")
    channels = description.get("modality", description.get("channel_names"))
    n_channels = max((len(row.image) for row in rows), default=1)
    names = (
        parse_channel_names(channels, source)
        if channels
        else tuple(f"image{i}" if i else "image" for i in range(n_channels))
    )
    return Listing(tuple(rows), table, names, tuple(problems))


def _msd_row(root: Path, split: str, fold: int | None, item: Any) -> Row:
    """Return the row of an entry; where `fold` is given, the entry's own fold says whether it validates."""
    source = root / "dataset.json"
    split = split if fold is None else _split_of_fold(item, fold, source)
    item = {"image": item} if isinstance(item, str | list) else item
    if not isinstance(item, dict) or "image" not in item:
        raise DatasetError(f'{source}: expected an entry like {{"image": …, "label": …}}, found {str(item)[:80]!r}')
    names = item["image"] if isinstance(item["image"], list) else [item["image"]]
    image = tuple(inside(root, name, source) for name in names)
    label = inside(root, item["label"], source) if item.get("label") else None
    subject = item.get("subject", item.get("subject_id"))
    stem = volume_stem(image[0]) if image else ""
    return Row(str(item.get("case") or item.get("id") or stem), image, label, split, str(subject) if subject else None)


def _split_of_fold(item: Any, fold: int, source: Path) -> str:
    number = item.get("fold") if isinstance(item, dict) else None
    if not isinstance(number, int):
        raise DatasetError(f"{source}: expected a fold number for every training case, found {str(item)[:80]!r}")
    return "val" if number == fold else "train"
