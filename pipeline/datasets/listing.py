"""List a data set: read its layout, check that every case can be trusted, take over its own split. Reads no voxels.

Ids are unique and safe as file names, every file is there, every image has its label, no subject is in two splits.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from pipeline.console.text import counted, some_of
from pipeline.datasets.class_table import ClassTable, resolve_remap
from pipeline.datasets.dataset import Case, Dataset, Split, label_files, label_path
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.folds import OwnFolds, own_folds
from pipeline.datasets.layouts import READERS, find_layout, recognise
from pipeline.datasets.nnunet import read_numbered, read_undescribed
from pipeline.datasets.pairs import pair_of_folders
from pipeline.datasets.rows import LabelReading, Listing, Request, Row
from pipeline.datasets.subjects import similar_subjects, subject_by_pattern, suspect_subjects, suspicion
from transforms.io.errors import VolumeError
from transforms.io.load import known_kind, n_frames, volume_stem

LONGEST_ID = 200
"""Bytes of a case id: a file system's names end at 255, and results put suffixes behind the id."""

_LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".json")
_SAFE_ID = re.compile(r"\w[\w .()+=@,-]{0,127}(?<![. ])")


def list_cases(
    root: Path | str,
    layout: str = "auto",
    *,
    fold: int | None = 0,
    n_folds: int = 0,
    split_file: str = "",
    class_names: Sequence[str] | None = None,
    labels: LabelReading = LabelReading(),  # noqa: B008  immutable
    subject_pattern: str = "",
    strict: bool = True,
    follow_links: bool = False,
) -> Dataset:
    """List and check the cases of a data set.

    Args:
        root: the data set's folder, or a JSON or CSV file that lists cases.
        layout: "nnunet", "msd", "totalsegmentator", "pairs", "folders", "list", or "auto" to recognise it.
        fold: the fold that validates, where the cases are divided into folds; None: the data set's split is not read.
        n_folds: folds that are asked for: the data set's own where it has some; else it is the caller who divides
            (`fold_by_subject`) all cases but those that it holds out for testing, whatever its own split says.
        split_file: a file like nnU-Net's splits_final.json, before the data set's own split and folds.
        class_names: names of the classes, background first, for data sets without names of their own; for masks per
            structure also the choice and order of structures.
        labels: how label files are to be understood.
        subject_pattern: regular expression that matches the whole name of every case without a stated subject; its
            first group is the subject.
        strict: False leaves out the cases whose files cannot serve; `refused` of the data set says why.
        follow_links: take files that links inside a published layout fetch from outside it, as people make them who
            lay out a data set without copying it. A downloaded archive may hold such links, too, to any file of this
            machine: by default their cases are refused. `root` may always be a link, and an explicit list may name
            any file: both are the user's own words.

    Returns:
        The data set; its `split` is its own where it says which cases train and which validate, else None
        (`split_by_subject` divides, and keeps the cases that it holds out for testing there). `folds` are its own.

    Raises:
        DatasetError: not a data set, or one that contradicts itself; case and file are named, all that are wrong.
    """
    root = _existing(root)
    if layout not in ("auto", *READERS):
        remedy = "choose one of these"
        raise DatasetError("dataset", "data.layout", f"one of auto, {', '.join(READERS)}", repr(layout), remedy)
    files = FileIndex()
    try:
        layout = recognise(root, files) if layout == "auto" else layout
        request = Request(
            root, fold is not None, tuple(class_names or ()), missing_masks=labels.missing_masks, files=files
        )
        listing = READERS[layout](request)
    except OSError as error:
        raise _unreadable(root, error) from error
    classes = listing.classes
    assert classes is not None  # only images alone come without
    folds = None
    if fold is None:
        unsplit = (
            row if row.label is None and row.split == "test" else replace(row, split=None) for row in listing.rows
        )
        listing = replace(listing, rows=tuple(unsplit))
    else:
        try:
            folds = own_folds(listing, root, split_file)
            listing = replace(listing, rows=_rows_to_divide(listing.rows, folds, root, fold, n_folds))
        except DatasetError as error:  # what the folds lack may be what was refused
            raise DatasetError.all_of([*listing.problems, error]) from error
    trusted = _trust(listing, root, layout, files, follow_links=follow_links)
    trusted = _without_absent_tests(trusted, listing.rows, root)
    trusted = replace(trusted, rows=_with_subjects(trusted.rows, subject_pattern))
    if trusted.problems and (strict or not trusted.rows):
        raise DatasetError.all_of(trusted.problems)
    classes = _with_remap(classes, labels.remap, trusted.rows, root)
    return _dataset(trusted, listing, root, layout, fold, folds, classes, files)


