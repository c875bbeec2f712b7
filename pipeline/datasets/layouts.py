"""How published data sets lie on disk: one reader a layout, from a folder to rows; `cases` judges the rows.

Names inside a data set's own files (dataset.json, splits_final.json) are not trusted: they stay below its root, and so
do links, which an archive may bring along (`leaves`). A list that a person wrote (`case_list`) may name any file.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from pipeline.datasets.case_list import read_list
from pipeline.datasets.decathlon import read_msd
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.nnunet import read_nnunet
from pipeline.datasets.pairs import read_pairs
from pipeline.datasets.rows import Reader, list_folders, list_visible, read_description
from pipeline.datasets.totalsegmentator import find_scan, is_segmented, read_totalsegmentator
from transforms.io.load import volume_stem

logger = logging.getLogger(__name__)


def recognise(root: Path) -> str:
    """Return the layout of a data set. Raises DatasetError that says what was looked for."""
    if root.is_file():
        return "list"
    if (root / "dataset.json").is_file():
        description = read_description(root)
        has_images = (root / "imagesTr").is_dir()
        if has_images and any(re.search(r"_\d{4}$", volume_stem(path)) for path in list_visible(root / "imagesTr")):
            return "nnunet"  # first, since dataset.json of nnU-Net 1 has a training list, too
        if "training" in description or has_images:
            return "msd" if "training" in description else "nnunet"
    if any((root / name).is_file() for name in ("cases.csv", "cases.json")):
        return "list"  # somebody wrote down what counts, and how it is divided
    if (root / "images").is_dir() and (root / "labels").is_dir():
        return "pairs"
    if any(find_scan(path) and is_segmented(path) for path in list_folders(root)):
        return "totalsegmentator"
    raise DatasetError(
        f"{root}: expected a data set, found none of: dataset.json with imagesTr/ (nnU-Net) or with a training list "
        "(Decathlon, MONAI); CASE/ct.nii.gz with CASE/segmentations/ (TotalSegmentator, AbdomenAtlas); images/ with "
        "labels/; cases.csv or cases.json. Name the folder that holds one of these, or a list file"
    )


READERS: dict[str, Reader] = {
    "nnunet": read_nnunet,
    "msd": read_msd,
    "totalsegmentator": read_totalsegmentator,
    "pairs": read_pairs,
    "list": read_list,
}
