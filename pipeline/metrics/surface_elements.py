"""Find the surface elements of all classes of a label map: voxels, or points between voxels with their area.

Two definitions, which give different scores:

- "voxels": the voxels of a class that have a face neighbour of another class, each counting 1 (monai.metrics with its
  default use_subvoxels=False).
- "area": the corners between eight voxels of which some but not all are of the class, each counting the area in mm²
  that marching cubes gives its eight voxels (Nikolov et al. 2018, arXiv:1809.04430; DeepMind's surface-distance;
  MONAI's use_subvoxels=True). The table of areas is MONAI's.

Everything outside a map is background, so that a class cut off by the volume's rim is closed there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from monai.metrics.utils import create_table_neighbour_code_to_surface_area

SurfaceKind = Literal["voxels", "area"]


class Surface(NamedTuple):
    """The surface elements of all classes of one map.

    A position is an index into the flattened grid of the map; for a point between voxels, that of the voxel before it
    along all three axes. Where several classes meet, one position holds an element of each.
    """

    positions: Int[np.ndarray, " n"]
    classes: Integer[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    """What each element counts: 1, or its area in mm²."""
    holds: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """holds(positions, classes): where this surface has an element of that class at that position."""


def find_surface(
    labels: Integer[np.ndarray, "i j k"], kind: SurfaceKind, spacing_mm: Sequence[float | int] | Float[np.ndarray, " 3"]
) -> Surface:
    """Find the surface elements of every class but the background, 0.

    Args:
        labels: class indices; the outermost voxels on all faces of the grid have to be background.
        kind: the definition, see the top of this file.
        spacing_mm: the voxel's size along i, j, k, in mm; decides the areas alone.

    >>> labels = np.zeros((5, 5, 5), dtype=np.uint8)
    >>> labels[1:4, 1:4, 1:4] = 1
    >>> len(find_surface(labels, "voxels", (1, 1, 1)).positions)  # 27 voxels, one of them inside
    26
    >>> round(find_surface(labels, "area", (1, 1, 1)).weights.sum())  # marching cubes cuts edges and corners off
    43
    """
    return _voxels(labels) if kind == "voxels" else _corners(labels, spacing_mm)


def _voxels(labels: Integer[np.ndarray, "i j k"]) -> Surface:
    inner = np.ones(labels.shape, dtype=bool)
    for axis in range(3):
        along, inside = np.moveaxis(labels, axis, 0), np.moveaxis(inner, axis, 0)
        same = along[1:] == along[:-1]
        inside[1:] &= same
        inside[:-1] &= same
    surface = np.where(inner, 0, labels).reshape(-1)
    positions = np.flatnonzero(surface)
    weights = np.ones(len(positions))
    return Surface(positions, surface[positions], weights, lambda at, classes: surface[at] == classes)


def _corners(labels: Integer[np.ndarray, "i j k"], spacing_mm: Sequence[float | int] | np.ndarray) -> Surface:
    corners = np.flatnonzero(_mixed(labels))
    around, flat = _voxels_around(labels.shape), labels.reshape(-1)
    # Row 0 is a corner without any class: that of all positions that are not mixed.
    rows = np.zeros((len(corners) + 1, 8), dtype=labels.dtype)
    for v in range(8):
        rows[1:, v] = flat[corners + around[v]]
    row_at = np.zeros(flat.size, dtype=np.int32)  # memory only where something is written
    row_at[corners] = np.arange(1, len(corners) + 1)
    found = [_elements(rows[1:], v) for v in range(8)]
    areas = area_of_code(spacing_mm)
    return Surface(
        positions=np.concatenate([corners[members] for members, _ in found]),
        classes=np.concatenate([rows[1 + members, v] for v, (members, _) in enumerate(found)]),
        weights=np.concatenate([areas[codes] for _, codes in found]),
        holds=lambda at, classes: (rows[row_at[at]] == classes[:, None]).any(1),
    )


def _mixed(labels: Integer[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """Where the eight voxels from here on are not all of one class; False in the last planes."""
    lowest, highest = labels, labels
    for axis in range(3):
        ahead, here = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], here[axis] = slice(1, None), slice(None, -1)
        lowest = np.minimum(lowest[tuple(here)], lowest[tuple(ahead)])
        highest = np.maximum(highest[tuple(here)], highest[tuple(ahead)])
    mixed = np.zeros(labels.shape, dtype=bool)
    np.not_equal(lowest, highest, out=mixed[:-1, :-1, :-1])
    return mixed


def _voxels_around(shape: tuple[int, ...]) -> Int[np.ndarray, " 8"]:
    """The eight voxels around a corner as offsets into the flattened grid, in the order of the code's bits."""
    steps = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    return steps @ np.array([shape[1] * shape[2], shape[2], 1])


def _elements(rows: Integer[np.ndarray, "n 8"], v: int) -> tuple[Int[np.ndarray, " m"], Integer[np.ndarray, " m"]]:
    """The corners whose voxel v is the first one of its class there, and the code of that class at each."""
    # packbits writes the first voxel into the highest bit, as the kernel of the published table has it.
    codes = np.packbits(rows == rows[:, v : v + 1], axis=1)[:, 0]
    members = np.flatnonzero((codes < 1 << (8 - v)) & (rows[:, v] != 0))
    return members, codes[members]


def area_of_code(spacing_mm: Sequence[float | int] | np.ndarray) -> Float[np.ndarray, " 256"]:
    """Area in mm² of the surface between eight voxels, by the bits that say which of them are inside.

    The highest bit is voxel (0, 0, 0), the lowest (1, 1, 1); spacing_mm is the voxel's size along i, j, k.

    >>> float(area_of_code((1, 2, 3))[0b11110000])  # the four voxels before: a wall across the first axis
    6.0
    """
    table, _ = create_table_neighbour_code_to_surface_area([float(mm) for mm in spacing_mm])
    return table.double().numpy()
