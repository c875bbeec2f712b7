"""A header whose voxels lie in a second file (.hdr/.img, .nhdr, .mhd): which file that is. Opens none.

A header out of a stranger's archive may name any file of the machine, and a link may stand for one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from transforms.io.grid import VolumeError


def beside(header: Path, name: str) -> Path:
    """Return the file that a header names, which has to be in the header's own folder or below.

    A link is followed where it stays there, or where the header is a link, too, and both lead to one folder.

    Raises:
        VolumeError: an absolute name, one with "..", a link that leads elsewhere, no such file.
    """
    # Backslashes: what is a name here is a path where the same data set is read on Windows.
    parts = Path(name.replace("\\", "/")).parts
    if not name.isprintable() or not parts or parts[0].startswith("/") or parts[0].endswith(":") or ".." in parts:
        raise VolumeError(
            f"{header}: the header names voxels outside its own folder ({name!r}); put them beside the header"
        )
    path = header.parent / name
    if not path.is_file():
        raise VolumeError(f"{header}: its other half {name} is missing beside it; copy both files together")
    folders = header.parent.resolve(), header.resolve().parent
    if not any(path.resolve().is_relative_to(folder) for folder in folders):
        raise VolumeError(
            f"{header}: its other half {name} is a link that leads out of its folder; copy the file there"
        )
    return path


def files_behind(path: Path) -> list[Path]:
    """The files that hold a volume: the path itself, all below a folder (DICOM), a header with its data file."""
    if path.is_dir():
        return sorted(Path(root) / name for root, _, names in os.walk(path) for name in names)
    suffix = path.suffix.lower()
    if suffix in (".hdr", ".img"):
        return [file for file in (path.with_suffix(".hdr"), path.with_suffix(".img")) if file == path or file.exists()]
    if suffix in (".mhd", ".nhdr"):
        with path.open("rb") as file:
            named = re.findall(rb"(?im)^(?:ElementDataFile\s*=|data ?file:)\s*(\S[^\r\n]*?)\s*$", file.read(1 << 16))
        data = [path.parent / os.fsdecode(name) for name in named if name.upper() != b"LOCAL"]
        # a list or a pattern of data files: whatever lies beside the header then counts
        return [path, *(data if all(file.is_file() for file in data) else _beside(path))]
    return [path]


def _beside(path: Path) -> list[Path]:
    return sorted(file for file in path.parent.iterdir() if file.is_file() and file != path)
