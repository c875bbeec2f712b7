"""Find the scans to segment: volumes, DICOM folders, folder trees and data sets. Reads headers, no voxels."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.datasets.listing import ImageListing, find_images
from pipeline.writers.segmentation import SegmentationError
from transforms.io.detached import files_behind
from transforms.io.dicom import series_files
from transforms.io.errors import VolumeError
from transforms.io.load import volume_kind, volume_stem

_LONGEST_ID = 200
"""Bytes of a case's id; a file system's names end at 255, and outputs put suffixes behind the id."""


@dataclass(frozen=True)
class InputCase:
    """A scan to segment."""

    id: str
    """Name of its outputs; safe as a file name and unique among the cases listed together."""
    images: tuple[Path, ...]
    """One path a channel: a volume file, or a folder with a DICOM series."""
    error: str = ""
    """Why it cannot be segmented; listed all the same, so that no scan is missing without a word."""

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
    accessed becomes a case with an error. A link that leads out of a path is refused unless `follow_links`; the path
    itself may be one. What lies in the folder `output` is passed over, as it may be results of the same command.

    Raises:
        VolumeError, DatasetError: a path without any. SegmentationError: two cases of one name, or a path that is
            the output folder.
    """
    found: list[InputCase] = []
    plain: list[Path] = []
    for path in map(Path, paths):
        if output is not None and path.is_dir() and path.resolve() == output.resolve():
            raise SegmentationError(f"{path}: scans and results would lie in one folder; choose another --output")
        listing = find_images(path, follow_links=follow_links)
        if listing is not None:
            found += _of_dataset(listing, path, output, follow_links=follow_links)
        else:
            plain.append(path)
    if plain:
        found += list_volumes(plain, follow_links=follow_links, leave_out=output)
    if twice := [name for name, n in Counter(case.id.lower() for case in found).items() if n > 1]:
        same = " and ".join(str(case.images[0]) for case in found if case.id.lower() == twice[0] and case.images)
        raise SegmentationError(f"{same}: both would be called {twice[0]}; predict them into two folders")
    return tuple(found)


def _of_dataset(listing: ImageListing, root: Path, output: Path | None, *, follow_links: bool) -> list[InputCase]:
    images = dict(listing.images)
    if output is not None and output.resolve().is_relative_to(root.resolve()):
        there = output.resolve()
        images = {case: files for case, files in images.items() if not files[0].resolve().is_relative_to(there)}
    if not follow_links:
        for folder in (path for files in images.values() for path in files if path.is_dir()):
            refuse_linked_slices(folder, root)
    good = [InputCase(case, files) for case, files in images.items()]
    return good + [
        InputCase(error.case or f"{root.name} entry {number}", (), str(error))
        for number, error in enumerate(listing.refused, start=1)
    ]


def _files_behind(image: Path) -> list[Path]:
    """The files that a volume consists of; nothing of what lies in folders below a series."""
    return sorted(path for path in image.iterdir() if path.is_file()) if image.is_dir() else files_behind(image)


def list_volumes(
    paths: Iterable[Path | str], *, follow_links: bool = False, leave_out: Path | None = None
) -> tuple[InputCase, ...]:
    """List the volumes that paths stand for: a volume file, a DICOM folder, or a folder tree with any of these.

    Files of other kinds inside a tree are passed over, and hidden ones; what cannot be accessed is listed with its
    error. An id is the name without its suffix; where two are equal, the folders above are joined to it ("ct.nii.gz" of
    many cases). It is safe as a file name: characters that steer a terminal become "_".

    Args:
        paths: may themselves be links.
        follow_links: take what links in a tree fetch from outside it, files and folders, each folder once.
        leave_out: a folder that is passed over, wherever it lies: that of the results.

    Raises:
        VolumeError: a path that does not exist or is not a volume, a folder without any, a link that leaves the tree.
    """
    by_path: dict[Path, InputCase] = {}
    for path in map(Path, paths):
        by_path.update({case.images[0]: case for case in _volumes_at(path, leave_out, follow_links=follow_links)})
    counts = Counter(volume_stem(path) for path in by_path)
    named = [case if counts[volume_stem(path)] > 1 else _short(case) for path, case in by_path.items()]
    if twice := [name for name, count in Counter(case.id for case in named).items() if count > 1]:
        same = " and ".join(str(case.images[0]) for case in named if case.id == twice[0])
        equal = f"two that would both be called {twice[0]}"
        raise VolumeError("same_name", same, "names that differ", equal, "pass the common parent folder instead")
    return tuple(named)


