"""Which volumes exist: a data set listed, checked and divided. Reads no voxels.

How data sets lie on disk is `layouts`' and `case_list`'s; here their rows become cases that can be trusted: ids unique
and safe as file names, every file there, every image with its label, no subject on two sides.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.datasets.class_table import resolve_remap
from pipeline.datasets.dataset import SPLITS, Case, Dataset, Split, label_files
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.layouts import READERS, recognise
from pipeline.datasets.rows import Listing, Row, leaves
from transforms.io.load import volume_kind

logger = logging.getLogger(__name__)

_LINES = 20  # of what is wrong, before the rest is only counted
_SAFE_ID = re.compile(r"\w[\w .()+=@,-]{0,127}(?<![. ])")
_LONGEST_ID = 200  # bytes; a file system's names end at 255, and ours put suffixes behind the id


def list_cases(
    root: Path | str,
    layout: str = "auto",
    *,
    fold: int = 0,
    class_names: Sequence[str] | None = None,
    label_remap: Mapping[int | str, int | str] | None = None,
    strict: bool = True,
    follow_links: bool = False,
) -> Dataset:
    """List and check the cases of a data set.

    Args:
        root: the data set's folder, or a JSON or CSV file that lists cases.
        layout: "nnunet", "msd", "totalsegmentator", "pairs", "list", or "auto" to recognise it.
        fold: the fold that validates, where the data set brings its own cross-validation.
        class_names: names of the classes, background first, for data sets without names of their own; for masks per
            structure also the choice and order of structures.
        label_remap: class name or index for further values of the label files, or for values that shall mean
            something else.
        strict: False leaves out the cases whose files cannot serve; `refused` of the data set says why.
        follow_links: take files that links inside a published layout fetch from outside it, as people make them who
            lay out a data set without copying it. A downloaded archive may hold such links, too, to any file of this
            machine: by default their cases are refused. `root` may always be a link, and an explicit list may name
            any file: both are the user's own words.

    Returns:
        The data set; its `split` is its own where it says which cases train and which validate, else None
        (`split_by_subject` divides, and keeps the cases that it holds out for testing there).

    Raises:
        DatasetError: not a data set, or one that contradicts itself; case and file are named, all that are wrong.
    """
    root = Path(root)
    if not root.exists():
        raise DatasetError(f"{root}: expected a data set, found no such file or folder")
    layout = recognise(root) if layout == "auto" else layout
    if layout not in READERS:
        raise DatasetError(f"data.layout: expected one of auto, {', '.join(READERS)}, found {layout!r}")
    try:
        listing = READERS[layout](root, fold, class_names)
    except OSError as error:
        raise DatasetError(f"{root}: cannot be listed as {layout} ({error})") from error
    dataset = _checked(listing, root, layout, strict=strict, follow_links=follow_links)
    if label_remap:
        dataset = replace(dataset, classes=replace(dataset.classes, remap=_remap(label_remap, dataset)))
    return dataset


def list_images(root: Path | str, *, follow_links: bool = False) -> tuple[dict[str, tuple[Path, ...]], dict[str, str]]:
    """List the images of a data set that is to be segmented: all of them, whatever its splits and labels say.

    Returns:
        By case its image files, one a channel; and by case (or entry) why the others cannot serve.

    Raises:
        DatasetError: not a data set, one without any usable image, or with two cases of one name.
    """
    root = Path(root)
    layout = recognise(root)
    try:
        listing = READERS[layout](root, None, None)
    except OSError as error:
        raise DatasetError(f"{root}: cannot be listed as {layout} ({error})") from error
    images = tuple(replace(row, label=None, split="test") for row in listing.rows if row.image)
    dataset = _checked(replace(listing, rows=images), root, layout, strict=False, follow_links=follow_links)
    return {case.id: case.image for case in dataset.unlabelled}, dict(dataset.refused)


def _remap(wanted: Mapping[int | str, int | str], dataset: Dataset) -> dict[int, int]:
    if not any(isinstance(case.label, Path) for case in dataset.cases):
        raise DatasetError(
            f"{dataset.root}: data.label_remap replaces values of label maps, but this data set has one mask a "
            "structure; leave it out"
        )
    return resolve_remap(wanted, dataset.classes.names)


def _checked(listing: Listing, root: Path, layout: str, *, strict: bool, follow_links: bool) -> Dataset:
    if not listing.rows and not listing.problems:
        raise DatasetError(f"{root}: expected cases in the {layout} layout, found none")
    rows, refused = _usable(listing, root, follow_links=follow_links or layout == "list")
    if refused and (strict or not rows):
        raise DatasetError.all_of([DatasetError(line) for line in _lines(list(refused.values()), root)])
    if twice := [case for case, count in Counter(row.id for row in rows).items() if count > 1]:
        count = sum(row.id == twice[0] for row in rows)
        others = f", and so do {len(twice) - 1} others ({', '.join(twice[1:6])})" if twice[1:] else ""
        raise DatasetError(f"{root}: case {twice[0]} stands {count} times{others}; give every case a name of its own")
    labelled = tuple(row for row in rows if row.label is not None)
    has_own_split = any(row.split == "val" for row in listing.rows)
    try:
        split = _own_split(labelled, root) if has_own_split else None
    except DatasetError as error:  # what a split lacks may be what was refused
        lines = _lines(list(refused.values()), root)
        raise DatasetError.all_of([*(DatasetError(line) for line in lines), error]) from error
    return Dataset(
        root,
        layout,
        cases=tuple(_case(row, divided=has_own_split) for row in labelled),
        classes=listing.table,
        channel_names=listing.channel_names,
        split=split,
        unlabelled=tuple(_case(row, divided=False) for row in rows if row.label is None),
        refused=refused,
    )


def _usable(listing: Listing, root: Path, *, follow_links: bool) -> tuple[list[Row], dict[str, str]]:
    """Return the rows that can serve, and by case what is wrong with the others."""
    rows: list[Row] = []
    refused: dict[str, str] = {}
    for text in listing.problems:
        named = re.match(r"case (.+?): ", text)
        refused[named[1] if named else text] = text
    seen: dict[Path, bool] = {}
    for row in listing.rows:
        try:
            _check_row(row, len(listing.channel_names), root)
            if not follow_links:
                _check_links(row, root, seen)
            rows.append(row)
        except DatasetError as error:
            refused[row.id] = str(error)
    return rows, refused


def _lines(problems: Sequence[str], root: Path) -> list[str]:
    """Return the problems, not too many for a screen."""
    more = [f"{root}: {len(problems) - _LINES} further entries cannot be used"] if len(problems) > _LINES else []
    return [*problems[:_LINES], *more]


def _check_links(row: Row, root: Path, seen: dict[Path, bool]) -> None:
    for path in _paths(row):
        if leaves(path, root, seen):
            raise DatasetError(
                f"case {row.id}: {path} is reached by a link that leads out of the data set, to {path.resolve()}; "
                "give --follow_links if that is meant, else copy the file"
            )


def _check_row(row: Row, n_channels: int, root: Path) -> None:
    if not _SAFE_ID.fullmatch(row.id) or len(row.id.encode()) > _LONGEST_ID:
        shown = row.id if len(row.id) <= 80 else f"{row.id[:80]}…"
        raise DatasetError(
            f"{root}: case {shown!r} cannot be a file name; use letters, digits and _-., 128 characters at most"
        )
    if not row.image:
        raise DatasetError(f"case {row.id}: expected an image beside the label {row.label}, found none")
    if row.label is None and row.split != "test":
        raise DatasetError(f"case {row.id}: expected a label beside the image {row.image[0]}, found none")
    if len(row.image) != n_channels:
        hint = ""
        if len(row.image) == 1:
            hint = (
                "; channels stored as frames of one 4-D file must be split into one file a channel, as nnU-Net has them"
            )
        raise DatasetError(f"case {row.id}: expected {n_channels} channels, found {len(row.image)} image files{hint}")
    for path in _paths(row):
        try:
            found, kind = path.exists(), volume_kind(path) if path.is_file() or path.is_dir() else None
        except OSError as error:
            raise DatasetError(f"case {row.id}: {path} cannot be looked at ({error.strerror or error})") from error
        if not found:
            raise DatasetError(f"case {row.id}: {path} does not exist")
        if kind is None:
            raise DatasetError(f"case {row.id}: expected a volume file or DICOM folder, found {path}")


def _paths(row: Row) -> tuple[Path, ...]:
    return (*row.image, *label_files(row.label))


def _case(row: Row, *, divided: bool) -> Case:
    return Case(row.id, _subject(row), row.image, row.label, held_out=row.split == "test" and not divided)


def _subject(row: Row) -> str:
    """Return whose scan it is: as the data set says, else BIDS' "sub-XX" in front of the id, else the case itself."""
    if row.subject:
        return row.subject
    bids = re.match(r"sub-[A-Za-z0-9]+(?=_|$)", row.id)
    return bids[0] if bids else row.id


def _own_split(rows: Sequence[Row], root: Path) -> Split | None:
    """Return the data set's own division of the cases that can serve, one at least to train and to validate."""
    if unsaid := [row.id for row in rows if row.split is None]:
        raise DatasetError(f"{root}: expected a split for every case or for none, found none for case {unsaid[0]}")
    ids = {name: tuple(sorted(row.id for row in rows if row.split == name)) for name in SPLITS}
    split = Split(**ids, source="the data set's own")
    if not split.train:
        raise DatasetError(f"{root}: its own split has {len(split.val)} cases to validate and none to train")
    if not split.val:
        raise DatasetError(f"{root}: its own split has {len(split.train)} cases to train and none to validate")
    _check_subjects(rows, root)
    return split


def _check_subjects(rows: Sequence[Row], root: Path) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(_subject(row), row)
        if first.split != row.split:
            raise DatasetError(
                f"{root}: subject {_subject(row)} is on two sides of the data set's own split: case {first.id} in "
                f"{first.split}, case {row.id} in {row.split}; correct the split or the subjects"
            )
