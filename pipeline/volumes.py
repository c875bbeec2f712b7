"""The edge of the pipeline: what a path is, which volumes lie below it, and their geometry. Reads headers, no voxels.

Reading voxels is `transforms.load`'s, since chains begin with it; which label belongs to which image is `cases`'s.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from transforms.load import Geometry, VolumeError, read_geometry, volume_kind, volume_stem

__all__ = ["Geometry", "Source", "VolumeError", "list_sources"]


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


def list_sources(paths: Iterable[Path | str]) -> tuple[Source, ...]:
    """List the volumes that paths stand for: a volume file, a DICOM folder, or a folder tree with any of these.

    Files of other kinds inside a tree are passed over, hidden ones too, and links to folders are not followed. An id is
    the name without its suffix; where two are equal, the folders above are joined to it ("ct.nii.gz" of many cases).

    Raises:
        VolumeError: a path that does not exist, is no volume, or a folder without any.
    """
    by_path: dict[Path, Source] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise VolumeError(f"{path}: expected a volume or a folder, found no such file or folder")
        found = [_source(path, path.parent)] if path.is_file() else list(_walk(path))
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


def _source(path: Path, above: Path) -> Source:
    """Return the source with its long id: the way to it from the folder `above`, without the suffix."""
    parts = path.relative_to(above).parts
    return Source("_".join((*parts[:-1], volume_stem(path))), path, volume_kind(path) or "")


def _short(source: Source) -> Source:
    return replace(source, id=volume_stem(source.path))
