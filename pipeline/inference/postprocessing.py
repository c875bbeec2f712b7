"""Clean a label map by connected components: keep the largest piece of a class, remove specks too small to be real.

Pure: a label map and a voxel's volume in, the same label map cleaned. Voxels connect over faces, edges and corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NEIGHBOURS = np.ones((3, 3, 3), bool)
"""Which of the 26 voxels around one belong to its piece: all."""

ROUNDING = 1e-6
"""Share of a volume that a quotient of volumes may be off: headers store affines in single precision."""


@dataclass(frozen=True)
class PostprocessingOptions:
    """What happens to a label map between the network and the files."""

    keep_largest: tuple[int, ...] = ()
    """Indices of classes of which only the largest connected piece stays."""
    min_volume_ml: float = 0.0
    """Connected pieces of any class below this volume in ml become background."""


def clean(segmentation: NDArray[np.integer], voxel_ml: float, options: PostprocessingOptions) -> int:
    """Turn to background, in place, all pieces but the largest of some classes and pieces below a volume of any class.

    Args:
        segmentation: (I, J, K) class indices.
        voxel_ml: volume of a voxel in ml.
        options: which pieces go; of equal largest pieces the first in memory stays.

    Returns:
        The number of voxels that were turned to background.

    >>> label = np.array([[[1, 1, 0, 1]]], np.uint8)
    >>> clean(label, voxel_ml=0.5, options=PostprocessingOptions(min_volume_ml=0.75))
    1
    >>> label.tolist()
    [[[1, 1, 0, 0]]]
    """
    if not options.keep_largest and options.min_volume_ml <= 0:
        return 0
    removed = 0
    least_voxels = options.min_volume_ml / voxel_ml
    for value, box in enumerate(ndimage.find_objects(segmentation), start=1):
        largest_only = value in options.keep_largest
        if box is not None and (options.min_volume_ml > 0 or largest_only):
            removed += _clean_class(segmentation[box], value, largest_only=largest_only, least_voxels=least_voxels)
    return removed


def _clean_class(part: NDArray[np.integer], value: int, *, largest_only: bool, least_voxels: float) -> int:
    pieces, n_pieces = ndimage.label(part == value, NEIGHBOURS)
    sizes = np.bincount(pieces.ravel(order="K"), minlength=n_pieces + 1)
    is_removed = sizes < least_voxels * (1 - ROUNDING)
    if largest_only:
        is_removed |= np.arange(n_pieces + 1) != 1 + sizes[1:].argmax()
    is_removed[0] = False  # what is not of this class
    if not is_removed.any():
        return 0
    removed = is_removed[pieces]
    part[removed] = 0
    return int(np.count_nonzero(removed))
