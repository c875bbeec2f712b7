"""Cleaning a label map by connected components: the largest piece of a class, and specks too small to be real.

Pure: a label map and a voxel's volume in, a label map out. Voxels count as connected over faces, edges and corners.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NEIGHBOURS = np.ones((3, 3, 3), bool)


def clean(
    segmentation: NDArray[np.integer],
    voxel_ml: float,
    *,
    keep_largest: Collection[int] = (),
    min_volume_ml: float = 0.0,
) -> int:
    """Turn to background, in place, all but the largest piece of some classes and pieces below a volume of any class.

    Args:
        segmentation: (I, J, K) class indices.
        voxel_ml: volume of a voxel in ml.
        keep_largest: class indices of which only the largest piece stays; of equal pieces the first in memory.
        min_volume_ml: smaller pieces go; 0 keeps all.

    Returns:
        The number of voxels that were turned to background.
    """
    if not keep_largest and min_volume_ml <= 0:
        return 0
    removed = 0
    for value, box in enumerate(ndimage.find_objects(segmentation), start=1):
        if box is not None and (min_volume_ml > 0 or value in keep_largest):
            least = min_volume_ml / voxel_ml
            removed += _clean_class(segmentation[box], value, largest=value in keep_largest, least_voxels=least)
    return removed


def _clean_class(part: NDArray[np.integer], value: int, *, largest: bool, least_voxels: float) -> int:
    pieces, n_pieces = ndimage.label(part == value, NEIGHBOURS)
    sizes = np.bincount(pieces.ravel(order="K"), minlength=n_pieces + 1)
    goes = sizes < least_voxels
    if largest:
        goes |= np.arange(n_pieces + 1) != 1 + sizes[1:].argmax()
    goes[0] = False
    if not goes.any():
        return 0
    gone = goes[pieces]
    part[gone] = 0
    return int(np.count_nonzero(gone))
