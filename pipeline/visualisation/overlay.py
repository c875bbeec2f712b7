"""A slice with its segmentation as an RGB picture: grey, structures filled translucently, with their contours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FILL = 0.3
"""Share of the class colour inside a structure: what lies below stays visible."""

_UNKNOWN = (255, 255, 255)  # drawn where a class index has no colour


def overlay_slice(
    image: NDArray,
    segmentation: NDArray[np.integer],
    colours: NDArray[np.uint8],
    window: tuple[float, float],
    line: int = 1,
) -> NDArray[np.uint8]:
    """Lay a segmentation over a grey slice.

    Args:
        image: (H, W) intensities; NaN is drawn black.
        segmentation: (H, W) class indices.
        colours: (n_classes, 3) from `class_colours`; a class index beyond them is drawn white.
        window: intensities that are black and white.
        line: width of the contours in pixels, inside the structures; 0 for none.

    Returns:
        (H, W, 3) RGB, 0…255.
    """
    picture = np.repeat(255.0 * grey_values(image, window)[..., None], 3, axis=-1)
    table = np.vstack([colours, [_UNKNOWN]]).astype(np.float64)
    index = np.minimum(segmentation, len(colours))
    inside = segmentation > 0
    picture[inside] = (1 - _FILL) * picture[inside] + _FILL * table[index[inside]]
    if line:
        border = inside & contours(segmentation, line)
        picture[border] = table[index[border]]
    return np.round(picture).astype(np.uint8)


def grey_values(image: NDArray, window: tuple[float, float]) -> NDArray[np.float64]:
    """How bright intensities are drawn, from 0 (black) to 1 (white); NaN is black.

    >>> grey_values(np.array([-500, 40, np.nan]), (-160, 240)).tolist()
    [0.0, 0.5, 0.0]
    """
    low, high = window
    return np.nan_to_num((image.astype(np.float64) - low) / (high - low), nan=0.0).clip(0, 1)


def contours(segmentation: NDArray[np.integer], line: int) -> NDArray[np.bool_]:
    """(H, W) pixels that lie at most `line` pixels from one of another class, along rows and columns."""
    border = np.zeros(segmentation.shape, bool)
    for step in range(1, line + 1):
        for first, second in ((np.s_[step:], np.s_[:-step]), (np.s_[:, step:], np.s_[:, :-step])):
            differs = segmentation[first] != segmentation[second]
            border[first] |= differs
            border[second] |= differs
    return border


def enlarged(plane: NDArray, shape: tuple[int, int]) -> NDArray:
    """A slice in more, or fewer, pixels: each has the value of the voxel that it lies in."""
    rows, columns = ((np.arange(new) + 0.5) * old / new for new, old in zip(shape, plane.shape, strict=True))
    return plane[np.ix_(rows.astype(int), columns.astype(int))]
