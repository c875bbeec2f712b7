"""Find the scans to segment: volumes, DICOM folders, folder trees and data sets. Reads headers, no voxels."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.console.text import counted, some_of
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex, has_volume_name
from pipeline.datasets.file_names import ends_as_label, labels_beside_images
from pipeline.datasets.layouts import data_sets_below
from pipeline.datasets.listing import LONGEST_ID, ImageListing, find_images
from pipeline.datasets.rows import are_named
from pipeline.files.regular import sha256_of
from pipeline.inference.channel_order import channel_order
from pipeline.writers.segmentation import SegmentationError
from transforms.io.detached import files_behind, is_data_half
from transforms.io.dicom import holds_pictures
from transforms.io.errors import VolumeError
from transforms.io.load import known_kind, volume_kind, volume_stem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputCase:
    """A scan to segment."""

    id: str
    """Name of its outputs; safe as a file name and unique among the cases listed together."""
    images: tuple[Path, ...]
    """One path a channel: a volume file, or a folder with a DICOM series; or one file with the channels as frames."""
    error: str = ""
    """Why it cannot be segmented; listed all the same, so that no scan is missing without a word."""
    frames: tuple[int, ...] = ()
    """The frames of that file in the order of the network's channels; none: as they are."""

    @property
    def files(self) -> list[Path]:
        """The image files: of a series all that lies in its folder, which is known without reading a header.

        A folder that cannot be read is reported when it is read as a scan, so here it is given itself.
        """
        found: list[Path] = []
        for path in self.images:
            try:
                found += files_behind(path) if path.is_dir() else [path]
            except OSError:
                found.append(path)
        return found

    @property
    def state(self) -> str:
        """SHA-256 of the names, sizes and times of change of all that is read: another where a scan was replaced.

        Of a header whose voxels lie in a second file, both count. Raises OSError.
        """
        found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._all_read()]
        return hashlib.sha256(repr([*found, *self._turned_frames]).encode()).hexdigest()

    @property
    def content(self) -> str:
        """SHA-256 of the names and bytes of all that is read. Raises OSError."""
        found = []
        for path in self._all_read():
            if not path.is_file():  # a record that names its scan may name a device
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            found.append((path.name, sha256_of(path)))
        return hashlib.sha256(repr([*found, *self._turned_frames]).encode()).hexdigest()

    @property
    def _turned_frames(self) -> tuple[int, ...]:
        """The frames where the file has them in another order: named or not, as they are they are the same scan."""
        return () if self.frames == tuple(range(len(self.frames))) else self.frames

    def was_touched_after(self, time_ns: int) -> bool:
        """Whether a file of all that is read was put there or changed since, by the time that no copying preserves.

        Raises OSError.
        """
        return any(path.stat().st_ctime_ns > time_ns for path in self._all_read())

    def _all_read(self) -> list[Path]:
        return [path for image in self.images for path in files_behind(image)]


def list_inputs(
    paths: Iterable[Path | str],
    channel_names: Sequence[str] = ("image",),
    *,
    follow_links: bool = False,
    output: Path | None = None,
) -> tuple[InputCase, ...]:
    """List the cases below some paths: volumes, DICOM folders, folder trees, or data sets in a layout of training.

    Of a data set all images are taken, labelled or not, with the data set's own case ids; also of the folders that
    nnU-Net predicts (CASE_0000, CASE_0001, …) and of list files. Where the data set names its channels, they are
    brought into the network's order by name (`channel_order`). The same holds for data sets below a folder. Elsewhere
    the images of a case with several channels are put together by `list_volumes`. What cannot be listed or accessed
    becomes a case with an error. A link that leads out of a path is refused unless `follow_links`; the path itself may
    be one. What lies in the folder `output` is passed over, as it may be results of the same command.

    Args:
        paths: files, folders, data sets.
        channel_names: image channels in the network's order.
        follow_links: take what links fetch from outside a path.
        output: the folder of the results.

    Raises:
        VolumeError, DatasetError: a path without any, a data set with other channels. SegmentationError: two cases of
            one name, or a path that is the output folder.
    """
    found: list[InputCase] = []
    plain: dict[Path, bool] = {}  # whether it holds data sets
    files = FileIndex()
    leave_out = [] if output is None else [output]
    for path in map(Path, paths):
        if output is not None and path.is_dir() and path.resolve() == output.resolve():
            raise _in_one_folder(path)
        listing = find_images(path, n_channels=len(channel_names), follow_links=follow_links, files=files)
        if listing is not None and not _counts_cases(listing, channel_names):
            found += _of_dataset(listing, path, channel_names, output, follow_links=follow_links)
        else:
            inner = _data_sets_in(path, channel_names, output, files, follow_links=follow_links)
            found += [case for cases in inner.values() for case in cases]
            leave_out += inner
            plain[path] = bool(inner)
    if plain:
        may_lack = [path for path, holds_data_sets in plain.items() if holds_data_sets]
        found += list_volumes(
            plain, channel_names, follow_links=follow_links, leave_out=leave_out, may_lack=may_lack, files=files
        )
    if twice := [name for name, n in Counter(case.id.lower() for case in found).items() if n > 1]:
        same = " and ".join(str(case.images[0]) for case in found if case.id.lower() == twice[0] and case.images)
        raise SegmentationError(f"{same}: both would be called {twice[0]}; predict them into two folders")
    return tuple(found)