def list_folds(root: Path | str, layout: str = "auto", *, split_file: str = "") -> tuple[int, ...]:
    """Return the numbers of a data set's own folds, in order; none where it has no folds.

    Raises:
        DatasetError: not a data set, or folds that contradict themselves.
    """
    root = _existing(root)
    files = FileIndex()
    try:
        layout = recognise(root, files) if layout == "auto" else layout
        # Images alone: what is wrong with labels and names of classes is said when the cases are listed.
        folds = own_folds(READERS[layout](Request(root, images_only=True, files=files)), root, split_file)
    except OSError as error:
        raise _unreadable(root, error) from error
    return tuple(folds.split_of) if folds else ()


def _existing(root: Path | str) -> Path:
    root = Path(root)
    if not root.exists():
        remedy = "correct the path"
        raise DatasetError("missing_file", root, "a data set", "no such file or folder", remedy)
    return root


def _rows_to_divide(
    rows: Sequence[Row], folds: OwnFolds | None, root: Path, fold: int, n_folds: int
) -> tuple[Row, ...]:
    """The rows with their split in the fold that is asked for. Raises DatasetError where there are no such folds."""
    if folds is not None:
        if n_folds not in (0, len(folds.split_of)):
            found = f"{len(folds.split_of)} of its own, in {folds.source}"
            remedy = "leave data.folds out to use these, or take them away"
            raise DatasetError("dataset", root, f"{n_folds} folds (data.folds)", found, remedy)
        folds.check_number(fold)
        return tuple(folds.rows_of(fold, rows))
    if n_folds:
        return tuple(row if row.split == "test" else replace(row, split=None) for row in rows)
    if fold > 0:
        remedy = (
            "have its cases divided into folds with --data.folds 5, name a file of folds with --data.split_file, or "
            "leave data.fold out"
        )
        raise DatasetError("dataset", root, f"folds, since data.fold is {fold}", "none", remedy)
    return tuple(rows)


def find_dataset(path: Path | str, *, follow_links: bool = False) -> Dataset | None:
    """List the data set at a path; None where the path is not one, such as a bare folder of label maps or a volume.

    Its own split is not read: any of its cases may be evaluated. What is wrong with one case is in `refused`.

    Raises:
        DatasetError: there is one, and `list_cases` refuses it for more than single cases.
    """
    path = Path(path)
    layout = _find_layout(path, FileIndex())
    if layout is None:
        return None
    dataset = list_cases(path, layout, fold=None, follow_links=follow_links, strict=False)
    if wrong := [error for error in dataset.refused if not error.case]:
        raise DatasetError.all_of(wrong)
    return dataset


@dataclass(frozen=True)
class ImageListing:
    """The images of a data set that is to be segmented."""

    images: Mapping[str, tuple[Path, ...]]
    """By case id its image files, one a channel; or one file, whose frames are the channels of several."""
    channel_names: tuple[str, ...]
    """Names of the channels in the order of the files; `rows.are_named` says whether they are the data set's own."""
    refused: tuple[DatasetError, ...]
    """Why the others cannot serve."""
    warnings: tuple[DatasetError, ...] = ()
    """What is odd about the data set."""


