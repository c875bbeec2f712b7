"""Hold a segmentation before it becomes a file: label map, grid, class names and colours, source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.visualisation.overlay import class_colours

LONGEST_NAME = 80
"""Characters of a file name made from a class name; with suffixes it stays below the 255 bytes of file systems."""


class SegmentationError(ValueError):
    """A segmentation that cannot be written as asked: which case or format, expected, found, what to do."""

    is_input_error = True


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map on its source's own voxels.

    `array` is (I, J, K) of class indices, uint8 or uint16; `affine` maps voxel index to world mm (RAS+); `source` is
    the image that it was made from, `source_kind` its format as `transforms.load` calls it; `class_names[0]` is the
    background.
    """

    array: NDArray[np.integer]
    affine: NDArray[np.float64]
    class_names: tuple[str, ...]
    source: Path
    source_kind: str

    @cached_property
    def colours(self) -> NDArray[np.uint8]:
        """(n_classes, 3) RGB, the same in every picture and file."""
        return class_colours(len(self.class_names))

    @cached_property
    def voxels(self) -> NDArray[np.int64]:
        """Number of voxels of each class."""
        counts = np.zeros(len(self.class_names), np.int64)
        for slab in np.moveaxis(self.array, 2, 0):  # slice by slice: bincount wants 64-bit integers
            counts += np.bincount(slab.ravel(order="K"), minlength=len(counts))
        return counts

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000


def file_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """A file name, without suffix, for each class: nothing that leaves a folder, hides a file or collides on a disk
    that ignores case, whatever the names in a data set or checkpoint say."""
    names: list[str] = []
    taken: set[str] = set()
    for class_name in class_names:
        plain = re.sub(r"[^A-Za-z0-9+=_-]+", "_", class_name).strip("_")[:LONGEST_NAME] or "class"
        name, number = plain, 2
        while name.lower() in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return tuple(names)


def printable(text: str) -> str:
    """One line without control characters, for headers that lines and control characters would break."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
