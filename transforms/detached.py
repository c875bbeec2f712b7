"""A header whose voxels lie in a second file (.hdr/.img, .nhdr, .mhd): which file that is. Opens none.

A header out of a stranger's archive may name any file of the machine, and a link may stand for one.
"""

from __future__ import annotations

from pathlib import Path

from transforms.grid import VolumeError


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