def find_images(
    path: Path | str, *, n_channels: int | None = None, follow_links: bool = False, files: FileIndex | None = None
) -> ImageListing | None:
    """List the images of a data set, whatever its splits, labels and class names say; None where a path is not one.

    Besides the layouts of `list_cases` that is a folder of files CASE_0000, CASE_0001, … as nnU-Net predicts them (with
    or without a dataset.json in it or above), imagesTr and imagesTs without a dataset.json, and a JSON or CSV list
    without labels. A folder with the files of a DICOM series is a volume, whatever lies beside them. Folders of cases
    whose images differ in their names are no data set, unless each has as many as are expected.

    Args:
        path: a folder or a list file.
        n_channels: image channels that are expected; decides whether CASE_0000 and CASE_0001 are two channels or two
            cases where nothing else does.
        follow_links: as in `list_cases`.
        files: what is known of the folders already; None: nothing.

    Raises:
        DatasetError: there is a data set without any usable image, or with two cases of one name, or dataset.json
            cannot be read.
    """
    path = Path(path)
    files = files or FileIndex()
    layout = _find_layout(path, files)
    is_series = False
    with contextlib.suppress(OSError):
        is_series = files.is_folder(path) and files.is_volume(path)
    found = None if is_series else _image_rows(path, layout, n_channels, files)
    if found is None:
        return None
    listing, layout = found
    images = tuple(replace(row, split="test", label=None if row.image else row.label) for row in listing.rows)
    trusted = _trust(replace(listing, rows=images), path, layout, files, follow_links=follow_links)
    if not trusted.rows:
        raise DatasetError.all_of(trusted.problems)
    images_of = {row.id: row.image for row in trusted.rows}
    return ImageListing(images_of, listing.channel_names, trusted.problems, listing.warnings)


def _image_rows(path: Path, layout: str | None, n_channels: int | None, files: FileIndex) -> tuple[Listing, str] | None:
    """The images at a path of some layout, and the layout that they are in; None where they are no data set."""
    if layout is None or (layout == "pairs" and files.is_folder(path / "imagesTs")):  # beside imagesTr and labelsTr
        with contextlib.suppress(OSError):
            # In a tree, other scans would be missing without a word
            read = read_undescribed if files.folders(path) else read_numbered
            if (numbered := read(path, n_channels, files)) is not None:
                return numbered, "nnunet"
    if layout is None or (layout == "list" and files.is_file(path) and path.suffix.lower() not in _LIST_SUFFIXES):
        return None
    try:
        listing = READERS[layout](Request(path, with_folds=False, images_only=True, files=files))
    except OSError as error:
        raise _unreadable(path, error) from error
    has_others = n_channels not in (None, len(listing.channel_names))
    if layout == "folders" and listing.problems and has_others:
        return None
    if layout == "pairs" and has_others and pair_of_folders(path, files) is None:
        return None  # a_mask beside a_ct may be a channel
    return listing, layout


def _find_layout(path: Path, files: FileIndex) -> str | None:
    try:
        return find_layout(path, files)
    except OSError:
        return None


def _unreadable(root: Path, error: OSError) -> DatasetError:
    found = f"{error.filename or root}: {error.strerror or error}"
    return DatasetError("unreadable", root, "folders that can be read", found, "make it readable")


def _trust(listing: Listing, root: Path, layout: str, files: FileIndex, *, follow_links: bool) -> Listing:
    """The rows that can serve, and what is wrong with the others."""
    if not listing.rows and not listing.problems:
        expected = f"cases in the {layout} layout"
        raise DatasetError("dataset", root, expected, "none", "name the folder that holds them, or set data.layout")
    rows = []
    problems = list(listing.problems)
    wrong = {error.case for error in problems if error.case}
    folder = root.parent if root.is_file() else root
    named = cache(partial(_spellings, listing.rows))
    for listed in listing.rows:
        if listed.id in wrong:
            continue
        row = _with_other_spellings(listed, files, named)
        try:
            _check_id(row, root)
            _check_parts(row)
            _check_files(row, files)
            if layout != "list" and not follow_links:
                _check_links(row, folder, files)
            row = _with_channels(row, len(listing.channel_names))
        except DatasetError as error:
            problems.append(error)
        else:
            rows.append(row)
    _check_unique(rows, root)
    return replace(listing, rows=tuple(rows), problems=tuple(problems))


def _without_absent_tests(trusted: Listing, rows: Sequence[Row], root: Path) -> Listing:
    """Warn of unlabelled test cases whose images are not there, which no training needs, instead of refusing them."""
    unlabelled = {row.id for row in rows if row.label is None and row.split == "test"}
    absent = dict.fromkeys(e.case for e in trusted.problems if e.kind == "missing_file" and e.case in unlabelled)
    if not absent:
        return trusted
    expected, found = "images of the test cases that it lists", f"none for {len(absent)}: {some_of(list(absent), 4)}"
    warning = DatasetError("missing_case", root, expected, found, "nothing, if they were left out on purpose")
    problems = tuple(error for error in trusted.problems if error.case not in absent)
    return replace(trusted, problems=problems, warnings=(*trusted.warnings, warning))


