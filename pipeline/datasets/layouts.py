"""Recognise how a data set lies on disk, and find the reader of its layout.

Names inside a data set's own files (dataset.json, splits_final.json) are not trusted: they stay below its root, and so
do links, which an archive may bring along (`FileIndex.leaves`). A list that a person wrote (`case_list`) may name any
file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.console.text import some_of
from pipeline.datasets.case_folders import is_case_folder, read_folders
from pipeline.datasets.case_list import FILE_NAMES, read_list
from pipeline.datasets.class_table import TABLE_FILES
from pipeline.datasets.decathlon import lists_existing_images, read_msd
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex, has_volume_name
from pipeline.datasets.json_document import read_description
from pipeline.datasets.nnunet import has_all_channels, has_channel_number, read_nnunet
from pipeline.datasets.pairs import are_paired_by_name, pair_of_folders, read_pairs
from pipeline.datasets.rows import Reader, Request
from pipeline.datasets.totalsegmentator import find_scans, is_segmented, read_totalsegmentator
from transforms.io.dicom import holds_dicom

READERS: dict[str, Reader] = {
    "nnunet": read_nnunet,
    "msd": read_msd,
    "totalsegmentator": read_totalsegmentator,
    "pairs": read_pairs,
    "folders": read_folders,
    "list": read_list,
}
"""The reader of each layout that `data.layout` names."""

_FOLDERS_TRIED = 20
"""Folders of a path without a data set that are looked into, before only the path itself is named."""

_DEPTH_TRIED = 5
"""How deep below it data sets and volumes are looked for, to name them."""


def recognise(root: Path, files: FileIndex) -> str:
    """Return the layout of a data set, a key of READERS.

    Raises:
        DatasetError: it is in none of the layouts; says what was looked for.
        OSError: a folder cannot be read.
    """
    _refuse_misspelled(root, files)
    layout = find_layout(root, files)
    if layout is None:
        there, remedy = _what_lies_there(root, files)
        raise DatasetError(
            "dataset", root, "a data set",
            f"{there}none of: dataset.json with imagesTr/ (nnU-Net) or with a training list (Decathlon, MONAI); "
            "CASE/ct.nii.gz with CASE/segmentations/ (TotalSegmentator, AbdomenAtlas); images/ with labels/; CASE/ "
            "with images and a segmentation.nii.gz or CASE-seg.nii.gz (KiTS, BraTS); cases.csv or cases.json",
            remedy,
        )  # fmt: skip
    return layout


def _what_lies_there(root: Path, files: FileIndex) -> tuple[str, str]:
    """Say what is in the place of a data set ("3 volumes, but "; empty: nothing known), and what to do about it."""
    pair = "write which label belongs to which image in a list file, cases.csv with the columns image,label"
    if files.is_file(root):
        return "a single volume, ", f"name a folder; or {pair}"
    if holds_dicom(root):
        return "a DICOM series, but ", pair
    if volumes := files.volumes(root):
        named = some_of([path.name for path in volumes], 3)
        return f"{len(volumes)} {'volume' if len(volumes) == 1 else 'volumes'} ({named}), but ", pair
    return _what_else(root, files)


def _what_else(root: Path, files: FileIndex) -> tuple[str, str]:
    """The same for folders and lists in that place."""
    inner: list[str] = []
    folders = files.folders(root)
    for _ in range(_DEPTH_TRIED):
        inner = [path.relative_to(root).as_posix() for path in folders[:_FOLDERS_TRIED] if _is_dataset(path, files)]
        if inner:
            break
        folders = [below for path in folders[:_FOLDERS_TRIED] for below in files.folders(path)]
    if len(inner) == 1:
        return f"a folder that is a data set ({inner[0]}), but ", f"name that folder, {root / inner[0]}"
    if inner:
        remedy = (
            "list all cases in a cases.csv: image,label; or, where each is more than one patient's scans, name one or "
            "several of them (classes are joined by name)"
        )
        return f"folders that are data sets ({some_of(inner, 3)}), but ", remedy
    if lists := [path for path in files.visible(root) if _lists_images(path, files)]:
        remedy = f"if it lists the cases, name the file itself: {lists[0]}"
        return f"{some_of([path.name for path in lists], 3)}, but ", remedy
    if volumes := [str(path.relative_to(root)) for path in _volumes_below(root, files, _DEPTH_TRIED)]:
        remedy = (
            "write which label belongs to which image in a list file, cases.csv with the columns image,label, one line "
            "a case, several channels in one cell (t1.nii.gz|t2.nii.gz)"
        )
        return f"volumes in folders below it ({some_of(volumes, 3)}), but ", remedy
    if there := [path.name for path in files.visible(root) if files.is_file(path)]:
        return f"only {some_of(there, 3)}, ", "name the folder that holds one of these, or a list file"
    return "", "name the folder that holds one of these, or a list file"


def _lists_images(path: Path, files: FileIndex) -> bool:
    """Say whether a file is a table or JSON list that names images; kits.json and participants.tsv do not."""
    if path.suffix.lower() not in (".csv", ".tsv", ".json") or path.name in TABLE_FILES or not files.is_file(path):
        return False
    try:
        return bool(read_list(Request(path, images_only=True, files=files)).rows)
    except DatasetError:
        return False


def _volumes_below(root: Path, files: FileIndex, depth: int) -> list[Path]:
    """The volumes of the first folder below one that holds any."""
    for folder in files.folders(root)[:_FOLDERS_TRIED]:
        if found := files.volumes(folder) or (depth > 1 and _volumes_below(folder, files, depth - 1)):
            return found
    return []


def _refuse_misspelled(root: Path, files: FileIndex) -> None:
    """Refuse Dataset.json, Cases.CSV and the like, which would be passed over without a word."""
    for path in files.visible(root):
        usual = path.name.lower()
        if path.name != usual and usual in (*FILE_NAMES, *TABLE_FILES) and not files.is_file(root / usual):
            raise DatasetError("dataset", path, f"a file called {usual}", path.name, f"rename it to {usual}")


def _is_dataset(root: Path, files: FileIndex) -> bool:
    try:
        return find_layout(root, files) is not None
    except (DatasetError, OSError):
        return False


def data_sets_below(root: Path, files: FileIndex, *, follow_links: bool = False) -> Iterator[Path]:
    """Yield the folders below a folder, sorted, that are data sets by themselves; not what lies inside of these.

    A folder whose dataset.json cannot be read is one, and so are imagesTr and imagesTs without a dataset.json. A list
    in such a folder makes none: it may name any file, and is to be named itself. Nor do images/ and labels/ without a
    volume directly in images/. Folders that cannot be read are passed over.
    """
    seen = {root.resolve()}

    def below(folder: Path) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for inner in files.folders(folder):
                real = inner.resolve()
                if real in seen or (inner.is_symlink() and not follow_links):
                    continue
                seen.add(real)
                if _holds_cases(inner, files):
                    yield inner
                else:
                    yield from below(inner)

    yield from below(root)


def _holds_cases(root: Path, files: FileIndex) -> bool:
    try:
        layout = find_layout(root, files)
        folders = pair_of_folders(root, files) if layout == "pairs" else None
        if folders is not None:
            return bool(files.volumes(folders[0]))
    except DatasetError:
        return True
    except OSError:
        return False
    return layout not in (None, "list") or any(files.is_folder(root / name) for name in ("imagesTr", "imagesTs"))


def find_layout(root: Path, files: FileIndex) -> str | None:
    """Return the layout of a data set, None where a path is not one. Raises DatasetError for a damaged dataset.json."""
    if files.is_file(root):
        return None if has_volume_name(root) else "list"
    layout = _described(root, files) if files.is_file(root / "dataset.json") else None
    if layout is not None:
        return layout
    if any(files.is_file(root / name) for name in FILE_NAMES):
        return "list"  # somebody wrote down what counts, and how it is divided
    if pair_of_folders(root, files):
        return "pairs"
    folders = files.folders(root)
    if any(find_scans(path, files) and is_segmented(path, files) for path in folders):
        return "totalsegmentator"
    if any(is_case_folder(path, files) for path in folders):
        layout = "folders"
    else:
        layout = "pairs" if are_paired_by_name(root, files) else None
    return layout


def _described(root: Path, files: FileIndex) -> str | None:
    """The layout of a folder with a dataset.json.

    A training list makes it Decathlon's, but nnU-Net 1 writes one, too, whose names lack the channel number that the
    files have. Case numbers of four digits (amos_0001.nii.gz) look like channel numbers, so the list is believed where
    its files exist, unless every case has all channel numbers from _0000 on and dataset.json has nnU-Net's own keys.
    """
    description = read_description(root, keys_twice=True)
    if "training" not in description:
        has_images = any(files.is_folder(root / name) for name in ("imagesTr", "imagesTs"))
        return "nnunet" if has_images or isinstance(description.get("dataset"), dict) else None
    images = files.volume_files(root / "imagesTr")
    if lists_existing_images(description, root, files):
        is_nnunet = has_all_channels(images) and ("file_ending" in description or "channel_names" in description)
    else:
        is_nnunet = any(has_channel_number(path) for path in images)
    return "nnunet" if is_nnunet else "msd"
