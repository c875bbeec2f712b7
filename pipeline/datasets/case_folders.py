"""Read the layout of KiTS and BraTS: a folder a case, its images and one label map."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.datasets.class_table import find_table
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.rows import Listing, Request, Row, collect
from transforms.io.load import volume_stem

_LABEL = re.compile(r"seg|segmentation|label|labels|labelmap|mask|gt", re.IGNORECASE)
"""What the label map of a case folder is called, without the case's own name in front."""


def read_folders(request: Request) -> Listing:
    """Read CASE/imaging.nii.gz + CASE/segmentation.nii.gz (KiTS), CASE/CASE-t1c.nii.gz + CASE/CASE-seg.nii.gz (BraTS).

    Every volume of a case folder but its label map is an image channel, called as its file without the case's name;
    all cases must have the same channels. Class names are those of labels.json, class_names.json or dataset.json, else
    those of the settings.

    Raises:
        DatasetError: nothing names the classes, or two sources differ.
    """
    cases = {}
    for folder in request.files.folders(request.root):
        parts = _parts(folder, request.files)
        if parts:
            cases[folder.name] = parts
    channel_names = sorted({name for parts in cases.values() for name in parts if not _LABEL.fullmatch(name)})

    def row(case: str) -> Row:
        parts = cases[case]
        labels = [path for name, path in parts.items() if _LABEL.fullmatch(name)]
        if len(labels) > 1:
            found = f"{labels[0].name} and {labels[1].name}"
            raise DatasetError("dataset", labels[0].parent, "one label map", found, "keep one of them", case)
        missing = [name for name in channel_names if name not in parts]
        if missing and len(missing) < len(channel_names):
            folder = request.root / case
            expected, remedy = f"the images {', '.join(channel_names)}", "add them, or remove the case"
            raise DatasetError("dataset", folder, expected, f"none for {', '.join(missing)}", remedy, case)
        image = tuple(parts[name] for name in channel_names if name in parts)
        return Row(case, image, labels[0] if labels else None)

    problems: list[DatasetError] = []
    rows = collect(row, cases, problems)
    classes = None if request.images_only else request.classes(find_table(request.root))
    return Listing(tuple(rows), classes, tuple(channel_names) or ("image",), tuple(problems))


def is_case_folder(folder: Path, files: FileIndex) -> bool:
    """Say whether a folder holds one label map by its name, and images beside it."""
    names = _parts(folder, files)
    return len(names) > 1 and sum(_LABEL.fullmatch(name) is not None for name in names) == 1


def _parts(folder: Path, files: FileIndex) -> dict[str, Path]:
    """The volumes of a case folder by their names without that of the case."""
    parts = {}
    for path in files.volume_files(folder):
        name = volume_stem(path)
        parts[re.sub(rf"^{re.escape(folder.name)}[-_. ]", "", name)] = path
    return parts
