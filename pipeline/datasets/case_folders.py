"""Read the layout of KiTS and BraTS: a folder a case, its images and one label map."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.datasets.class_table import find_table
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.file_names import LABEL_WORD, MASK_WORD, words_of
from pipeline.datasets.rows import Listing, Request, Row, by_name, collect, only_file
from transforms.io.load import volume_stem

_LABEL = re.compile(r"seg|segmentation|label|labels|labelmap|mask|gt|truth", re.IGNORECASE)
"""What the label map of a case folder is called, without the case's own name in front."""


def read_folders(request: Request) -> Listing:
    """Read CASE/imaging.nii.gz + CASE/segmentation.nii.gz (KiTS), CASE/CASE-t1c.nii.gz + CASE/CASE-seg.nii.gz (BraTS).

    Every volume of a case folder but its label map is an image channel, called as its file without the case's name;
    all cases must have the same channels, those of most of them. A label map may have another name that says what it is
    (aggregated_MAJ_seg.nii.gz). A case with a second segmentation is refused, since the network would be
    shown what it is to find; a mask among the channels is a warning. Class names are those of labels.json,
    class_names.json or dataset.json, else those of the settings.

    Raises:
        DatasetError: nothing names the classes, or two sources differ.
    """
    cases = {}
    for folder in request.files.folders(request.root):
        parts = _parts(folder, request.files)
        if parts:
            cases[folder.name] = parts
    channel_names = _channels_of_most(cases.values())

    def row(case: str) -> Row:
        parts = {name: only_file(paths, case) for name, paths in cases[case].items()}
        segmentations = [name for name in parts if _is_segmentation(name)]
        if len(segmentations) > 1:
            raise DatasetError(
                "dataset", request.root / case, "one label map", f"the segmentations {', '.join(segmentations)}",
                "move the others to another folder, or list the files in a cases.csv, where every image that is named "
                "is an input of the network", case,
            )  # fmt: skip
        if extra := sorted(parts.keys() - {*segmentations, *channel_names}):
            raise DatasetError(
                "dataset", request.root / case, f"the images {', '.join(channel_names)}, as in most cases",
                f"{', '.join(extra)} besides", "move these files to another folder, or rename them", case,
            )  # fmt: skip
        missing = [name for name in channel_names if name not in parts]
        if missing and len(missing) < len(channel_names):
            folder = request.root / case
            expected, remedy = f"the images {', '.join(channel_names)}", "add them, or remove the case"
            raise DatasetError("dataset", folder, expected, f"none for {', '.join(missing)}", remedy, case)
        image = tuple(parts[name] for name in channel_names if name in parts)
        return Row(case, image, parts[segmentations[0]] if segmentations else None)

    problems: list[DatasetError] = []
    rows = collect(row, cases, problems)
    classes = None if request.images_only else request.classes(find_table(request.root))
    masks = [name for name in channel_names if any(map(MASK_WORD.fullmatch, words_of(name)))]
    warnings = [_mask_among_channels(masks, request.root)] if masks and not request.images_only else []
    return Listing(tuple(rows), classes, tuple(channel_names) or ("image",), tuple(problems), tuple(warnings))


def is_case_folder(folder: Path, files: FileIndex) -> bool:
    """Say whether a folder holds one label map by its name, and images beside it."""
    names = _parts(folder, files)
    plain = [name for name in names if _LABEL.fullmatch(name)]
    return len(names) > 1 and len(plain or [name for name in names if _is_segmentation(name)]) == 1


def _channels_of_most(cases: Iterable[Iterable[str]]) -> list[str]:
    """The names of images that half of the cases with any image have, sorted; where there are none, of all images."""
    images = [names for parts in cases if (names := [name for name in parts if not _is_segmentation(name)])]
    count = Counter(name for names in images for name in names)
    return sorted(name for name, n in count.items() if 2 * n >= len(images)) or sorted(count)


def _is_segmentation(name: str) -> bool:
    """Say whether a file is the label map of its case, or another segmentation, by its name."""
    return _LABEL.fullmatch(name) is not None or any(map(LABEL_WORD.fullmatch, words_of(name)))


def _mask_among_channels(masks: Sequence[str], root: Path) -> DatasetError:
    return DatasetError(
        "mask_channel", root, "images that do not show what is to be segmented", f"the channels {', '.join(masks)}",
        "move these files to another folder if they were drawn from the label; nothing, if they are there for every "
        "scan that is to be segmented",
    )  # fmt: skip


def _parts(folder: Path, files: FileIndex) -> dict[str, list[Path]]:
    """The volumes of a case folder by their names without that of the case; of that name alone "image"."""
    own_name = re.compile(rf"^{re.escape(folder.name)}([-_. ]|$)")
    return by_name(files.volume_files(folder), lambda path: own_name.sub("", volume_stem(path)) or "image")
