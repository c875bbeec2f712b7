"""Read nnU-Net's raw layout."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.console.text import counted
from pipeline.datasets.class_table import parse_table
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.file_names import case_of
from pipeline.datasets.json_document import read_description, read_json
from pipeline.datasets.rows import (
    Listing,
    Request,
    Row,
    by_name,
    collect,
    only_file,
    parse_channel_names,
    path_inside,
    unnamed_channels,
)
from transforms.io.load import volume_kind, volume_stem

_PREPROCESSED = "nnUNet_preprocessed"
"""nnU-Net's folder of prepared data, and the environment variable that names it."""

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
"""A file's name without suffix: the case and the number of the image channel."""


def read_nnunet(request: Request) -> Listing:
    """Read the nnU-Net raw layout: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, splits_final.json.

    Cases of imagesTs are test cases, labelled where labelsTs holds them. Files that are not volumes are passed over,
    a volume may have another suffix than file_ending, and the only channel of a case needs no number. A "dataset" in
    dataset.json names the files of every case itself. See nnU-Net's documentation/dataset_format.md.

    Raises:
        DatasetError: dataset.json cannot be read or contradicts the files or the settings, or two splits_final.json
            differ.
    """
    root, source = request.root, request.root / "dataset.json"
    description = read_description(root, keys_twice=request.images_only)
    channel_names = parse_channel_names(description.get("channel_names", description.get("modality")), source)
    ending = _file_ending(description, source)
    classes = None if request.images_only else request.classes(parse_table(description.get("labels"), source))
    problems: list[DatasetError] = []
    if isinstance(description.get("dataset"), dict):
        rows = collect(partial(_described_row, root), description["dataset"].items(), problems)
    else:
        rows = _read_part(request, "Tr", ending, len(channel_names), problems)
    tests = _read_part(request, "Ts", ending, len(channel_names), problems)
    return Listing(
        (*rows, *(replace(row, split="test") for row in tests)),
        classes,
        channel_names,
        tuple(problems),
        splits_file=find_splits_file(request) if request.with_folds else None,
    )


def _described_row(root: Path, entry: tuple[str, Any]) -> Row:
    """The row of a case that dataset.json describes: "CASE": {"images": [...], "label": ...}."""
    case, files = entry
    source = root / "dataset.json"
    if not isinstance(files, dict) or not isinstance(files.get("images"), list):
        expected = 'its files as {"images": […], "label": …}'
        raise DatasetError("dataset", source, expected, f"{files!r:.60}", "name the files of the case", case)
    image = tuple(path_inside(root, name, source) for name in files["images"])
    label = files.get("label")
    return Row(case, image, path_inside(root, label, source) if label else None)


def has_channel_number(path: Path) -> bool:
    """Say whether a volume's name ends in a channel number: CASE_0000.nii.gz."""
    return _CHANNEL.fullmatch(volume_stem(path)) is not None


def without_channel(name: str) -> str:
    """A volume's name without its channel number.

    >>> without_channel("a_0001"), without_channel("a")
    ('a', 'a')
    """
    match = _CHANNEL.fullmatch(name)
    return match["case"] if match else name


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
    if isinstance(ending, str) and not ending.startswith("."):
        ending = f".{ending}"
    if not isinstance(ending, str) or volume_kind(f"x{ending}") is None:
        raise DatasetError("dataset", source, "file_ending to be a volume's", repr(ending), 'write ".nii.gz", say')
    return ending


def _read_part(request: Request, part: str, ending: str, n_channels: int, problems: list[DatasetError]) -> list[Row]:
    """The cases of imagesTr and labelsTr (part "Tr"), or of imagesTs and labelsTs."""
    images = request.files.volume_files(request.root / f"images{part}")
    labels = _labels_by_case(request.files.volume_files(request.root / f"labels{part}"), images)
    channels = channels_by_case(images, n_channels, labels, problems)
    if request.images_only:  # their names tell cases from channels, and that is all
        labels = {}

    def row(case: str) -> Row:
        image = _image(case, channels[case], n_channels, ending) if case in channels else ()
        return Row(case, image, _only(labels[case], ending, case) if case in labels else None)

    return collect(row, sorted(channels.keys() | labels.keys()), problems)


def _labels_by_case(labels: Sequence[Path], images: Sequence[Path]) -> dict[str, list[Path]]:
    """Labels by the case that they name; CASE_seg.nii.gz is that of CASE_0000.nii.gz where no label has its name."""
    cases = {without_channel(volume_stem(path)) for path in images}
    own = {volume_stem(path) for path in labels}

    def case_among(path: Path) -> str:
        name = volume_stem(path)
        meant = case_of(name)
        return meant if name not in cases and meant in cases - own else name

    return by_name(labels, case_among)


def channels_by_case(
    paths: Sequence[Path], n_channels: int, cases: Container[str], problems: list[DatasetError]
) -> dict[str, dict[int, list[Path]]]:
    """Group volumes CASE_0000, CASE_0001, … by case and channel number.

    Where the images have one channel, its number may be missing: the whole name is then the case's.

    Args:
        paths: volume files of one folder.
        n_channels: how many channels every case has.
        cases: names of cases that are known from elsewhere, such as their labels.
        problems: an error is added for each volume whose name fits neither form.
    """
    first_channels = any(volume_stem(path).endswith("_0000") for path in paths)
    channels: dict[str, dict[int, list[Path]]] = {}
    for path in paths:
        name = volume_stem(path)
        match = _CHANNEL.fullmatch(name)
        if n_channels == 1 and (name in cases or not first_channels) and not (match and match["case"] in cases):
            channels.setdefault(name, {}).setdefault(0, []).append(path)
        elif match:
            channels.setdefault(match["case"], {}).setdefault(int(match["channel"]), []).append(path)
        else:
            expected = f"a name like CASE_0000{path.name[len(name) :]}"
            problems.append(DatasetError("dataset", path, expected, path.name, "rename it or move it away"))
    return channels


