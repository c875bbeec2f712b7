"""Look into the folders of a data set, each of them once."""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from pathlib import Path

from transforms.io.detached import is_data_half
from transforms.io.dicom import holds_dicom
from transforms.io.load import volume_stem


class FileIndex:
    """What lies in folders: each folder is read once, and each path is asked once what it is.

    A data set holds a hundred thousand masks in a thousand folders, often on a disk of another machine where every
    question takes a millisecond.
    """

    def __init__(self) -> None:
        self._entries: dict[Path, dict[str, os.DirEntry[str]]] = {}
        self._by_stem: dict[Path, dict[str, list[Path]]] = {}
        self._is_volume: dict[Path, bool] = {}
        self._leaves: dict[Path, bool] = {}

    def visible(self, folder: Path) -> list[Path]:
        """Return what a folder holds, sorted, without hidden files ("._case.nii.gz" of a Mac's archive).

        Empty where there is no such folder. Raises OSError for a folder that cannot be read.
        """
        return [folder / name for name in sorted(self._entries_of(folder)) if not name.startswith(".")]

    def folders(self, folder: Path) -> list[Path]:
        """Return the visible folders in a folder, sorted. Raises as `visible` does."""
        return [path for path in self.visible(folder) if self._entries[folder][path.name].is_dir()]

    def volumes(self, folder: Path) -> list[Path]:
        """Return the visible volumes of a folder: files by their names, folders that hold DICOM files.

        The data half (.img) of a pair is left out, since it would count its volume twice. Raises as `visible` does.
        """
        return [path for path in self.visible(folder) if not is_data_half(path) and self._may_be_volume(path)]

    def _may_be_volume(self, path: Path) -> bool:
        """`is_volume`; by its name where a link leads nowhere, so that its case is named."""
        try:
            return self.is_volume(path)
        except FileNotFoundError:
            return has_volume_name(path)

    def volume_files(self, folder: Path) -> list[Path]:
        """Return the visible files of a folder that their names make volumes. Raises as `visible` does."""
        return [
            path
            for path in self.visible(folder)
            if has_volume_name(path) and not is_data_half(path) and not self._entries[folder][path.name].is_dir()
        ]

    def alike(self, path: Path) -> list[Path]:
        """Return the volume files beside a path whose names differ in suffix and case of letters alone.

        Raises as `visible` does.
        """
        if path.parent not in self._by_stem:
            by_stem = self._by_stem[path.parent] = defaultdict(list)
            for volume in self.volume_files(path.parent):
                by_stem[volume_stem(volume).lower()].append(volume)
        return self._by_stem[path.parent].get(volume_stem(path).lower(), [])

    def is_file(self, path: Path) -> bool:
        """Say whether a path is a file or a link to one. Raises OSError where it cannot be accessed."""
        try:
            return stat.S_ISREG(self._mode(path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_folder(self, path: Path) -> bool:
        """Say whether a path is a folder or a link to one. Raises OSError where it cannot be accessed."""
        try:
            return stat.S_ISDIR(self._mode(path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_volume(self, path: Path) -> bool:
        """Say whether a path is a file that its name makes a volume, or a folder that holds DICOM files.

        Raises:
            FileNotFoundError: there is no such path. OSError: it cannot be accessed.
        """
        if path not in self._is_volume:
            mode = self._mode(path)
            self._is_volume[path] = (
                holds_dicom(path) if stat.S_ISDIR(mode) else stat.S_ISREG(mode) and has_volume_name(path)
            )
        return self._is_volume[path]

    def leaves(self, path: Path, root: Path) -> bool:
        """Say whether a link leads a path below `root` out of it; `root` itself may be one, since the user named it."""
        return self._leaves_folder(path.parent, root) or (self.is_link(path) and _leads_out(path, root))

    def _leaves_folder(self, folder: Path, root: Path) -> bool:
        """`leaves` of a folder, asked once; what is no link lies where the folder above it does."""
        if folder == root:
            return False
        if folder not in self._leaves:
            is_known = root in folder.parents and not self.is_link(folder)
            self._leaves[folder] = self._leaves_folder(folder.parent, root) if is_known else _leads_out(folder, root)
        return self._leaves[folder]

    def is_link(self, path: Path) -> bool:
        """Say whether a path is a link, wherever it leads."""
        entry = self._entry(path)
        return path.is_symlink() if entry is None else entry.is_symlink()

    def _mode(self, path: Path) -> int:
        """The type of a file as stat has it, links followed."""
        entry = self._entry(path)
        if entry is None or entry.is_symlink():
            try:
                return path.stat().st_mode
            except OSError as error:
                if error.errno == errno.ELOOP:  # links that lead in a circle
                    raise FileNotFoundError(errno.ENOENT, "a link that leads nowhere", str(path)) from error
                raise
        if entry.is_dir():
            return stat.S_IFDIR
        return stat.S_IFREG if entry.is_file() else 0

    def _entry(self, path: Path) -> os.DirEntry[str] | None:
        """The folder's entry for a path; None where only asking the system for the path itself can tell."""
        try:
            return self._entries_of(path.parent).get(path.name)
        except OSError:  # a folder that may be entered but not read
            return None

    def _entries_of(self, folder: Path) -> dict[str, os.DirEntry[str]]:
        if folder not in self._entries:
            try:
                with os.scandir(folder) as entries:
                    self._entries[folder] = {entry.name: entry for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                self._entries[folder] = {}
        return self._entries[folder]


def _leads_out(path: Path, root: Path) -> bool:
    return not path.resolve().is_relative_to(root.resolve())


def has_volume_name(path: Path) -> bool:
    """Say whether a name ends as a volume's does.

    >>> has_volume_name(Path("a/b.nii.gz")), has_volume_name(Path("a/b.json"))
    (True, False)
    """
    return volume_stem(path) != path.name
