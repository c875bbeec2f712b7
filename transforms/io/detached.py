"""A header whose voxels lie in a second file (.hdr/.img, .nhdr, .mhd): which file that is.

A header out of a stranger's archive may name any file of the machine, and a link may stand for one.
"""

from __future__ import annotations

from pathlib import Path

from transforms.io.errors import VolumeError
from transforms.io.itk_header import read_header

_PAIR = (".hdr", ".img")
"""Header and voxels of a pair: of one name."""

_HEADERS = (".mhd", ".nhdr")
"""Headers that may name the file of their voxels."""


def beside(header: Path, name: str) -> Path:
    """Return the file that a header names, which has to be in the header's own folder or below.

    A link is followed where it stays there, or where the header is a link, too, and both lead to one folder.

    Raises:
        VolumeError: an absolute name, one with "..", a link that leads elsewhere, no such file.
    """
    # Backslashes: what is a name here is a path where the same data set is read on Windows.
    parts = Path(name.replace("\\", "/")).parts
    if not name.isprintable() or not parts or parts[0].startswith("/") or parts[0].endswith(":") or ".." in parts:
        found = f"a header that names them outside its own folder ({name!r})"
        raise VolumeError("outside_folder", header, "the voxels beside the header", found, "put them there")
    path = header.parent / name
    if not path.is_file():
        remedy = "copy both files together"
        raise VolumeError("missing_file", header, f"its data file {name} in the same folder", "it missing", remedy)
    folders = header.parent.resolve(), header.resolve().parent
    if not any(path.resolve().is_relative_to(folder) for folder in folders):
        found = f"its data file {name}, a link that leads out of its folder"
        raise VolumeError(
            "outside_folder", header, "the voxels in the header's own folder", found, "copy the file there"
        )
    return path


def is_data_half(path: Path) -> bool:
    """Say whether a file is the half of a .hdr/.img pair that holds the voxels: listing both would count one twice."""
    return path.suffix.lower() == ".img"


def may_need_others(path: Path) -> bool:
    """Say whether a file of this name is a header, or half of a pair, whose volume lies in another file, too."""
    return path.suffix.lower() in (*_PAIR, *_HEADERS)


def files_behind(path: Path) -> list[Path]:
    """Return the files that hold a volume: the path itself, a folder's files (DICOM), a header with its data file.

    Where a header names its data by a list or pattern, or cannot be parsed, all that lies beside it counts.

    Raises:
        OSError: a folder or header cannot be read.
    """
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    suffix = path.suffix.lower()
    if suffix in _PAIR:
        return [file for file in map(path.with_suffix, _PAIR) if file == path or file.exists()]
    if suffix in _HEADERS:
        try:
            _, name = read_header(path)
        except VolumeError:
            return [path, *_beside(path)]
        if name is None:
            return [path]
        return [path, path.parent / name] if (path.parent / name).is_file() else [path, *_beside(path)]
    return [path]


def _beside(path: Path) -> list[Path]:
    return sorted(file for file in path.parent.iterdir() if file.is_file() and file != path)
