"""Label maps of balls at known world positions, for the proof that geometry is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.phantoms.phantom import PhantomError
from pipeline.phantoms.shapes import Points


def balls(
    shape: Sequence[int], affine: Points, centres_mm: Sequence[Sequence[float]], radii_mm: Sequence[float]
) -> NDArray[np.uint8]:
    """Label map (I, J, K) of balls at world positions: a voxel whose centre lies within the radius belongs to the ball.

    The labels are 1, 2, 3, …; later balls override earlier ones. A ball's true volume is 4/3 π r³.
    Raises PhantomError for a ball that does not lie wholly inside the grid, since its volume would be unknown.
    """
    label, affine = np.zeros(tuple(shape), np.uint8), np.asarray(affine, float)
    for value, (centre, radius) in enumerate(zip(np.asarray(centres_mm, float), radii_mm, strict=True), start=1):
        middle, reach = _extent(centre, radius, affine)
        if (middle - reach < -0.5).any() or (middle + reach > np.asarray(shape) - 0.5).any():
            where = tuple(round(float(c), 1) for c in centre)
            raise PhantomError(
                f"ball of {radius:g} mm at {where} mm: leaves the grid {tuple(shape)}; move or shrink it"
            )
        around = around_ball(centre, radius, label.shape, affine)
        label[around.box][around.distance_mm <= radius] = value
    return label


class AroundBall(NamedTuple):
    """The voxels of a grid around a ball."""

    box: tuple[slice, ...]
    """The voxels that the ball may reach, cut at the grid."""
    distance_mm: Points
    """How far each voxel of the box lies from the ball's centre."""


def around_ball(centre_mm: Points, radius_mm: float, shape: Sequence[int], affine: Points) -> AroundBall:
    """Find the voxels around a ball on a grid of `shape` (I, J, K) and `affine` (voxel -> world mm).

    >>> around = around_ball(np.array([5.0, 5, 5]), 1.0, (9, 9, 9), np.eye(4))
    >>> around.box[0], int((around.distance_mm <= 1).sum())
    (slice(4, 7, None), 7)
    """
    middle, reach = _extent(centre_mm, radius_mm, affine)
    low = np.maximum(np.floor(middle - reach), 0).astype(int).tolist()
    high = np.minimum(np.ceil(middle + reach) + 1, shape).astype(int).tolist()
    box = tuple(slice(first, end) for first, end in zip(low, high, strict=True))
    i, j, k = np.ogrid[box]
    rows = np.column_stack([affine[:3, :3], affine[:3, 3] - centre_mm])
    return AroundBall(box, np.sqrt(sum(np.square(a * i + b * j + c * k + d) for a, b, c, d in rows)))


def _extent(centre_mm: Points, radius_mm: float, affine: Points) -> tuple[Points, Points]:
    """Voxel index of a ball's centre, and how many voxels the ball reaches along each axis."""
    inverse = np.linalg.inv(affine)[:3]
    return inverse @ [*centre_mm, 1], radius_mm * np.linalg.norm(inverse[:, :3], axis=1)


@dataclass(frozen=True, eq=False)
class GeometryProof:
    """Balls at known positions."""

    label: NDArray[np.uint8]
    """(I, J, K)"""
    names: tuple[str, ...]
    """Of the label's values 1, 2, …; the following fields likewise."""
    centres_mm: Points
    """(n, 3), RAS+."""
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
    """Balls of 60, 20, 8 and 4 mm radius, a marker on either side, around the middle of a grid of 220 mm or more.

    Raises PhantomError where the grid is too small.
    """
    middle = (np.asarray(affine, float) @ [*((np.asarray(shape) - 1) / 2), 1])[:3]
    centres = middle + np.array([offset for offset, _ in _PROOF.values()], float)
    radii = tuple(radius for _, radius in _PROOF.values())
    return GeometryProof(balls(shape, affine, centres, radii), tuple(_PROOF), centres, radii)