def _volumes_at(path: Path, leave_out: Path | None, *, follow_links: bool) -> list[InputCase]:
    if not _exists(path):
        raise VolumeError("missing_file", path, "a volume or a folder", "no such file or folder", "correct the path")
    found = []
    if path.is_dir():
        found = list(_Tree(path, leave_out, follow_links=follow_links).volumes(path))
    elif volume_kind(path):
        found = [_input(path, path.parent)]
    if not found:
        expected = "NIfTI, NRRD, MetaImage or a DICOM folder"
        raise VolumeError("missing_file", path, expected, "none", "name the file or folder that holds the scan")
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        found = f"one that cannot be accessed ({error.strerror or error})"
        raise VolumeError("unreadable", path, "a volume or a folder", found, "check its permissions") from error


class _Tree:
    """A walk through a folder tree that knows where it has been."""

    def __init__(self, root: Path, leave_out: Path | None, *, follow_links: bool) -> None:
        self.root = root
        self.real_root = root.resolve()
        self.follow_links = follow_links
        self.leave_out = None if leave_out is None else leave_out.resolve()
        self.seen: set[Path] = set()  # links may lead in circles

    def volumes(self, folder: Path) -> Iterator[InputCase]:
        """The volumes in and below a folder, sorted."""
        real = folder.resolve()
        if real == self.leave_out or real in self.seen:
            return
        self.seen.add(real)
        kind = None
        try:
            kind = volume_kind(folder)
        except OSError as error:
            path = Path(error.filename or folder)
            # A file that its name makes a volume is listed below, and reading it says so by itself.
            if path == folder or volume_stem(path) == path.name:
                yield self._unreadable(path, error)
        if kind == "dicom":
            if not self.follow_links:
                refuse_linked_slices(folder, self.root)
            yield _input(folder, self.root.parent if folder == self.root else self.root)
            return
        try:
            names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        except OSError:
            return  # named above
        for path in (folder / name for name in names):
            yield from self._entry(path)

    def _entry(self, path: Path) -> Iterator[InputCase]:
        try:
            is_folder = path.is_dir()
        except OSError as error:
            yield self._unreadable(path, error)
            return
        if path.is_symlink() and not path.suffix and not path.exists():  # by its name the link to a folder
            yield self._unreadable(path, FileNotFoundError(errno.ENOENT, f"a link to {path.readlink()}, which is gone"))
            return
        # The data half (.img) of a pair would list its volume twice.
        if not is_folder and (path.suffix.lower() == ".img" or volume_kind(path) is None):
            return
        if path.is_symlink() and not self.follow_links:
            _refuse_outside(path, self.root, self.real_root)
        if not is_folder:
            yield _input(path, self.root)
        elif not (path.is_symlink() and self._is_listed_anyway(path)):
            yield from self.volumes(path)

    def _is_listed_anyway(self, link: Path) -> bool:
        """Whether a link leads to a visible folder of the tree itself."""
        real = link.resolve()
        return real.is_relative_to(self.real_root) and not any(
            part.startswith(".") for part in real.relative_to(self.real_root).parts
        )

    def _unreadable(self, path: Path, error: OSError) -> InputCase:
        above = self.root.parent if path == self.root else self.root
        reason = f"{path}: cannot be read ({error.strerror or error}); make it readable or move it away"
        return InputCase(_plain("_".join(path.relative_to(above).parts)), (path,), reason)


def refuse_linked_slices(folder: Path, root: Path) -> None:
    """Raise VolumeError where a file of a DICOM folder is a link that leads out of `root`."""
    real_root = root.resolve()
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.name.startswith("."):
            _refuse_outside(path, root, real_root)


def _refuse_outside(link: Path, root: Path, real_root: Path) -> None:
    target = Path(os.path.realpath(link))  # resolve raises where links lead in a circle
    if not target.is_relative_to(real_root):
        found = f"a link that leads out of {root}, to {target}"
        remedy = "give --follow_links if that is meant, or name the file or folder itself"
        raise VolumeError("outside_folder", link, "files of the folder itself", found, remedy)


def _input(path: Path, above: Path) -> InputCase:
    """Return the volume with its long id: the way to it from the folder `above`, without the suffix."""
    parts = path.relative_to(above).parts
    return InputCase(_plain("_".join((*parts[:-1], volume_stem(path)))), (path,))


def _short(case: InputCase) -> InputCase:
    return replace(case, id=_plain(volume_stem(case.images[0])))


def _plain(name: str) -> str:
    """Return a name that is safe as the beginning of a file name: no control characters, not hidden, not too long."""
    plain = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name).strip()
    plain = "_" + plain[1:] if plain.startswith(".") else plain
    encoded = plain.encode(errors="replace")
    if len(encoded) > _LONGEST_ID:  # the end of its own that two long names have is kept apart
        plain = f"{encoded[: _LONGEST_ID - 9].decode(errors='ignore')}_{zlib.crc32(encoded):08x}"
    return plain or "volume"