def _data_sets_in(
    root: Path, channel_names: Sequence[str], output: Path | None, files: FileIndex, *, follow_links: bool
) -> dict[Path, list[InputCase]]:
    """The cases of the data sets below a folder, by their folder: their label maps are no scans.

    An id is the data set's own, below the folders that lead to it. A data set with other channels than the network's is
    left to `list_volumes`.
    """
    found: dict[Path, list[InputCase]] = {}
    # Results in this tree are no scans; but the tree may lie in the folder of the results.
    results = output if output is not None and _lies_in(output, root) else None
    for folder in data_sets_below(root, files, follow_links=follow_links):
        if results is not None and _lies_in(folder, results):
            continue
        above = "_".join(folder.relative_to(root).parts)
        try:
            listing = find_images(folder, n_channels=len(channel_names), follow_links=follow_links, files=files)
            if listing is None or _counts_cases(listing, channel_names):
                continue
            cases = _of_dataset(listing, folder, channel_names, output, follow_links=follow_links)
        except DatasetError as error:
            cases = [InputCase(above, (), str(error))]
        else:
            cases = [replace(case, id=_plain(f"{above}_{case.id}")) for case in cases]
        found[folder] = cases
    return found


def _counts_cases(listing: ImageListing, channel_names: Sequence[str]) -> bool:
    """Whether the numbers in CT_0000, CT_0001, PET_0000, PET_0001 are those of cases: channels are named in front."""
    names = {channel.lower() for channel in channel_names}
    is_own = are_named(listing.channel_names)
    return len(channel_names) > 1 and not is_own and {case.lower() for case in listing.images} <= names


def _of_dataset(
    listing: ImageListing, root: Path, channel_names: Sequence[str], output: Path | None, *, follow_links: bool
) -> list[InputCase]:
    for warning in listing.warnings:
        log.warning("%s", warning)
    order = channel_order(listing.channel_names, channel_names, root)
    images = listing.images
    if output is not None and _lies_in(output, root):
        there = output.resolve()
        scans = {case: files for case, files in images.items() if not files[0].resolve().is_relative_to(there)}
        if images and not scans:
            raise _in_one_folder(output)
        images = scans
    if not follow_links:
        for folder in (path for files in images.values() for path in files if path.is_dir()):
            refuse_linked_slices(folder, root)
    cases = {case: _in_order(case, files, order) for case, files in images.items()}
    for number, error in enumerate(listing.refused, start=1):
        case = error.case or f"{root.name} entry {number}"
        cases[case] = InputCase(case, (), str(error))
    return list(cases.values())


def _in_order(case: str, files: tuple[Path, ...], order: tuple[int, ...]) -> InputCase:
    """The case with its channels, which are frames where a single file has several, in this order."""
    if len(files) < len(order):
        return InputCase(case, files, frames=order)
    return InputCase(case, tuple(files[position] for position in order))


