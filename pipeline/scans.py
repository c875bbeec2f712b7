"""Which scans are to be segmented: files, DICOM folders, folder trees and data sets as cases. Reads no voxels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.cases import list_cases
from pipeline.layouts import recognise
from pipeline.segmentation import SegmentationError
from pipeline.volumes import list_sources
from transforms.dicom import series_files
from transforms.load import volume_kind


@dataclass(frozen=True)
class InputCase:
    """A volume to segment: the name of its outputs, and one path a channel."""

    id: str
    images: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """The image files; a broken series is reported when it is read, so here its folder stands for it."""
        found: list[Path] = []
        for path in self.images:
            try:
                found += series_files(path) if path.is_dir() else [path]
            except ValueError:
                found.append(path)
        return found

    @property
    def state(self) -> str:
        """SHA-256 of the names, sizes and times of change of all that is read: another where a scan was replaced."""
        paths = [p for image in self.images for p in (sorted(image.iterdir()) if image.is_dir() else [image])]
        found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]
        return hashlib.sha256(repr(found).encode()).hexdigest()


def list_inputs(paths: Iterable[Path | str], *, follow_links: bool = False) -> tuple[InputCase, ...]:
    """List the cases below some paths: volumes, DICOM folders, folder trees, or data sets in a layout of training.

    Of a data set all images are taken, labelled or not, with the data set's own case ids. A link that leads out of a
    path is refused unless `follow_links`; the path itself may be one.

    Raises:
        VolumeError, DatasetError: a path that holds none; SegmentationError: two cases of one name.
    """
    found: list[InputCase] = []
    plain: list[Path] = []
    for path in map(Path, paths):
        if _is_dataset(path):
            dataset = list_cases(path, follow_links=follow_links)
            found += [InputCase(case.id, case.image) for case in (*dataset.cases, *dataset.unlabelled)]
        else:
            plain.append(path)
    if plain:
        found += [InputCase(source.id, (source.path,)) for source in list_sources(plain, follow_links=follow_links)]
    if twice := [name for name, n in Counter(case.id.lower() for case in found).items() if n > 1]:
        same = " and ".join(str(case.images[0]) for case in found if case.id.lower() == twice[0])
        raise SegmentationError(f"{same}: both would be called {twice[0]}; predict them into two folders")
    return tuple(found)


def _is_dataset(path: Path) -> bool:
    if not path.is_dir() or volume_kind(path) == "dicom":
        return False
    try:
        recognise(path)
    except ValueError:
        return False
    return True
