"""Read the layout images/ + labels/."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.class_table import find_table
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.rows import Listing, Request, Row
from transforms.io.load import volume_stem


def read_pairs(request: Request) -> Listing:
    """Read images/ and labels/ with files (or, as images, DICOM folders) of equal names; suffixes may differ.

    Class names are those of labels.json, class_names.json or dataset.json, else those of the settings.

    Raises:
        DatasetError: nothing names the classes, or two sources differ.
    """
    problems: list[DatasetError] = []
    images = _by_stem(request, "images", problems)
    labels = {} if request.images_only else _by_stem(request, "labels", problems)
    rows = [
        Row(case, (images[case],) if case in images else (), labels.get(case))
        for case in sorted(images.keys() | labels.keys())
    ]
    classes = None if request.images_only else request.classes(find_table(request.root))
    return Listing(tuple(rows), classes, ("image",), tuple(problems))


def _by_stem(request: Request, name: str, problems: list[DatasetError]) -> dict[str, Path]:
    """The volumes of a folder by their names without suffix."""
    found: dict[str, Path] = {}
    for path in request.files.volumes(request.root / name):
        case = volume_stem(path)
        first = found.setdefault(case, path)
        if first != path:
            both = f"{first} and {path}"
            problems.append(DatasetError("dataset", "", "one file", both, "remove one", case))
    return found
