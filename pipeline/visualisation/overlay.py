"""A slice with its segmentation as an RGB picture; opens no file."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_OPACITY = 0.5
"""Share of the class colour where a structure lies."""


def overlay_slice(
    image: NDArray[np.floating], segmentation: NDArray[np.integer], colours: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Lay a segmentation over a grey slice.

    Args:
        image: (H, W) intensities; stretched from its own smallest to its largest value.
        segmentation: (H, W) class indices.
        colours: (n_classes, 3) from `class_colours`; a class index beyond them is drawn white.

    Returns:
        (H, W, 3) RGB, 0…255.
    """
    low, high = float(image.min()), float(image.max())
    grey = (image - low) / (high - low) if high > low else np.zeros_like(image, dtype=np.float64)
    picture = np.repeat(255.0 * grey[..., None], 3, axis=-1)
    table = np.vstack([colours, np.full((1, 3), 255, np.uint8)])
    inside = segmentation > 0
    colour = table[np.minimum(segmentation[inside], len(colours))]
    picture[inside] = (1 - _OPACITY) * picture[inside] + _OPACITY * colour
    return np.round(picture).astype(np.uint8)


def overlay_picture(
    image: torch.Tensor, label: torch.Tensor, segmentation: torch.Tensor, colours: NDArray[np.uint8]
) -> np.ndarray:
    """Draw the middle coronal slice twice, head up: with its label, and with the network's segmentation.

    Args:
        image: (C, I, J, K) in RAS+ axis order; the first channel is drawn.
        label, segmentation: (I, J, K) class indices.
        colours: (n_classes, 3) from `class_colours`.

    Returns:
        (K, 2 I, 3) RGB, 0…255; the patient's right is on the picture's left, as radiologists look at it.
    """
    middle = image.shape[2] // 2

    def slice_of(volume: torch.Tensor) -> np.ndarray:
        # Axis 0 grows to the patient's right; mirrored, right comes first. Axis 2 grows to the head.
        return volume[:, middle, :].numpy()[::-1, ::-1].T

    grey = slice_of(image[0].float())
    return np.concatenate([overlay_slice(grey, slice_of(x.to(torch.int32)), colours) for x in (label, segmentation)], 1)