def read_numbered(folder: Path, n_channels: int | None, files: FileIndex) -> Listing | None:
    """Read a bare folder of images CASE_0000, CASE_0001, …; None where its names do not say that they are channels.

    How many channels a case has is said by dataset.json in the folder or above it, else by the names where every case
    has the same numbers, else by `n_channels`.

    Raises:
        OSError: the folder cannot be read.
    """
    paths = files.volume_files(folder)
    if not any(has_channel_number(path) for path in paths):
        return None
    names = _declared_channels(folder, files)
    declared = len(names) if names else None
    if declared is None and has_all_channels(paths):
        counts = Counter(match["case"] for path in paths if (match := _CHANNEL.fullmatch(volume_stem(path))))
        same = set(counts.values())
        if len(same) == 1 and (len(counts) > 1 or same == {n_channels}):
            declared = same.pop()
    if declared is None and n_channels is not None and n_channels > 1 and all(map(has_channel_number, paths)):
        declared = n_channels
    if declared is None:
        return None
    problems: list[DatasetError] = []
    channels = channels_by_case(paths, declared, (), problems)
    rows = collect(lambda case: Row(case, _image(case, channels[case], declared, ".nii.gz"), None), channels, problems)
    return Listing(tuple(rows), None, names or unnamed_channels(rows), tuple(problems))


def read_undescribed(root: Path, n_channels: int | None, files: FileIndex) -> Listing | None:
    """Read the images of imagesTr and imagesTs of a folder without dataset.json; None where it has neither.

    Without labelsTr also None where scans lie in other folders or in the folder itself: it may be a tree of scans.

    Raises:
        OSError: a folder cannot be read.
    """
    own = [root / f"images{part}" for part in ("Tr", "Ts") if files.is_folder(root / f"images{part}")]
    others = [path for path in files.folders(root) if path not in (*own, root / "labelsTs")]
    if not own or (not files.is_folder(root / "labelsTr") and (others or files.volumes(root))):
        return None
    listings = [
        read_numbered(folder, n_channels, files) or _one_channel_each(files.volume_files(folder)) for folder in own
    ]
    rows = [row for listing in listings for row in listing.rows]
    problems = [problem for listing in listings for problem in listing.problems]
    return Listing(tuple(rows), None, listings[0].channel_names, tuple(problems))


def _one_channel_each(paths: Sequence[Path]) -> Listing:
    problems: list[DatasetError] = []
    named = by_name(paths, lambda path: volume_stem(path).removesuffix("_0000"))
    rows = collect(lambda case: Row(case, (only_file(named[case], case),), None), named, problems)
    return Listing(tuple(rows), None, unnamed_channels(rows), tuple(problems))


def _declared_channels(folder: Path, files: FileIndex) -> tuple[str, ...] | None:
    """The image channels that nnU-Net's dataset.json in a folder or above it names; None without one."""
    for root in (folder, folder.resolve().parent):
        if files.is_file(root / "dataset.json"):
            try:
                description = read_description(root, keys_twice=True)
                channels = description.get("channel_names") or description.get("modality")
                names = parse_channel_names(channels, root / "dataset.json") if channels else ()
            except DatasetError:
                return None
            # The Decathlon has a "modality", too; with one channel its numbers are those of the cases.
            return names if description.get("channel_names") or len(names) > 1 else None
    return None


def _image(case: str, files: Mapping[int, Sequence[Path]], n_channels: int, ending: str) -> tuple[Path, ...]:
    """The file of each channel; files: by the channel's number. Raises DatasetError where one is missing or double."""
    if sorted(files) != list(range(n_channels)):
        expected = f"{counted(n_channels, 'channel file')} from _0000 on"
        found = ", ".join(f"_{number:04d}" for number in sorted(files))
        raise DatasetError("dataset", "", expected, found, "add the missing ones or remove the case", case)
    return tuple(_only(files[number], ending, case) for number in range(n_channels))


def _only(paths: Sequence[Path], ending: str, case: str) -> Path:
    """The only file, or the only one with the data set's own file_ending. Raises DatasetError for several."""
    named = [path for path in paths if path.name.endswith(ending)]
    return only_file(named if len(named) == 1 else paths, case)


def find_splits_file(request: Request) -> Path | None:
    """Return the data set's splits_final.json: in its own folder, else where nnU-Net keeps it; None without one.

    nnU-Net keeps it in nnUNet_preprocessed/NAME, with NAME that of the data set's folder; nnUNet_preprocessed is the
    folder of that environment variable, or lies beside nnUNet_raw.

    Raises:
        DatasetError: two files that differ.
    """
    name = request.root.resolve().name
    folders = [request.root, request.root.resolve().parent.parent / _PREPROCESSED / name]
    if os.environ.get(_PREPROCESSED):
        folders.append(Path(os.environ[_PREPROCESSED]) / name)
    found = [folder / "splits_final.json" for folder in folders if request.files.is_file(folder / "splits_final.json")]
    for other in found[1:]:
        if read_json(other) != read_json(found[0]):
            raise DatasetError(
                "dataset", found[0], "one division into folds", f"another one in {other}", "remove one of the files"
            )
    return found[0] if found else None