def _spellings(rows: Sequence[Row]) -> Counter[tuple[str, str]]:
    """How many images and label maps of all rows, by different names, are spelt alike."""
    of_rows = ((*row.image, row.label) if isinstance(row.label, Path) else row.image for row in rows)
    return Counter(map(_spelling, {os.path.abspath(path) for paths in of_rows for path in paths}))  # noqa: PTH100


def _spelling(path: Path | str) -> tuple[str, str]:
    """Folder and name of a file, whatever its suffix and case of letters."""
    return os.path.dirname(os.path.abspath(path)), volume_stem(path).lower()  # noqa: PTH100, PTH120  (links stay)


def _with_other_spellings(row: Row, files: FileIndex, named: Callable[[], Counter[tuple[str, str]]]) -> Row:
    """Take a.nii for a missing a.nii.gz, or A.nii.gz, where it is the only volume of that name.

    named: as `_spellings` has them: a file that others are spelt like may be theirs.
    """

    def found(path: Path) -> Path:
        try:
            if files.is_file(path) or files.is_folder(path):
                return path
            alike = files.alike(path)
        except OSError:
            return path
        return alike[0] if len(alike) == 1 and named()[_spelling(path)] == 1 else path

    label = found(row.label) if isinstance(row.label, Path) else row.label
    return replace(row, image=tuple(found(path) for path in row.image), label=label)


def _check_id(row: Row, root: Path) -> None:
    if not _SAFE_ID.fullmatch(row.id) or len(row.id.encode()) > LONGEST_ID:
        shown = repr(row.id if len(row.id) <= 80 else f"{row.id[:80]}…")
        remedy = "use letters, digits and _-., 128 characters at most"
        composed = unicodedata.normalize("NFC", row.id)
        if composed != row.id and _SAFE_ID.fullmatch(composed):
            shown += " with accents as characters of their own (Unicode NFD, as macOS writes them)"
            remedy = "rename images and labels to the composed form (NFC), as convmv --nfc -f utf8 -t utf8 does"
        raise DatasetError("dataset", root, "case names that can be file names", shown, remedy)


def _check_parts(row: Row) -> None:
    """Refuse a row without image or label."""
    if not row.image:
        where, remedy = label_path(row.label) or "", "add the image or remove the label"
        raise DatasetError("missing_image", where, "an image beside the label", "none", remedy, row.id)
    if row.label is None and row.split != "test":
        remedy = "add the label or remove the image"
        raise DatasetError("missing_label", row.image[0], "a label beside the image", "none", remedy, row.id)


def _with_channels(row: Row, n_channels: int) -> Row:
    """The row, with its frames where one file has all channels. Refuse another number than the data set has."""
    if len(row.image) == n_channels:
        return row
    found, remedy = counted(len(row.image), "image file"), "name one file for each channel"
    if len(row.image) == 1:
        try:
            n_found = n_frames(row.image[0])
        except VolumeError as error:
            raise DatasetError(error.kind, error.where, error.expected, error.found, error.remedy, row.id) from error
        if n_found == n_channels:
            return replace(row, frames=tuple(range(n_channels)))
        found += f" of {counted(n_found, 'frame')}"
        remedy += ", or one 4-D NIfTI file with a frame for each; else correct the data set's list of channels"
    raise DatasetError("dataset", row.image[0], counted(n_channels, "channel"), found, remedy, row.id)


