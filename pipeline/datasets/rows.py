"""What the reader of a layout is asked for and what it returns: a data set's cases as it writes them down."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from pipeline.datasets.class_table import ClassTable, reconcile
from pipeline.datasets.dataset import Label, MissingMasks
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from transforms.io.load import volume_stem

_SPLIT_OF_WORD = {
    "train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A case as its data set writes it down; nothing in it is trusted yet."""

    id: str
    image: tuple[Path, ...]
    label: Label | None
    split: str | None = None
    """"train", "val" or "test"; None where the data set does not say."""
    subject: str | None = None
    """None where the data set does not say."""
    fold: int | None = None
    """The fold in which it validates, where its data set has one for every case that may train."""
    annotated: tuple[str, ...] | None = None
    """Names of the classes that the label shows where they are; None: all."""
    frames: tuple[int, ...] = ()
    """The frames of the one image file, where these are the channels."""


@dataclass(frozen=True)
class Listing:
    """What the reader of a layout found."""

    rows: tuple[Row, ...]
    classes: ClassTable | None
    """None where images alone were asked for."""
    channel_names: tuple[str, ...]
    problems: tuple[DatasetError, ...] = ()
    """What is wrong with each entry that gave no row."""
    warnings: tuple[DatasetError, ...] = ()
    """What is odd, but keeps no case from being used."""
    splits_file: Path | None = None
    """nnU-Net's splits_final.json, where the data set has one; it is not read yet."""


@dataclass(frozen=True)
class LabelReading:
    """How label files are to be understood, beyond what their data set says."""

    remap: Mapping[int | str, int | str] | None = None
    """Class name or index for further values of the label files, or for values that are to mean another class."""
    missing_masks: MissingMasks = "not_annotated"
    """What a structure without a mask is, where other cases have one: not annotated, or absent from the body."""


@dataclass(frozen=True)
class Request:
    """What a reader is asked for."""

    root: Path
    """The data set's folder, or the file that lists its cases."""
    with_folds: bool = True
    """The data set's own division for cross-validation is asked for, too."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, background first, as the settings give them; empty: as the data set has them."""
    missing_masks: MissingMasks = "not_annotated"
    """What a structure without a mask is, where other cases have one: not annotated, or absent from the body."""
    images_only: bool = False
    """Images are asked for, to be segmented: no labels and class names are read, and none need be there."""
    files: FileIndex = field(default_factory=FileIndex)
    """What lies in its folders."""

    def classes(self, found: ClassTable | None) -> ClassTable:
        """Join the data set's own class table with the names of the settings.

        Raises:
            DatasetError: neither names the classes, or both do and differ.
        """
        return reconcile(found, self.class_names, self.root)


Reader = Callable[[Request], Listing]
Item = TypeVar("Item")
Made = TypeVar("Made")


def collect(make: Callable[[Item], Made], items: Iterable[Item], problems: list[DatasetError]) -> list[Made]:
    """Return what `make` makes of the items; the error of each that it refuses is added to `problems`."""
    made = []
    for item in items:
        try:
            made.append(make(item))
        except DatasetError as error:
            problems.append(error)
    return made


def by_name(paths: Iterable[Path], name_of: Callable[[Path], str] = volume_stem) -> dict[str, list[Path]]:
    """Group files by the name that they stand for; where that is several files', `only_file` refuses them."""
    named: dict[str, list[Path]] = {}
    for path in paths:
        named.setdefault(name_of(path), []).append(path)
    return named


def only_file(paths: Sequence[Path], case: str) -> Path:
    """Return the only one of the files that one name stands for. Raises DatasetError for several."""
    if len(paths) > 1:
        raise DatasetError("dataset", "", "one file", f"{paths[0]} and {paths[1]}", "remove one", case)
    return paths[0]


