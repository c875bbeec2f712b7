"""Sizes of patches: multiples of what the strides of a network divide, not below what a config takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.config.settings import LEAST_EDGE, LEAST_GROWING_EDGE
from pipeline.planning.network_shape import Triple, triple


def multiple_of(strides: Sequence[Triple]) -> Triple:
    """Product of the strides along each axis."""
    return triple(np.prod(np.array(strides).reshape(-1, 3), axis=0)) if strides else (1, 1, 1)


def patch_around(size: Sequence[int], multiple: Triple) -> Triple:
    """The smallest patch that holds a volume of this size."""
    return triple(_up(max(n, LEAST_EDGE), m) for n, m in zip(size, multiple, strict=True))


def scaled(patch: Triple, share: float, multiple: Triple) -> Triple:
    """The patch with edges of about that share: two multiples at least, so that its lowest level has voxels to norm."""
    least = [max(2 * m, _up(LEAST_GROWING_EDGE, m)) for m in multiple]
    edges = zip(patch, multiple, least, strict=True)
    return triple(min(n, max(low, round(n * share / m) * m)) for n, m, low in edges)


def shorter_ones(patch: Triple, size: Sequence[int], multiple: Triple) -> Iterator[Triple]:
    """The patch, then shorter ones: each time one multiple less along the axis that covers most of a volume."""
    least = [max(2 * m, _up(LEAST_EDGE, m)) for m in multiple]
    while True:
        yield patch
        axes = [axis for axis in range(3) if patch[axis] > least[axis]]
        if not axes:
            return
        longest = max(axes, key=lambda axis: (patch[axis] / size[axis], patch[axis]))
        patch = triple(n - multiple[axis] * (axis == longest) for axis, n in enumerate(patch))


def _up(n: int, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple
