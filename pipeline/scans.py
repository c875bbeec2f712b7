"""Which scans are to be segmented: files, DICOM folders, folder trees and data sets as cases. Reads no voxels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache_key import files_behind
from pipeline.cases import list_images
from pipeline.layouts import recognise
from pipeline.segmentation import SegmentationError
from pipeline.volumes import list_sources, refuse_linked_slices
from transforms.dicom import series_files
from transforms.load import volume_kind


@dataclass(frozen=True)
class InputCase:
    """A volume to segment: the name of its outputs, and one path a channel; or why it cannot be segmented."""

    id: str
    images: tuple[Path, ...]
    error: str = ""

    @property
    def files(self) -> list[Path]:
        """The image files; a broken series is reported when it is read, so here its folder stands for it."""
        found: list[Path] = []
        for path in self.images:
            try:
                found += series_files(path) if path.is_dir() else [path]
            except (ValueError, OSError):
                found.append(path)
        return found

    @property
    def state(self) -> str:
        """SHA-256 of the names, sizes and times of change of all that is read: another where a scan was replaced.

        Of a header whose voxels lie in a second file, both count. Raises OSError.
        """
        paths = [path for image in self.images for path in _files_behind(image)]
        found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return hashlib.sha256(repr(found).encode()).hexdigest()


def list_inputs(
    paths: Iterable[Path | str], *, follow_links: bool = False, output: Path | None = None
) -> tuple[InputCase, ...]:
    """List the cases below some paths: volumes, DICOM folders, folder trees, or data sets in a layout of training.

    Of a data set all images are taken, labelled or not, with the data set's own case ids. What cannot be listed or
    looked at becomes a case with an error. A link that leads out of a path is refused unless `follow_links`; the path
    itself may be one. What lies in the folder `output` is passed over, as it may be results of the same command.

    Raises:
        VolumeError, DatasetError: a path that holds none; SegmentationError: two cases of one name, or a path that is
            the output folder.
    """
    found: list[InputCase] = []
    plain: list[Path] = []
    for path in map(Path, paths):
        if output is not None and path.is_dir() and path.resolve() == output.resolve():
            raise SegmentationError(f"{path}: scans and results would lie in one folder; choose another --output")
        if _is_dataset(path):
            found += _of_dataset(path, output, follow_links=follow_links)
        else:
            plain.append(path)
    if plain:
        sources = list_sources(plain, follow_links=follow_links, leave_out=output)
        found += [InputCase(source.id, (source.path,), source.error) for source in sources]
    if twice := [name for name, n in Counter(case.id.lower() for case in found).items() if n > 1]:
        same = " and ".join(str(case.images[0]) for case in found if case.id.lower() == twice[0] and case.images)
        raise SegmentationError(f"{same}: both would be called {twice[0]}; predict them into two folders")
    return tuple(found)


def _of_dataset(root: Path, output: Path | None, *, follow_links: bool) -> list[InputCase]:
    images, refused = list_images(root, follow_links=follow_links)
    if output is not None and output.resolve().is_relative_to(root.resolve()):
        there = output.resolve()
        images = {case: files for case, files in images.items() if not files[0].resolve().is_relative_to(there)}
    if not follow_links:
        for folder in (path for files in images.values() for path in files if path.is_dir()):
            refuse_linked_slices(folder, root)
    good = [InputCase(case, files) for case, files in images.items()]
    return good + [
        InputCase(f"{root.name} entry {number}" if case == why else case, (), why)
        for number, (case, why) in enumerate(refused.items(), start=1)
    ]


def _files_behind(image: Path) -> list[Path]:
    """The files that a volume consists of; nothing of what lies in folders below a series."""
    return sorted(path for path in image.iterdir() if path.is_file()) if image.is_dir() else files_behind(image)


def _is_dataset(path: Path) -> bool:
    try:
        if not path.is_dir() or volume_kind(path) == "dicom":
            return False
        recognise(path)
    except (ValueError, OSError):
        return False
    return True