def _in_one_folder(folder: Path) -> SegmentationError:
    return SegmentationError(f"{folder}: scans and results would lie in one folder; choose another --output")


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def list_volumes(
    paths: Iterable[Path | str],
    channel_names: Sequence[str] = ("image",),
    *,
    follow_links: bool = False,
    leave_out: Collection[Path] = (),
    may_lack: Collection[Path] = (),
    files: FileIndex | None = None,
) -> tuple[InputCase, ...]:
    """List the scans that paths stand for: a volume file, a DICOM folder, or a folder tree with any of these.

    Files of other kinds inside a tree are passed over, and hidden ones, and with a warning label maps beside images
    (`labels_beside_images`), unless a channel is called as one; what cannot be accessed is listed with its error. An id
    is a file's name without its suffix, below the folders that lead to it from the tree's root ("a_ct" for
    a/ct.nii.gz): it does not depend on what else lies there. It is safe as a file name: characters that steer a
    terminal become "_".

    Where the network has several channels, volumes of one folder are one case if their names are CASE_0000, CASE_0001,
    … (nnU-Net), or begin or end in the channels' names (CASE_CT, CASE_PET; CT and PET in a folder of the case; CASE in
    folders CT and PET). A case that lacks a channel is listed with its error. With one channel, CASE_0000 is case CASE.

    Args:
        paths: may themselves be links.
        channel_names: image channels in the network's order.
        follow_links: take what links in a tree fetch from outside it, files and folders, each folder once.
        leave_out: folders that are passed over, wherever they lie: that of the results, data sets.
        may_lack: those of the paths that need not hold a volume.
        files: what is known of the folders already; None: nothing.

    Raises:
        VolumeError: a path that does not exist or is not a volume, a folder without any, a link that leaves the tree.
    """
    found: dict[Path, _Volume] = {}
    files = files or FileIndex()
    for path in map(Path, paths):
        there = _volumes_at(path, leave_out, files, follow_links=follow_links)
        if not there and path not in may_lack:
            raise _nothing_at(path)
        labels = set() if any(map(ends_as_label, channel_names)) else _labels_among(there, path)
        for volume in there:
            if volume.path not in labels:
                found.setdefault(volume.path, volume)
    cases = [volume.alone() for volume in found.values() if volume.error]
    by_folder: dict[tuple[Path, Path], dict[Path, str]] = {}
    for volume in found.values():
        if not volume.error:
            folder, name = volume.folder_and_name(channel_names)
            by_folder.setdefault((volume.root, folder), {})[volume.path] = name
    for (root, folder), volumes in by_folder.items():
        above = folder.relative_to(root).parts
        for joined in join_channels(volumes, channel_names):
            parts = (*above, joined.id) if joined.id else above or (folder.resolve().name,)
            cases.append(replace(joined, id=_plain("_".join(parts))))
    position = {path: number for number, path in enumerate(found)}
    cases.sort(key=lambda case: position[case.images[0]])
    if twice := [name for name, count in Counter(case.id for case in cases).items() if count > 1]:
        same = " and ".join(str(case.images[0]) for case in cases if case.id == twice[0])
        equal = f"two that would both be called {twice[0]}"
        roots = {found[case.images[0]].root for case in cases if case.id == twice[0]}
        remedy = "rename one or move it away" if len(roots) == 1 else "pass the common parent folder instead"
        raise VolumeError("same_name", same, "names that differ", equal, remedy)
    _warn_of_uncorrected({case.id for case in cases})
    return tuple(cases)


def _labels_among(volumes: Sequence[_Volume], root: Path) -> set[Path]:
    """Which volumes of a tree are labels beside images, by their names; says which."""
    paths = [volume.path for volume in volumes if volume.root == root and not volume.error]
    labels = [path for path in labels_beside_images(paths, root) if not (path.is_dir() and holds_pictures(path))]
    if labels:
        names = some_of([path.relative_to(root).as_posix() for path in labels], 3)
        log.warning(
            "%s: %s beside images, by the names, not segmented: %s; name one itself to segment it",
            root, counted(len(labels), "label map"), names,
        )  # fmt: skip
    return set(labels)


def _warn_of_uncorrected(names: Set[str]) -> None:
    """Warn of scans whose slices dcm2niix has put in their places in a second file, and left wrong in the first."""
    for name in sorted(names):
        found = re.fullmatch(r"(.+?)(_Tilt|_Eq|_Tilt_Eq)(_\d+)?", name)
        if found and found[1] in names:
            log.warning(
                "case %s: its slices are not where %s has them, which dcm2niix writes of a tilted or uneven series; "
                "use the result of that one alone", found[1], name,
            )  # fmt: skip


