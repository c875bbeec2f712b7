"""The edge of the pipeline: what a path is, which volumes lie below it, and their geometry. Reads headers, no voxels.

Reading voxels is `transforms.load`'s, since chains begin with it; which label belongs to which image is `cases`'s.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from transforms.load import Geometry, VolumeError, read_geometry, volume_kind, volume_stem

__all__ = ["Geometry", "Source", "VolumeError", "list_sources"]

_LONGEST_ID = 200  # bytes; a file system's names end at 255, and outputs put suffixes behind the id


@dataclass(frozen=True)
class Source:
    """A volume on disk: a file, or a folder with a DICOM series.

    `id` names it in outputs and is unique among the sources listed together; `kind` is "nifti", "nrrd", "metaimage" or
    "dicom".
    """

    id: str
    path: Path
    kind: str

    def geometry(self) -> Geometry:
        """Read the header: shape (I, J, K), affine (voxel index -> world mm, RAS+), dtype. Raises VolumeError."""
        return read_geometry(self.path)


def list_sources(paths: Iterable[Path | str], *, follow_links: bool = False) -> tuple[Source, ...]:
    """List the volumes that paths stand for: a volume file, a DICOM folder, or a folder tree with any of these.

    Files of other kinds inside a tree are passed over, hidden ones too, and links to folders are not followed. An id is
    the name without its suffix; where two are equal, the folders above are joined to it ("ct.nii.gz" of many cases).
    It is safe as a file name: characters that steer a terminal become "_". `follow_links` takes files that links in a
    tree fetch from outside it; the paths themselves may always be links.

    Raises:
        VolumeError: a path that does not exist, is no volume, a folder without any, a link that leaves the tree.
    """
    by_path: dict[Path, Source] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise VolumeError(f"{path}: expected a volume or a folder, found no such file or folder")
        found = [_source(path, path.parent)] if path.is_file() else list(_walk(path))
        if path.is_dir() and not follow_links:
            _refuse_links(found, path)
        if not found or any(source.kind == "" for source in found):
            raise VolumeError(f"{path}: expected NIfTI, NRRD, MetaImage or a DICOM folder, found none")
        by_path.update({source.path: source for source in found})
    sources = by_path.values()
    counts = Counter(volume_stem(source.path) for source in sources)
    named = [source if counts[volume_stem(source.path)] > 1 else _short(source) for source in sources]
    if twice := [name for name, count in Counter(source.id for source in named).items() if count > 1]:
        same = " and ".join(str(source.path) for source in named if source.id == twice[0])
        raise VolumeError(f"{same}: expected names that differ, both would be called {twice[0]}; give one folder above")
    return tuple(named)


def _walk(root: Path) -> Iterable[Source]:
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if volume_kind(here) == "dicom":
            yield _source(here, root.parent if here == root else root)
            continue
        # The data half (.img) of a pair would list its volume twice.
        names = (name for name in sorted(files) if not name.startswith(".") and not name.lower().endswith(".img"))
        yield from (_source(here / name, root) for name in names if volume_kind(here / name))


def _refuse_links(sources: Iterable[Source], root: Path) -> None:
    there = root.resolve()
    for source in sources:
        if source.path.is_symlink() and not source.path.resolve().is_relative_to(there):
            raise VolumeError(
                f"{source.path}: a link that leads out of {root}, to {source.path.resolve()}; give --follow_links if "
                "that is meant, or name the file itself"
            )


def _source(path: Path, above: Path) -> Source:
    """Return the source with its long id: the way to it from the folder `above`, without the suffix."""
    parts = path.relative_to(above).parts
    return Source(_plain("_".join((*parts[:-1], volume_stem(path)))), path, volume_kind(path) or "")


def _short(source: Source) -> Source:
    return replace(source, id=_plain(volume_stem(source.path)))


def _plain(name: str) -> str:
    """Return a name that is safe as the beginning of a file name: no control characters, not hidden, not too long."""
    plain = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name).strip()
    plain = "_" + plain[1:] if plain.startswith(".") else plain
    encoded = plain.encode(errors="replace")
    if len(encoded) > _LONGEST_ID:  # the end of its own that two long names have is kept apart
        plain = f"{encoded[: _LONGEST_ID - 9].decode(errors='ignore')}_{zlib.crc32(encoded):08x}"
    return plain or "volume"
