"""How published data sets lie on disk: one reader a layout, from a folder to rows; `cases` judges the rows.

Names inside a data set's own files (dataset.json, splits_final.json) are not trusted: they stay below its root, and so
do links, which an archive may bring along (`leaves`). A list that a person wrote (`case_list`) may name any file.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from pipeline.class_table import ClassTable, find_table, parse_table, read_json, reconcile
from pipeline.dataset import DatasetError, Label
from transforms.load import volume_kind, volume_stem

logger = logging.getLogger(__name__)

_SIDES = {
    "train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip


_MAX_CSV_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """A case as its data set writes it down; `side` is "train", "val", "test" or None, `subject` None if not said."""

    id: str
    image: tuple[Path, ...]
    label: Label | None
    side: str | None = None
    subject: str | None = None


@dataclass(frozen=True)
class Listing:
    """What a layout's reader found; `problems` says in one line what is wrong with each entry that gave no row."""

    rows: tuple[Row, ...]
    table: ClassTable
    channel_names: tuple[str, ...]
    problems: tuple[str, ...] = ()


Given = Sequence[str] | None
Reader = Callable[[Path, int | None, Given], Listing]
"""Folder, fold and class names wanted -> listing. No fold: images alone are wanted, without split and labels."""
Item = TypeVar("Item")
Made = TypeVar("Made")


def each(make: Callable[[Item], Made], items: Iterable[Item], problems: list[str]) -> list[Made]:
    """Return what `make` makes of the items; the message of each that it refuses is added to `problems`."""
    made = []
    for item in items:
        try:
            made.append(make(item))
        except DatasetError as error:
            problems.append(str(error))
    return made


def recognise(root: Path) -> str:
    """Return the layout of a data set. Raises DatasetError that says what was looked for."""
    if root.is_file():
        return "list"
    if (root / "dataset.json").is_file():
        description = _description(root)
        has_images = (root / "imagesTr").is_dir()
        if has_images and any(re.search(r"_\d{4}$", volume_stem(path)) for path in _visible(root / "imagesTr")):
            return "nnunet"  # first, since dataset.json of nnU-Net 1 has a training list, too
        if "training" in description or has_images:
            return "msd" if "training" in description else "nnunet"
    if any((root / name).is_file() for name in ("cases.csv", "cases.json")):
        return "list"  # somebody wrote down what counts, and how it is divided
    if (root / "images").is_dir() and (root / "labels").is_dir():
        return "pairs"
    if any(_scan(path) and _is_segmented(path) for path in _folders(root)):
        return "totalsegmentator"
    raise DatasetError(
        f"{root}: expected a data set, found none of: dataset.json with imagesTr/ (nnU-Net) or with a training list "
        "(Decathlon, MONAI); CASE/ct.nii.gz with CASE/segmentations/ (TotalSegmentator, AbdomenAtlas); images/ with "
        "labels/; cases.csv or cases.json. Name the folder that holds one of these, or a list file"
    )


def read_nnunet(root: Path, fold: int | None, given: Given) -> Listing:
    """Read the nnU-Net raw layout: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, splits_final.json for `fold`.

    Cases of imagesTs are test cases, labelled where labelsTs holds them. See nnU-Net's documentation/dataset_format.md.
    """
    description = _description(root)
    channels = _names(description.get("channel_names", description.get("modality")), root / "dataset.json")
    ending = description.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or volume_kind(f"x{ending}") is None:
        raise DatasetError(f"{root / 'dataset.json'}: expected file_ending to be a volume's, found {ending!r}")
    table = reconcile(parse_table(description.get("labels"), root / "dataset.json"), given, root)
    problems: list[str] = []
    listed = partial(_nnunet_rows, root, ending=ending, n_channels=len(channels), problems=problems)
    rows = listed("Tr", with_labels=fold is not None)
    if fold is not None:
        rows = _with_fold(rows, root / "splits_final.json", fold, has_problems=bool(problems))
    tests = listed("Ts", with_labels=fold is not None, side="test")
    return Listing((*rows, *tests), table, channels, tuple(problems))