def join_channels(volumes: Mapping[Path, str], channel_names: Sequence[str]) -> list[InputCase]:
    """Put the volumes of one folder together that are the channels of one case.

    Args:
        volumes: their names without suffix, by path.
        channel_names: in the network's order.

    Returns:
        The cases, images in the network's order; with the id "" where files are named by channel alone, so that the
        folder's name is the case's. A volume whose name does not say which channel it is is one by itself.

    >>> files = {Path(name): name for name in ("a_0000", "a_0001", "b_pet", "ct_b", "c")}
    >>> [(case.id, len(case.images)) for case in join_channels(files, ["CT", "PET"])]
    [('a', 2), ('b', 2), ('c', 1)]
    """
    if len(channel_names) == 1:
        return [InputCase(name.removesuffix("_0000"), (path,)) for path, name in volumes.items()]
    channels: dict[str, dict[int, Path]] = {}
    alone = []
    for path, name in volumes.items():
        case, number = _case_and_channel(name, channel_names)
        if number is None or number in channels.get(case, {}):
            alone.append(InputCase(name, (path,)))
        else:
            channels.setdefault(case, {})[number] = path
    return [*(_joined(case, images, channel_names) for case, images in channels.items()), *alone]


def _joined(case: str, images: Mapping[int, Path], channel_names: Sequence[str]) -> InputCase:
    in_order = tuple(images[number] for number in sorted(images))
    if sorted(images) == list(range(len(channel_names))):
        return InputCase(case, in_order)
    found = ", ".join(path.name for path in in_order)
    error = (
        f"expected an image of each channel ({', '.join(channel_names)}), found {found} in {in_order[0].parent}; add "
        "what is missing, or predict with a run that was trained on such scans"
    )
    return InputCase(case, in_order, error)


def _case_and_channel(stem: str, channel_names: Sequence[str]) -> tuple[str, int | None]:
    """Divide a name into case and channel number; None for a name that does not say which channel it is.

    >>> _case_and_channel("pat0_PET", ["CT", "PET"]), _case_and_channel("0000", ["CT", "PET"])
    (('pat0', 1), ('', 0))
    >>> _case_and_channel("PET_0000", ["CT", "PET"])
    ('0000', 1)
    """
    numbered = re.fullmatch(r"(?:(.+)_)?(\d{4})", stem)
    if numbered and (numbered[1] or "").lower() not in [channel.lower() for channel in channel_names]:
        return numbered[1] or "", int(numbered[2])
    for form in (r"(?:(.*)[ _.-])?{}", r"{}[ _.-](.*)"):
        for number, name in enumerate(channel_names):
            named = re.fullmatch(form.format(re.escape(name)), stem, re.IGNORECASE)
            if named:
                return named[1] or "", number
    return stem, None


class _Volume(NamedTuple):
    """A volume as it was found."""

    path: Path
    root: Path
    """The folder from which its name counts."""
    error: str = ""

    def alone(self) -> InputCase:
        """The case that it is by itself."""
        return InputCase(_plain("_".join(self.path.relative_to(self.root).parts)), (self.path,), self.error)

    def folder_and_name(self, channel_names: Sequence[str]) -> tuple[Path, str]:
        """Where it lies and what it is called; a folder called as one of several channels is a part of the name."""
        folder, name = self.path.parent, volume_stem(self.path)
        is_channel = folder.name.lower() in [channel.lower() for channel in channel_names]
        if len(channel_names) == 1 or not is_channel or folder == self.root:
            return folder, name
        return folder.parent, name if name.lower() == folder.name.lower() else f"{name}_{folder.name}"


def _volumes_at(path: Path, leave_out: Collection[Path], files: FileIndex, *, follow_links: bool) -> list[_Volume]:
    if not _exists(path):
        raise VolumeError("missing_file", path, "a volume or a folder", "no such file or folder", "correct the path")
    found = []
    if path.is_dir():
        found = list(_Tree(path, leave_out, files, follow_links=follow_links).volumes(path))
    elif volume_kind(path):
        found = [_Volume(path, path.parent)]
    if not found and path.is_file():
        known_kind(path)  # says what it is instead
    return found


