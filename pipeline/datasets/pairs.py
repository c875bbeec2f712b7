"""Read the layout images/ + labels/."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from pipeline.datasets.class_table import find_table
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.rows import Listing, Request, Row, by_name, collect, only_file
from transforms.io.load import volume_stem

_SUFFIXES = re.compile(r"(?P<case>.+?)[._-](seg|segmentation|label|labels|labelmap|mask|gt)", re.IGNORECASE)
"""What labels are called beside the name of their image: a-label.nii.gz, a.seg.nrrd, a_mask.nii.gz."""


def read_pairs(request: Request) -> Listing:
    """Read images/ and labels/ with files (or, as images, DICOM folders) of equal names; suffixes may differ.

    A label may also be called as 3D Slicer and others call it beside its image: c0.nrrd and c0.seg.nrrd, a.nii.gz and
    a-label.nii.gz. Class names are those of labels.json, class_names.json or dataset.json, else those of the settings.

    Raises:
        DatasetError: nothing names the classes, or two sources differ.
    """
    problems: list[DatasetError] = []
    images = _by_case(request, "images", (), problems)
    labels = {} if request.images_only else _by_case(request, "labels", images, problems)
    rows = [
        Row(case, (images[case],) if case in images else (), labels.get(case))
        for case in sorted(images.keys() | labels.keys())
    ]
    classes = None if request.images_only else request.classes(find_table(request.root))
    return Listing(tuple(rows), classes, ("image",), tuple(problems))


def case_of(name: str) -> str:
    """The case that a file's name means: without what labels are called beside their image.

    >>> case_of("a-label"), case_of("c0_seg"), case_of("liver")
    ('a', 'c0', 'liver')
    """
    match = _SUFFIXES.fullmatch(name)
    return match["case"] if match else name


def _by_case(request: Request, name: str, cases: Container[str], problems: list[DatasetError]) -> dict[str, Path]:
    """The volumes of a folder by the name of their case: one of `cases` where their own name is such a one's."""

    def case_among(path: Path) -> str:
        stem = volume_stem(path)
        return case_of(stem) if stem not in cases and case_of(stem) in cases else stem

    found = by_name(request.files.volumes(request.root / name), case_among)
    collect(lambda case: only_file(found[case], case), found, problems)
    return {case: paths[0] for case, paths in found.items()}
