"""Read the layout images/ + labels/."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.class_table import find_table, reconcile
from pipeline.datasets.rows import Given, Listing, Row, list_visible
from transforms.io.load import volume_kind, volume_stem


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
    for path in list_visible(folder):
        # The data half of a pair would name its case twice.
        if volume_kind(path) is None or path.suffix.lower() == ".img":
            continue
        if volume_stem(path) in found:
            first = found[volume_stem(path)]
            problems.append(f"case {volume_stem(path)}: expected one file, found {first} and {path}; remove one")
        found.setdefault(volume_stem(path), path)
    return found