def _nnunet_rows(
    root: Path,
    part: str,
    *,
    ending: str,
    n_channels: int,
    problems: list[str],
    with_labels: bool,
    side: str | None = None,
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
        return Row(case, tuple(path for _, path in sorted(found.items())), labels.get(case), side)

    images: dict[str, dict[int, Path]] = {}
    for case, number, path in each(named, _visible(root / f"images{part}"), problems):
        images.setdefault(case, {})[number] = path
    files = _visible(root / f"labels{part}") if with_labels else ()
    labels = {path.name.removesuffix(ending): path for path in files}
    return each(row, sorted(images.keys() | labels.keys()), problems)


def _with_fold(rows: list[Row], path: Path, fold: int, *, has_problems: bool) -> list[Row]:
    """Give rows the side that splits_final.json has for them; cases it leaves out stay unused, as in nnU-Net.

    A case of the file that is no row is an error, unless `has_problems` already says why there may be none.
    """
    if not path.is_file():
        return rows
    folds = read_json(path)
    if not isinstance(folds, list) or not 0 <= fold < len(folds):
        n_folds = len(folds) if isinstance(folds, list) else "no list of"
        raise DatasetError(f"{path}: expected fold {fold} (data.fold), found {n_folds} folds")
    chosen = folds[fold]
    if not isinstance(chosen, dict) or not all(isinstance(chosen.get(side), list) for side in ("train", "val")):
        raise DatasetError(f'{path}: expected fold {fold} to hold lists "train" and "val"')
    sides = {str(case): side for side in ("train", "val") for case in chosen[side]}
    if both := set(map(str, chosen["train"])) & set(map(str, chosen["val"])):
        raise DatasetError(f"{path}: case {min(both)} is in train and in val of fold {fold}")
    if (unknown := sides.keys() - {row.id for row in rows}) and not has_problems:
        raise DatasetError(f"{path}: case {min(unknown)} of fold {fold} has no image in imagesTr")
    if unused := sum(row.id not in sides for row in rows):
        logger.warning("%s: %d cases are on neither side of fold %d and stay unused", path, unused, fold)
    return [replace(row, side=sides[row.id]) for row in rows if row.id in sides]


def read_msd(root: Path, fold: int | None, given: Given) -> Listing:
    """Read a Decathlon dataset.json or MONAI datalist.

    "training" lists {"image", "label"} and maybe "fold"; "validation" and "test" where there are such cases.
    """
    description = _description(root)
    source = root / "dataset.json"
    labels = description.get("labels")
    table = reconcile(parse_table(labels, source) if labels else find_table(root), given, root)
    rows: list[Row] = []
    problems: list[str] = []
    for part, side in (("training", "train"), ("validation", "val"), ("test", "test"), ("testing", "test")):
        items = description.get(part) or []
        if not isinstance(items, list):
            raise DatasetError(f'{source}: expected "{part}" to be a list, found {str(items)[:60]!r}')
        folded = (
            fold is not None and side == "train" and any(isinstance(item, dict) and "fold" in item for item in items)
        )
        rows += each(partial(_msd_row, root, side, fold if folded else None), items, problems)
        if folded and not problems and not any(row.side == "val" for row in rows):
            raise DatasetError(f"{source}: expected training cases of fold {fold} (data.fold), found none")
    channels = description.get("modality", description.get("channel_names"))
    n_channels = max((len(row.image) for row in rows), default=1)
    names = _names(channels, source) if channels else tuple(f"image{i}" if i else "image" for i in range(n_channels))
    return Listing(tuple(rows), table, names, tuple(problems))


def _msd_row(root: Path, side: str, fold: int | None, item: Any) -> Row:
    """Return the row of an entry; where `fold` is given, the entry's own fold says whether it validates."""
    source = root / "dataset.json"
    side = side if fold is None else _fold_side(item, fold, source)
    item = {"image": item} if isinstance(item, str | list) else item
    if not isinstance(item, dict) or "image" not in item:
        raise DatasetError(f'{source}: expected an entry like {{"image": …, "label": …}}, found {str(item)[:80]!r}')
    names = item["image"] if isinstance(item["image"], list) else [item["image"]]
    image = tuple(inside(root, name, source) for name in names)
    label = inside(root, item["label"], source) if item.get("label") else None
    subject = item.get("subject", item.get("subject_id"))
    stem = volume_stem(image[0]) if image else ""
    return Row(str(item.get("case") or item.get("id") or stem), image, label, side, str(subject) if subject else None)


def _fold_side(item: Any, fold: int, source: Path) -> str:
    number = item.get("fold") if isinstance(item, dict) else None
    if not isinstance(number, int):
        raise DatasetError(f"{source}: expected a fold number for every training case, found {str(item)[:80]!r}")
    return "val" if number == fold else "train"


def read_totalsegmentator(root: Path, fold: int | None, given: Given) -> Listing:
    """Read CASE/ct.nii.gz or mri.nii.gz with CASE/segmentations/STRUCTURE.nii.gz (TotalSegmentator, AbdomenAtlas).

    Classes are the structures' names, sorted, over all cases, or those of `given`, labels.json or class_names.json, in
    their order; masks beyond these are passed over. CASE/combined_labels.nii.gz is read instead of the masks where
    labels.json or class_names.json says what its values mean. meta.csv (";" or ",") gives image_id and split, and the
    subject where it has such a column.
    """
    folders = {folder.name: image for folder in _folders(root) if (image := _scan(folder))}
    masks = {case: _masks(image.parent / "segmentations") for case, image in folders.items()}
    known = find_table(root)
    if known or given:
        table = reconcile(known, given, root)
    else:
        table = ClassTable.in_order(["background", *sorted(set().union(*masks.values()))], root)
    meta = _meta(root / "meta.csv")

    def row(case: str) -> Row:
        if fold is None:
            return Row(case, (folders[case],), None)
        combined = folders[case].parent / "combined_labels.nii.gz"
        label = combined if known and combined.is_file() else _merged(masks[case], table, case)
        return Row(case, (folders[case],), label, *_meta_row(meta, case, root / "meta.csv"))

    problems: list[str] = []
    rows = each(row, folders, problems)
    modalities = {volume_stem(image).upper().replace("MRI", "MR") for image in folders.values()}
    channel = modalities.pop() if len(modalities) == 1 else "image"
    return Listing(tuple(rows), table, (channel,), tuple(problems))


def _scan(folder: Path) -> Path | None:
    """Return the image of a TotalSegmentator case folder, None if it has none."""
    return next(
        (path for path in _visible(folder) if volume_stem(path) in ("ct", "mri", "mr") and volume_kind(path)), None
    )


def _is_segmented(folder: Path) -> bool:
    return (folder / "segmentations").is_dir() or (folder / "combined_labels.nii.gz").is_file()


def _masks(folder: Path) -> dict[str, Path]:
    return {volume_stem(path): path for path in _visible(folder) if volume_kind(path)}


def _merged(masks: dict[str, Path], table: ClassTable, case: str) -> Label | None:
    if masks and (missing := [name for name in table.names[1:] if name not in masks]):
        raise DatasetError(
            f"case {case}: expected a mask for each of {len(table.names) - 1} structures, found none for {missing[:5]}"
            "; write an empty mask where it is absent from the body, or leave the class out of data.class_names"
        )
    return tuple((c, masks[name]) for c, name in enumerate(table.names) if c) if masks else None


def _meta(path: Path) -> dict[str, dict[str, str]]:
    """Return meta.csv by image_id; empty where there is none."""
    if not path.is_file():
        return {}
    rows = read_csv(path)
    if not rows or "image_id" not in rows[0]:
        raise DatasetError(f"{path}: expected a column image_id, found {list(rows[0]) if rows else 'no rows'}")
    return {row["image_id"]: row for row in rows}


def _meta_row(meta: dict[str, dict[str, str]], case: str, path: Path) -> tuple[str | None, str | None]:
    """Return side and subject of a case."""
    if meta and case not in meta:
        raise DatasetError(f"case {case}: expected a row in {path}, found none; add it or move the folder away")
    row = meta.get(case, {})
    return parse_side(row.get("split"), case, path), row.get("subject") or row.get("subject_id") or None


def read_pairs(root: Path, fold: int | None, given: Given) -> Listing:
    """Read images/ and labels/ with files (or, as images, DICOM folders) of equal names; suffixes may differ.

    Class names are those of labels.json, class_names.json or dataset.json, else `given`.
    """
    problems: list[str] = []
    images = _by_stem(root / "images", problems)
    labels = {} if fold is None else _by_stem(root / "labels", problems)
    rows = [
        Row(case, (images[case],) if case in images else (), labels.get(case))
        for case in sorted(images.keys() | labels.keys())
    ]
    return Listing(tuple(rows), reconcile(find_table(root), given, root), ("image",), tuple(problems))


def _by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _visible(folder):
        # The data half of a pair would name its case twice.
        if volume_kind(path) is None or path.suffix.lower() == ".img":
            continue
        if volume_stem(path) in found:
            first = found[volume_stem(path)]
            problems.append(f"case {volume_stem(path)}: expected one file, found {first} and {path}; remove one")
        found.setdefault(volume_stem(path), path)
    return found


READERS: dict[str, Reader] = {
    "nnunet": read_nnunet,
    "msd": read_msd,
    "totalsegmentator": read_totalsegmentator,
    "pairs": read_pairs,
}


def leaves(path: Path, root: Path, seen: dict[Path, bool]) -> bool:
    """Say whether a link leads a path below `root` out of it; `root` itself may be one, since the user named it.

    `seen` remembers folders: a data set has a hundred thousand masks in a thousand folders.
    """
    there = root.resolve()
    if path.parent not in seen:
        seen[path.parent] = not path.parent.resolve().is_relative_to(there)
    return seen[path.parent] or (path.is_symlink() and not path.resolve().is_relative_to(there))


def inside(root: Path, name: Any, source: Path) -> Path:
    """Return root / name for a name out of a data set's own file; refuse one that leads out of the data set."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise DatasetError(f"{source}: expected a file name, found {str(name)[:80]!r}")
    plain = Path(os.path.normpath(name))
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or plain.parts[:1] == ("..",):
        raise DatasetError(f"{source}: {name!r} leads out of the data set; list such files in a cases.csv of your own")
    return root / plain


def parse_side(word: str | None, case: str, source: Path) -> str | None:
    """Return "train", "val" or "test" for a word of a split column, None for an empty one."""
    if not word:
        return None
    if word.lower() not in _SIDES:
        raise DatasetError(f"case {case}: expected a split of train, val or test, found {word!r} in {source}")
    return _SIDES[word.lower()]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return a table's rows by column name (lower case); "," and ";" both separate."""
    try:
        if path.stat().st_size > _MAX_CSV_BYTES:
            raise DatasetError(f"{path}: expected a table of cases, found {path.stat().st_size} bytes")
        text = path.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0]
        lines = list(csv.reader(io.StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ","))
    except DatasetError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV ({error}); repair the file") from error
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    columns = [cell.strip().lower() for cell in lines[0]] if lines else []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise DatasetError(f"{path}: expected {len(columns)} columns in row {number}, found {len(line)}")
    return [dict(zip(columns, (cell.strip() for cell in line), strict=True)) for line in lines[1:]]


def _description(root: Path) -> dict[str, Any]:
    description = read_json(root / "dataset.json")
    if not isinstance(description, dict):
        raise DatasetError(f"{root / 'dataset.json'}: expected an object with labels, found {str(description)[:60]!r}")
    return description


def _names(channels: Any, source: Path) -> tuple[str, ...]:
    """Return channel names in order of their numbers: {"0": "CT"}, ["CT"] or "CT"."""
    if isinstance(channels, dict) and channels.keys() == {str(i) for i in range(len(channels))}:
        channels = [channels[str(i)] for i in range(len(channels))]
    channels = [channels] if isinstance(channels, str) else channels
    if not isinstance(channels, list) or not channels or not all(isinstance(name, str) for name in channels):
        raise DatasetError(f'{source}: expected channel_names like {{"0": "CT"}}, found {str(channels)[:60]!r}')
    return tuple(channels)


def _folders(root: Path) -> list[Path]:
    return [path for path in _visible(root) if path.is_dir()]


def _visible(folder: Path) -> Iterable[Path]:
    """Return what a folder holds, sorted, without hidden files ("._case.nii.gz" of a Mac's archive)."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