def _nothing_at(path: Path) -> VolumeError:
    expected = "NIfTI, NRRD, MetaImage or a DICOM folder"
    there = _other_files(path)
    remedy = "convert the scans, or name the folder that holds them" if there else "name the folder with the scan"
    return VolumeError("missing_file", path, expected, there or "none", remedy)


def _other_files(folder: Path) -> str:
    """Name what lies in a folder without volumes: "only a.mgz, b.vtk"; "" where it is empty or cannot be read."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError:
        return ""
    return f"only {some_of(names, 3)}" if names else ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        found = f"one that cannot be accessed ({error.strerror or error})"
        raise VolumeError("unreadable", path, "a volume or a folder", found, "check its permissions") from error


class _Tree:
    """A walk through a folder tree that knows where it has been."""

    def __init__(self, root: Path, leave_out: Collection[Path], files: FileIndex, *, follow_links: bool) -> None:
        self.root = root
        self.files = files
        self.real_root = root.resolve()
        self.follow_links = follow_links
        self.leave_out = {folder.resolve() for folder in leave_out}
        self.seen: set[Path] = set()  # links may lead in circles

    def volumes(self, folder: Path) -> Iterator[_Volume]:
        """The volumes in and below a folder, sorted."""
        real = folder.resolve()
        if real in self.leave_out or real in self.seen:
            return
        self.seen.add(real)
        is_series = False
        try:
            is_series = self.files.is_volume(folder)
        except OSError as error:
            path = Path(error.filename or folder)
            # A file that its name makes a volume is listed below, and reading it says so by itself.
            if path == folder or volume_stem(path) == path.name:
                yield self._unreadable(path, error)
        if is_series:
            if not self.follow_links:
                refuse_linked_slices(folder, self.root)
            series = _Volume(folder, self.root.parent if folder == self.root else self.root)
            if holds_pictures(folder):
                yield series
                yield from self._below(folder, folders_only=True)
            else:  # a segmentation or report beside the scans
                beside = list(self._below(folder))
                yield from beside or [series]
            return
        yield from self._below(folder)

    def _below(self, folder: Path, *, folders_only: bool = False) -> Iterator[_Volume]:
        """The volumes of what lies in a folder; of the files of a series' folder none is a scan by itself."""
        try:
            paths = self.files.visible(folder)
        except OSError:
            return  # named above
        for path in paths:
            yield from self._entry(path, folders_only=folders_only)

    def _entry(self, path: Path, *, folders_only: bool) -> Iterator[_Volume]:
        try:
            is_folder = self.files.is_folder(path)
        except OSError as error:
            yield self._unreadable(path, error)
            return
        if folders_only and not is_folder:
            return
        is_link = self.files.is_link(path)
        if is_link and not path.suffix and not path.exists():  # by its name the link to a folder
            yield self._unreadable(path, FileNotFoundError(errno.ENOENT, f"a link to {path.readlink()}, which is gone"))
            return
        if not is_folder and (is_data_half(path) or not has_volume_name(path)):
            return
        if is_link and not self.follow_links:
            _refuse_outside(path, self.root, self.real_root)
        if not is_folder:
            yield _Volume(path, self.root)
        elif not (is_link and self._is_listed_anyway(path)):
            yield from self.volumes(path)

    def _is_listed_anyway(self, link: Path) -> bool:
        """Whether a link leads to a visible folder of the tree itself."""
        real = link.resolve()
        return real.is_relative_to(self.real_root) and not any(
            part.startswith(".") for part in real.relative_to(self.real_root).parts
        )

    def _unreadable(self, path: Path, error: OSError) -> _Volume:
        above = self.root.parent if path == self.root else self.root
        reason = f"{path}: cannot be read ({error.strerror or error}); make it readable or move it away"
        return _Volume(path, above, reason)


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


def _plain(name: str) -> str:
    """Return a name that is safe as the beginning of a file name: no control characters, not hidden, not too long."""
    plain = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name).strip()
    plain = "_" + plain[1:] if plain.startswith(".") else plain
    encoded = plain.encode(errors="replace")
    if len(encoded) > LONGEST_ID:  # the end of its own that two long names have is kept apart
        plain = f"{encoded[: LONGEST_ID - 9].decode(errors='ignore')}_{zlib.crc32(encoded):08x}"
    return plain or "volume"
