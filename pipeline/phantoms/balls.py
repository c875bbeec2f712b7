"""Balls at known places, for the proof that geometry is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.phantoms.phantom import PhantomError, slices
from pipeline.phantoms.shapes import Points


def balls(
    shape: Sequence[int],
    affine: Points,
    centres_mm: Sequence[Sequence[float]],
    radii_mm: Sequence[float],
    values: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Label map (I, J, K) of balls at world positions: a voxel whose centre lies within the radius belongs to the ball.

    `values` are the labels, 1, 2, 3, … by default; later balls override earlier ones. A ball's true volume is 4/3 π r³.
    Raises PhantomError for a ball that does not lie wholly inside the grid, since its volume would be unknown.
    """
    label, affine = np.zeros(tuple(shape), np.uint8), np.asarray(affine, float)
    for n, (centre, radius) in enumerate(zip(np.asarray(centres_mm, float), radii_mm, strict=True)):
        box = _ball_box(label.shape, affine, centre, radius)
        i, j, k = np.ogrid[slices(box)]
        rows = np.column_stack([affine[:3, :3], affine[:3, 3] - centre])
        squares = sum(np.square(a * i + b * j + c * k + d) for a, b, c, d in rows)
        label[slices(box)][squares <= radius**2] = n + 1 if values is None else values[n]
    return label


def _ball_box(shape: Sequence[int], affine: Points, centre: Points, radius: float) -> NDArray[np.int64]:
    inverse = np.linalg.inv(affine)[:3]
    middle, reach = inverse[:, :3] @ centre + inverse[:, 3], radius * np.linalg.norm(inverse[:, :3], axis=1)
    if (middle - reach < -0.5).any() or (middle + reach > np.asarray(shape) - 0.5).any():
        where = tuple(round(float(c), 1) for c in centre)
        raise PhantomError(f"ball of {radius:g} mm at {where} mm: leaves the grid {tuple(shape)}; move or shrink it")
    return np.stack([np.floor(middle - reach), np.ceil(middle + reach) + 1]).astype(np.int64).clip(0, shape)


@dataclass(frozen=True, eq=False)
class GeometryProof:
    """Balls at known places: label (I, J, K) uint8, and for its values 1, 2, … name, centre (mm, RAS+), radius (mm)."""

    label: NDArray[np.uint8]
    names: tuple[str, ...]
    centres_mm: Points
    radii_mm: tuple[float, ...]


# Name: offset from the middle of the grid (mm, RAS+) and radius. No two axes and no two directions look alike.
_PROOF = {
    "ball_60": ((0, 0, 0), 60.0),
    "ball_20": ((10, 88, 0), 20.0),
    "ball_8": ((0, -84, 20), 8.0),
    "ball_4": ((6, 10, 88), 4.0),
    "marker_left": ((-85, 0, 15), 12.0),
    "marker_right": ((85, 0, -15), 12.0),
}


def geometry_proof(shape: Sequence[int], affine: Points) -> GeometryProof:
    """Balls of 60, 20, 8 and 4 mm and a marker on either side, around the middle of a grid of at least 220 mm each way.

    Raises PhantomError where the grid is too small.
    """
    middle = (np.asarray(affine, float) @ [*((np.asarray(shape) - 1) / 2), 1])[:3]
    centres = middle + np.array([offset for offset, _ in _PROOF.values()], float)
    radii = tuple(radius for _, radius in _PROOF.values())
    return GeometryProof(balls(shape, affine, centres, radii), tuple(_PROOF), centres, radii)
