"""Analytic solids in world millimetres (ellipsoid, capsule, tube, loft), and the warp that fits them into one person.

RAS+: x grows towards the patient's right, y forwards, z upwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Points = NDArray[np.float64]

_MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Warp:
    """What stretches and bends a whole body: `scale` along x y z, and smooth waves of a few mm (scoliosis, stance)."""

    scale: Points
    """(3,), without unit."""
    amplitudes_mm: Points
    """(n_waves, 3): how far each wave moves a point along x y z."""
    wave_vectors: Points
    """(n_waves, 3) in radians per mm."""
    phases: Points
    """(n_waves,) in radians."""

    def moved(self, points: Points) -> Points:
        """Move points (..., 3) of the atlas to where this person has them."""
        return points * self.scale + np.sin(points @ self.wave_vectors.T + self.phases) @ self.amplitudes_mm


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid around `centre` (3,) with half axes `semi` (3,) in mm along the rows of `axes` (3, 3)."""

    centre: Points
    semi: Points
    axes: Points

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Signed distance (negative inside) at world coordinates; zero exactly on the surface, about mm near it."""
        squares = np.zeros(x.shape, np.float32)
        for row in self.axes / self.semi[:, None]:
            a, b, c = row.astype(np.float32)
            squares += np.square(a * x + b * y + c * z - np.float32(row @ self.centre))
        return (np.sqrt(squares) - np.float32(1)) * np.float32(self.semi.min())

    def box_mm(self) -> Points:
        """Lowest and highest corner (2, 3) of the world-aligned box around the shape."""
        reach = np.sqrt(np.square(self.axes * self.semi[:, None]).sum(0))
        return np.stack([self.centre - reach, self.centre + reach])

    def mirrored(self) -> Ellipsoid:
        """Swap the patient's left and right."""
        return replace(self, centre=self.centre * _MIRROR, axes=self.axes * _MIRROR)

    def placed(self, warp: Warp, shift: Points, size: float) -> tuple[Ellipsoid, ...]:
        """Put the shape into a person, shifted by `shift` (mm) and enlarged by `size`."""
        stretch = np.linalg.norm(self.axes * warp.scale, axis=1)
        return (replace(self, centre=warp.moved(self.centre + shift), semi=self.semi * stretch * size),)


@dataclass(frozen=True)
class Segment:
    """A capsule from `start` to `end` (3,) with a radius at each end (2,), widened along x y z by `squash` (3,)."""

    start: Points
    end: Points
    radii: Points
    squash: Points

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Signed distance (negative inside) at world coordinates, in mm along directions whose squash is 1."""
        start = (self.start / self.squash).astype(np.float32)
        along = (self.end / self.squash).astype(np.float32) - start
        scaled = np.float32(1) / self.squash.astype(np.float32)
        px, py, pz = x * scaled[0] - start[0], y * scaled[1] - start[1], z * scaled[2] - start[2]
        share = (px * along[0] + py * along[1] + pz * along[2]) / max(np.float32(along @ along), np.float32(1e-6))
        np.clip(share, 0, 1, out=share)
        px, py, pz = px - share * along[0], py - share * along[1], pz - share * along[2]
        radius = np.float32(self.radii[0]) + share * np.float32(self.radii[1] - self.radii[0])
        return np.sqrt(px * px + py * py + pz * pz) - radius

    def box_mm(self) -> Points:
        """Lowest and highest corner (2, 3) of the world-aligned box around the shape."""
        ends, reach = np.stack([self.start, self.end]), self.radii[:, None] * self.squash
        return np.stack([(ends - reach).min(0), (ends + reach).max(0)])


@dataclass(frozen=True)
class Tube:
    """A chain of capsules through `points` (n, 3) with `radii` (n,) in mm: vessels, ribs, bowel, long bones."""

    points: Points
    radii: Points
    squash: Points

    def mirrored(self) -> Tube:
        """Swap the patient's left and right."""
        return replace(self, points=self.points * _MIRROR)

    def placed(self, warp: Warp, shift: Points, size: float) -> tuple[Segment, ...]:
        """Put the tube into a person, as the capsules it consists of."""
        points, radii = warp.moved(self.points + shift), self.radii * size * float(warp.scale.mean())
        return tuple(Segment(points[n], points[n + 1], radii[n : n + 2], self.squash) for n in range(len(points) - 1))


@dataclass(frozen=True)
class Loft:
    """Ellipses stacked along z: `levels` (n, 5) hold z, centre x, centre y, half width, half depth (mm), z rising.

    `planes` (m, 6) hold a point and a normal each; only the side the normal points to belongs to the shape.
    """

    levels: Points
    planes: Points

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Signed distance (negative inside) at world coordinates; zero exactly on the surface, about mm near it."""
        heights = self.levels[:, 0]
        cx, cy, rx, ry = (np.interp(z, heights, column).astype(np.float32) for column in self.levels[:, 1:].T)
        away = np.sqrt(np.square((x - cx) / rx) + np.square((y - cy) / ry))
        away = (away - np.float32(1)) * np.minimum(rx, ry)
        away = np.maximum(away, np.maximum(np.float32(heights[0]) - z, z - np.float32(heights[-1])))
        for plane in self.planes:
            a, b, c = (plane[3:] / np.linalg.norm(plane[3:])).astype(np.float32)
            px, py, pz = plane[:3].astype(np.float32)
            away = np.maximum(away, a * (px - x) + b * (py - y) + c * (pz - z))
        return away

    def box_mm(self) -> Points:
        """Lowest and highest corner (2, 3) of the world-aligned box around the shape, its planes left aside."""
        z, centre, reach = self.levels[:, :1], self.levels[:, 1:3], self.levels[:, 3:]
        return np.stack([np.hstack([centre - reach, z]).min(0), np.hstack([centre + reach, z]).max(0)])

    def mirrored(self) -> Loft:
        """Swap the patient's left and right."""
        return Loft(self.levels * np.array([1.0, -1.0, 1.0, 1.0, 1.0]), self.planes * np.tile(_MIRROR, 2))

    def placed(self, warp: Warp, shift: Points, size: float) -> tuple[Loft, ...]:
        """Put the shape into a person, shifted by `shift` (mm) and enlarged in x and y by `size`."""
        centres = warp.moved(self.levels[:, (1, 2, 0)] + shift)
        levels = np.hstack([centres[:, (2, 0, 1)], self.levels[:, 3:] * warp.scale[:2] * size])
        return (Loft(levels, np.hstack([warp.moved(self.planes[:, :3] + shift), self.planes[:, 3:] / warp.scale])),)


Shape = Ellipsoid | Segment | Loft
"""What has a distance; a Tube is a recipe for Segments."""