def _check_files(row: Row, files: FileIndex) -> None:
    for path in (*row.image, *label_files(row.label)):
        try:
            is_volume = files.is_volume(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            remedy = "copy it there or remove the case from the list"
            raise DatasetError("missing_file", path, "a file", "none: it does not exist", remedy, row.id) from error
        except OSError as error:
            found = f"one that cannot be accessed ({error.strerror or error})"
            raise DatasetError("unreadable", path, "a file", found, "make it readable", row.id) from error
        if not is_volume:
            raise _not_a_volume(path, row.id)


def _not_a_volume(path: Path, case: str) -> DatasetError:
    expected, found = "a volume file or DICOM folder", "a folder without DICOM files"
    remedy = "name the volume or remove the case"
    try:
        known_kind(path)  # refuses whatever else it is
    except VolumeError as error:
        expected, found, remedy = error.expected, error.found, error.remedy
    return DatasetError("not_a_volume", path, expected, found, remedy, case)


def _check_links(row: Row, root: Path, files: FileIndex) -> None:
    for path in (*row.image, *label_files(row.label)):
        if files.leaves(path, root):
            raise DatasetError(
                "dataset", path, "files inside the data set",
                f"a link that leads out of the data set, to {path.resolve()}",
                "give --follow_links if that is meant, else copy the file", row.id,
            )  # fmt: skip


def _check_unique(rows: Sequence[Row], root: Path) -> None:
    counts = Counter(row.id for row in rows)
    twice = [case for case, count in counts.items() if count > 1]
    if twice:
        others = f", and so are {len(twice) - 1} others ({some_of(twice[1:], 5)})" if twice[1:] else ""
        found = f"case {twice[0]} is listed {counts[twice[0]]} times{others}"
        raise DatasetError("dataset", root, "every case once", found, "give every case a name of its own")


def _with_remap(
    classes: ClassTable, remap: Mapping[int | str, int | str] | None, rows: Sequence[Row], root: Path
) -> ClassTable:
    """The table with data.label_remap in it. Raises DatasetError for an unknown class, or where no label map is."""
    if not remap:
        return classes
    if not any(isinstance(row.label, Path) for row in rows):
        raise DatasetError(
            "dataset", root, "label maps, whose values data.label_remap replaces", "one mask a structure",
            "leave data.label_remap out",
        )  # fmt: skip
    return replace(classes, remap={**classes.remap, **resolve_remap(remap, classes.names)})


def _dataset(
    trusted: Listing,
    listing: Listing,
    root: Path,
    layout: str,
    fold: int | None,
    folds: OwnFolds | None,
    classes: ClassTable,
    files: FileIndex,
) -> Dataset:
    labelled = [row for row in trusted.rows if row.label is not None]
    has_own_split = any(row.split in ("train", "val") for row in listing.rows)
    split, all_folds = None, None
    try:
        if folds is not None and fold is not None:
            split = _own_split(labelled, root, folds.name_of(fold))
            all_folds = folds.with_others(fold, split, {error.case for error in trusted.problems})
        elif has_own_split:
            split = _own_split(labelled, root, "the data set's own")
    except DatasetError as error:  # what a split lacks may be what was refused
        raise DatasetError.all_of([*trusted.problems, error]) from error
    return Dataset(
        root,
        layout,
        cases=tuple(_case(row, classes.names, divided=has_own_split) for row in labelled),
        classes=classes,
        channel_names=listing.channel_names,
        split=split,
        folds=all_folds,
        unlabelled=tuple(_case(row, classes.names, divided=False) for row in trusted.rows if row.label is None),
        refused=trusted.problems,
        warnings=(
            *trusted.warnings,
            *(_left_out(listing.rows, root, files) if layout != "list" else ()),
            *_suspected(labelled, listing.rows, split, root),
            *_similar(labelled, split, root),
        ),
    )


def _case(row: Row, class_names: Sequence[str], *, divided: bool) -> Case:
    annotated = None
    if row.annotated is not None:
        annotated = tuple(index for index, name in enumerate(class_names) if index and name in row.annotated)
    held_out = row.split == "test" and not divided
    return Case(row.id, _subject(row), row.image, row.label, held_out, annotated, frames=row.frames)


def _subject(row: Row) -> str:
    """Return whose scan it is: as the data set or the pattern says, else the case itself."""
    return row.id if row.subject is None else row.subject


def _with_subjects(rows: Sequence[Row], pattern: str) -> tuple[Row, ...]:
    """Give rows without a subject that of the pattern, or of BIDS' names ("sub-XX" in front)."""

    def subject_of(case: str) -> str | None:
        if pattern:
            return subject_by_pattern(case, pattern)
        bids = re.match(r"sub-[A-Za-z0-9]+(?=_|$)", case)
        return bids[0] if bids else None

    return tuple(replace(row, subject=subject_of(row.id)) if row.subject is None else row for row in rows)


def _left_out(rows: Sequence[Row], root: Path, files: FileIndex) -> tuple[DatasetError, ...]:
    """A warning of folders of labelled images (imagesVa beside labelsVa) of which no case is."""
    used = {path.parent for row in rows for path in row.image}
    found = []
    with contextlib.suppress(OSError):
        for folder in files.folders(root):
            part = folder.name.removeprefix("images")
            if part not in ("", folder.name) and folder not in used and files.volume_files(root / f"labels{part}"):
                found += [f"{folder.name} ({counted(n, 'file')})"] if (n := len(files.volume_files(folder))) else []
    if not found:
        return ()
    remedy = (
        "to validate or test on them, list all cases in a cases.csv: image,label,split; nothing, if they are not meant"
    )
    return (DatasetError("left_out", root, "cases of all labelled images", f"none of {some_of(found, 4)}", remedy),)


def _suspected(rows: Sequence[Row], listed: Sequence[Row], split: Split | None, root: Path) -> tuple[DatasetError, ...]:
    """A warning about labelled cases that look like scans of one subject and may come, or are, in different splits.

    Nothing is said of cases whose subjects all come from the data set, or all from a rule. Where a column names those
    of a part alone, the others of a group may count as another subject.
    """
    stated = {row.id for row in listed if row.subject is not None}
    subject_of = {row.id: row.subject for row in rows}
    suspected = []
    for group in suspect_subjects([row.id for row in rows]):
        subjects = {subject_of[case] for case in group.cases}
        is_settled = len({case in stated for case in group.cases}) == 1 and None not in subjects
        together = len(subjects) == 1 and None not in subjects
        in_one_split = split is not None and len({split.of(case) for case in group.cases}) == 1
        if not (is_settled or together or in_one_split):
            suspected.append(group)
    return (suspicion(suspected, list(subject_of), stated, root),) if suspected else ()


def _similar(rows: Sequence[Row], split: Split | None, root: Path) -> tuple[DatasetError, ...]:
    """A warning about subjects that differ in spelling alone and may come, or are, in different splits."""
    cases_of: dict[str, list[str]] = {}
    for row in rows:
        if row.subject is not None:
            cases_of.setdefault(row.subject, []).append(row.id)
    pairs = [
        " and ".join(f"{name!r} ({some_of(cases_of[name], 2)})" for name in names)
        for names in similar_subjects(cases_of)
        if split is None or len({split.of(case) for name in names for case in cases_of[name]}) > 1
    ]
    if not pairs:
        return ()
    expected, remedy = (
        "one spelling for each subject",
        "spell them alike if they are one, so that a split keeps them together",
    )
    return (DatasetError("similar_subjects", root, expected, some_of(pairs, 4), remedy),)


def _own_split(rows: Sequence[Row], root: Path, source: str) -> Split:
    """Return the data set's own division of the cases that can serve, one at least to train and one to validate."""
    undivided = [row.id for row in rows if row.split is None]
    if undivided:
        expected, remedy = "a split for every case or for none", "complete the split or remove it"
        raise DatasetError("dataset", root, expected, f"none for case {undivided[0]}", remedy)
    split = Split.of_parts({row.id: row.split for row in rows if row.split is not None}, source)
    if not split.train or not split.val:
        found = f"{len(split.train)} cases to train and {len(split.val)} to validate"
        remedy = (
            "complete the split, or remove it (test cases may stay marked) to have the other cases divided, with "
            "--data.split_shares 100 0 0 all to train"
        )
        which = source if source.startswith("fold ") else "its own split"
        raise DatasetError("dataset", root, f"{which} to have cases to train and to validate", found, remedy)
    _check_subjects(rows, root)
    return split


def _check_subjects(rows: Sequence[Row], root: Path) -> None:
    first_of: dict[str, Row] = {}
    for row in rows:
        subject = _subject(row)
        first = first_of.setdefault(subject, row)
        if first.split != row.split:
            found = f"subject {subject} in two: case {first.id} in {first.split}, case {row.id} in {row.split}"
            remedy = "correct the split or the subjects"
            raise DatasetError("subject_in_two_splits", root, "every subject in one split", found, remedy)
