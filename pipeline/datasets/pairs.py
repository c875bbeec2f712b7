"""Read the layout images/ + labels/, and pairs of image and label in one folder, by their names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.datasets.class_table import find_table
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.file_names import LABEL_FOLDERS, case_of, image_keys, label_key
from pipeline.datasets.nnunet import has_all_channels, without_channel
from pipeline.datasets.rows import Listing, Request, Row, by_name, collect, only_file, unnamed_channels
from transforms.io.load import volume_stem

_FOLDERS = {
    "images": ("images", "image", "imgs", "img", "scans", "volumes", "imagestr", "trainingimg"),
    "labels": LABEL_FOLDERS,
}  # fmt: skip
"""What the two folders are called, in any case of letters."""


def read_pairs(request: Request) -> Listing:
    """Read images/ and labels/ with files (or, as images, DICOM folders) of equal names; suffixes may differ.

    The folders may be called otherwise (img/ and masks/, imagesTr/ and labelsTr/ without a dataset.json), and a folder
    may hold both, as LiTS has them. A label may also be called as 3D Slicer and others call it beside its image:
    c0.nrrd and c0.seg.nrrd, a_ct.nii.gz and a_seg.nii.gz, volume-0.nii and segmentation-0.nii. Images CASE_0000,
    CASE_0001, … are the channels of a case. Class names are those of labels.json, class_names.json or dataset.json,
    else those of the settings.

    Raises:
        DatasetError: nothing names the classes, or two sources differ.
    """
    folders = pair_of_folders(request.root, request.files)
    if folders is None:
        images, labels = _divided(request.files.volume_files(request.root))
    else:
        images, labels = (request.files.volumes(folder) for folder in folders)
    problems: list[DatasetError] = []
    image_of = _images_by_case(images, labels, problems)
    label_of = {} if request.images_only else _labels_by_case(labels, image_of, problems)
    rows = [Row(case, image_of.get(case, ()), label_of.get(case)) for case in sorted(image_of.keys() | label_of.keys())]
    classes = None if request.images_only else request.classes(find_table(request.root))
    channel_names = unnamed_channels(row for row in rows if row.image)
    return Listing(tuple(rows), classes, channel_names, tuple(problems))


def pair_of_folders(root: Path, files: FileIndex) -> tuple[Path, Path] | None:
    """The folder of images and the one of labels in a folder; None where they are not there, or several may be."""
    found = []
    for exact, names in _FOLDERS.items():
        folders = [path for path in files.folders(root) if path.name.lower() in names]
        folders = [path for path in folders if path.name == exact] or [path for path in folders if files.volumes(path)]
        if len(folders) != 1:
            return None
        found.append(folders[0])
    return found[0], found[1]


def are_paired_by_name(root: Path, files: FileIndex) -> bool:
    """Say whether more than half of a folder's images and of its labels are pairs by their names, as LiTS has them.

    What is left over is then named: an image that lacks its label is no reason to take label maps for images.
    """
    images, labels = _divided(files.volume_files(root))
    cases = _images_by_case(images, labels, [])
    n_pairs = len(cases.keys() & _labels_by_case(labels, cases, []).keys())
    return 2 * n_pairs > max(len(cases), len(labels))


def _divided(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Images and labels of one folder, by their names."""
    plain = {path for path in paths if label_key(volume_stem(path)) == volume_stem(path)}
    return [path for path in paths if path in plain], [path for path in paths if path not in plain]


def _images_by_case(
    images: Sequence[Path], labels: Sequence[Path], problems: list[DatasetError]
) -> dict[str, tuple[Path, ...]]:
    """The image files of each case: one, or the channels _0000, _0001, … where every case has them."""
    named = by_name(images)
    collect(lambda name: only_file(named[name], name), named, problems)
    if not has_all_channels(images) or named.keys() & {volume_stem(path) for path in labels}:
        return {name: (paths[0],) for name, paths in named.items()}
    channels: dict[str, tuple[Path, ...]] = {}
    for name in sorted(named):
        case = without_channel(name)
        channels[case] = (*channels.get(case, ()), named[name][0])
    return channels


def _labels_by_case(labels: Sequence[Path], cases: Collection[str], problems: list[DatasetError]) -> dict[str, Path]:
    """The label of each case; one without an image stands for a case of its own name."""
    of_key: dict[str, list[str]] = {}
    for case in cases:
        for key in {case, *image_keys(case)}:
            of_key.setdefault(key, []).append(case)

    def case_among(path: Path) -> str:
        name = volume_stem(path)
        meant = of_key.get(label_key(name), [])
        known = [case for case in (name, case_of(name)) if case in cases]
        return next(iter(known or (meant if len(meant) == 1 else [name])))

    found = by_name(labels, case_among)
    collect(lambda case: only_file(found[case], case), found, problems)
    return {case: paths[0] for case, paths in found.items()}
