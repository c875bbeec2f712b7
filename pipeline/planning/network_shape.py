"""Target spacing, depth, strides and kernels of a network, from the sizes and spacings of a data set.

The rules are nnU-Net's (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): `ExperimentPlanner` and
`get_pool_and_conv_props` of version 2.8.1, in voxel axes i, j, k of RAS+ grids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Triple = tuple[int, int, int]

LEAST_SIZE = 4
"""Voxels along an axis at the lowest resolution."""

ANISOTROPIC = 3.0
"""Ratio of the coarsest spacing to the next from which on the coarsest axis is treated by itself."""

COARSE_PERCENTILE = 10
"""Of the spacings along such an axis: the fine ones, so that thin slices are not thrown away."""


class NetworkShape(NamedTuple):
    """How a U-Net halves a patch."""

    strides: tuple[Triple, ...]
    """Of each step down, 1 or 2 along i, j, k; their number is the number of levels less one."""
    kernels: tuple[Triple, ...]
    """Of the convolutions at each level, from full resolution down; 1 or 3 along i, j, k."""


def target_spacing(
    sizes: Sequence[Sequence[int]], spacings_mm: Sequence[Sequence[float]]
) -> tuple[float, float, float]:
    """The spacing (mm along i, j, k) that a data set is resampled to: the median over its cases, axis by axis.

    Where one axis is more than three times coarser than the next and has less than a third of the voxels of both
    others, it takes the 10th percentile of its spacings instead, but no finer than the coarser of the others.

    Args:
        sizes: voxels (I, J, K) of each case, in RAS+ order.
        spacings_mm: voxel sizes of each case, in the same order.

    >>> target_spacing([(512, 512, 80)] * 3, [(0.8, 0.8, 5.0), (0.7, 0.7, 5.0), (0.9, 0.9, 5.0)])
    (0.8, 0.8, 5.0)
    """
    spacing = np.median(np.asarray(spacings_mm, np.float64), axis=0)
    size = np.median(np.asarray(sizes, np.float64), axis=0)
    worst = int(spacing.argmax())
    others = [axis for axis in range(3) if axis != worst]
    is_coarse = spacing[worst] > ANISOTROPIC * max(spacing[others])
    if is_coarse and size[worst] * ANISOTROPIC < min(size[others]):
        fine = np.percentile([row[worst] for row in spacings_mm], COARSE_PERCENTILE)
        spacing[worst] = max(fine, *spacing[others])
    i, j, k = (float(mm) for mm in spacing)
    return i, j, k


def network_shape(patch: Sequence[int], spacing_mm: Sequence[float]) -> NetworkShape:
    """Strides and kernels for a patch: halve an axis while it has 8 voxels and is not coarser than twice the finest.

    A single axis that is left must have 12 voxels. A kernel is 1 along an axis until that axis is within twice the
    finest spacing, and 3 from there on; at the lowest resolution it is 3 everywhere.

    Args:
        patch: voxels along i, j, k.
        spacing_mm: voxel size along i, j, k.

    Raises:
        ValueError: a size below 1, or a spacing that is not positive.

    >>> network_shape((40, 56, 40), (1, 1, 1)).strides
    ((2, 2, 2), (2, 2, 2), (2, 2, 2))
    """
    if min(patch) < 1 or not min(spacing_mm) > 0:
        raise ValueError(
            f"patch and spacing_mm: expected positive numbers, found {tuple(patch)} and {tuple(spacing_mm)}"
        )
    size, spacing, kernel = list(patch), list(spacing_mm), [1, 1, 1]
    strides: list[Triple] = []
    kernels: list[Triple] = []
    while axes := _halved(size, spacing):
        finest = min(spacing)
        kernel = [3 if k == 3 or mm / finest < 2 else 1 for k, mm in zip(kernel, spacing, strict=True)]
        for axis in axes:
            size[axis], spacing[axis] = math.ceil(size[axis] / 2), spacing[axis] * 2
        strides.append(triple(2 if axis in axes else 1 for axis in range(3)))
        kernels.append(triple(kernel))
    kernels.append((3, 3, 3))
    return NetworkShape(tuple(strides), tuple(kernels))


def _halved(size: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """The axes that the next step halves; none: the lowest resolution is reached."""
    large = [axis for axis in range(3) if size[axis] >= 2 * LEAST_SIZE]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    axes = [axis for axis in large if spacing[axis] / finest < 2]
    if len(axes) == 1 and size[axes[0]] < 3 * LEAST_SIZE:
        return []
    return axes


def triple(values: Iterable[float]) -> Triple:
    """Three whole numbers, of three that may be numpy's."""
    first, second, third = values
    return int(first), int(second), int(third)