def only_label(label: Any, source: Path, place: str) -> Any:
    """Return the label of an entry, also where it is a list of one; "" for none. Raises DatasetError for several."""
    if isinstance(label, list) and len(label) > 1:
        remedy = "name one label map; for a mask a structure lay the data out as CASE/segmentations/STRUCTURE.nii.gz"
        raise DatasetError("dataset", source, f"one label for {place}", f"{len(label)} files", remedy)
    return (label[0] if isinstance(label, list) and label else label) or ""


def path_inside(root: Path, name: Any, source: Path) -> Path:
    """Return root / name for a name out of a data set's own file. Raises DatasetError where it leads out of `root`."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise DatasetError("dataset", source, "a file name", f"{str(name)[:80]!r}", "name a file below its folder")
    plain = Path(os.path.normpath(with_slashes(name)))
    for whole in (root, root.resolve()):
        if plain.is_absolute() and plain.is_relative_to(whole):  # an absolute path that leads into it all the same
            return plain
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or plain.parts[:1] == ("..",):
        raise DatasetError(
            "dataset", source, "names of files inside the data set", f"{name!r}, which leads out of the data set",
            "list such files in a cases.csv of your own",
        )  # fmt: skip
    return root / plain


def with_slashes(name: str) -> str:
    r"""Return a relative path that was written on Windows with slashes; absolute ones of Windows stay as they are.

    >>> with_slashes(r"images\a.nii.gz")
    'images/a.nii.gz'
    """
    return name if PureWindowsPath(name).drive else name.replace("\\", "/")


def parse_split(word: str | None, case: str, source: Path) -> str | None:
    """Return "train", "val" or "test" for a word of a split column, None for an empty one.

    Raises:
        DatasetError: another word.
    """
    if not word:
        return None
    if word.lower() not in _SPLIT_OF_WORD:
        remedy = "write one of these, or leave the column empty"
        raise DatasetError("dataset", source, "a split of train, val or test", repr(word), remedy, case)
    return _SPLIT_OF_WORD[word.lower()]


def parse_fold(value: Any, case: str, source: Path) -> int | None:
    """Return the number of a fold of a fold column or key, None for an empty one.

    Raises:
        DatasetError: something else than a whole number of 0 or more.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"\d{1,4}", str(value).strip()):
        remedy = "number the folds from 0 on"
        raise DatasetError("dataset", source, "a fold of 0, 1, 2, …", f"{value!r:.40}", remedy, case)
    return int(value)


def parse_name(value: Any) -> str | None:
    """Return the name of a case or subject as text (0 is a name like any other); None where an entry does not say.

    >>> parse_name(0), parse_name(" p1 "), parse_name("")
    ('0', 'p1', None)
    """
    return None if value is None else str(value).strip() or None


def parse_channel_names(channels: Any, source: Path) -> tuple[str, ...]:
    """Return channel names in the order of their numbers: {"0": "CT"}, ["CT"] or "CT". Raises DatasetError."""
    if isinstance(channels, dict) and channels.keys() == {str(i) for i in range(len(channels))}:
        channels = [channels[str(i)] for i in range(len(channels))]
    if isinstance(channels, str):
        channels = [channels]
    if not isinstance(channels, list) or not channels or not all(isinstance(name, str) for name in channels):
        remedy = "write one name for each image channel"
        raise DatasetError("dataset", source, 'channel_names like {"0": "CT"}', f"{channels!r:.60}", remedy)
    return tuple(channels)


def unnamed_channels(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return names for the channels of a data set that names none: image, image1, …, as many as its first case has."""
    return _placeholders(next((len(row.image) for row in rows), 1))


def are_named(channel_names: Sequence[str]) -> bool:
    """Say whether channels have names of their own, not those of `unnamed_channels`.

    >>> are_named(["T1", "T2"]), are_named(["image", "image1"])
    (True, False)
    """
    return tuple(channel_names) != _placeholders(len(channel_names))


def _placeholders(n_channels: int) -> tuple[str, ...]:
    return tuple(f"image{i}" if i else "image" for i in range(n_channels))
