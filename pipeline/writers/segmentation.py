"""Hold a segmentation before it becomes a file: label map, grid, class names and colours, source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from pipeline.console.text import one_line
from pipeline.visualisation.class_colours import class_colours
from transforms.io.grid import voxel_ml

GZIP_LEVEL = 1
"""Of ISA-L's 0 to 3. Label maps are mostly runs: six times as fast as zlib's level 1, and no larger."""

LONGEST_NAME = 80
"""Characters of a file name made from a class name; with suffixes it stays below the 255 bytes of file systems."""

LONGEST_LABEL = 64
"""Characters of a DICOM long string, as a segment's label and a code's meaning are."""


class SegmentationError(ValueError):
    """A segmentation that cannot be written as asked: which case or format, expected, found, what to do."""

    is_input_error = True


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map on its source's own voxels."""

    array: NDArray[np.integer]
    """(I, J, K) class indices, uint8 or uint16, in Fortran order."""
    affine: NDArray[np.float64]
    """4×4, voxel index -> world mm (RAS+)."""
    class_names: tuple[str, ...]
    """Background first."""
    source: Path
    """The image that it was made from: a file, or a folder with a DICOM series."""
    source_kind: str
    """The source's format, as `transforms.io.load` calls it."""
    label_values: tuple[int, ...] = ()
    """Value of each class in label files; () for the class indices."""
    frame: int = 0
    """Of a source with several, that of the network's first channel."""

    @cached_property
    def colours(self) -> NDArray[np.uint8]:
        """(n_classes, 3) RGB, the same in every picture and file."""
        return class_colours(self.class_names)

    @cached_property
    def voxels(self) -> NDArray[np.int64]:
        """Number of voxels of each class."""
        counts = np.zeros(len(self.class_names), np.int64)
        for slab in np.moveaxis(self.array, 2, 0):  # slice by slice: bincount needs 64-bit integers
            counts += np.bincount(slab.ravel(order="K"), minlength=len(counts))
        return counts

    @cached_property
    def values(self) -> NDArray[np.integer]:
        """(n_classes,) value of each class in label files, of the type that the files have: see `values_of`."""
        return values_of(self.class_names, self.label_values)

    def slices(self) -> Iterator[NDArray[np.integer]]:
        """Yield (I, J) label values, one slice k after the other; little-endian, as files have them."""
        stored = self.values.astype(self.values.dtype.newbyteorder("<"))
        for k in range(self.array.shape[2]):
            yield stored[self.array[:, :, k]]

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return voxel_ml(self.affine)


def values_of(class_names: Sequence[str], label_values: Sequence[int] = ()) -> NDArray[np.integer]:
    """The value of each class in label files, in the smallest type that many readers know.

    Args:
        class_names: background first.
        label_values: one a class; () for the class indices.

    Returns:
        (n_classes,) of uint8, uint16, or int32 where values are larger.

    Raises:
        SegmentationError: another number of values, a value that two classes share, or one outside 0…2**31 − 1.

    >>> values_of(["background", "liver", "spleen"], [0, 3, 207]).dtype.name
    'uint8'
    """
    values = list(label_values) or list(range(len(class_names)))
    if len(values) != len(class_names) or len(set(values)) != len(values):
        raise SegmentationError(f"expected {len(class_names)} label values that differ, found {str(values)[:200]}")
    if min(values) < 0 or max(values) > np.iinfo(np.int32).max:
        raise SegmentationError(f"expected label values of 0 to 2147483647, found {min(values)} to {max(values)}")
    types = (np.uint8, np.uint16, np.int32)
    return np.array(values, next(kind for kind in types if max(values) <= np.iinfo(kind).max))


def packed(stream: BinaryIO) -> igzip.IGzipFile:
    """Pack what is written; without name and time, so that equal segmentations are equal files."""
    return igzip.IGzipFile("", "wb", GZIP_LEVEL, stream, mtime=0)


def file_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """A file name, without suffix, for each class: nothing that leaves a folder, hides a file or collides on a disk
    that ignores case, whatever the names in a data set or checkpoint say."""
    plain = [re.sub(r"[^A-Za-z0-9+=_-]+", "_", name).strip("_")[:LONGEST_NAME] or "class" for name in class_names]
    taken = {name.lower() for name in plain}  # a class truly called rib_2 has rib_2
    names: dict[str, str] = {}
    for first in plain:
        name, number = first, 2
        if first.lower() in names:
            while (name := f"{first}_{number}").lower() in taken:
                number += 1
            taken.add(name.lower())
        names[name.lower()] = name
    return tuple(names.values())


def header_text(text: str) -> str:
    """One line without control characters, for headers that lines and control characters would break."""
    return one_line("".join(c if c.isprintable() else " " for c in text))


def segment_label(class_name: str) -> str:
    """What a class is called in a DICOM SEG: one line of at most LONGEST_LABEL characters, without backslashes, which
    would divide it into two values."""
    return header_text(class_name).replace("\\", "/")[:LONGEST_LABEL]
