"""Cut the three planes of a volume that show most of its structures, on its own voxels; opens no file.

A plane is turned as radiologists look at it: from the feet (axial), from the front (coronal) and from the patient's
left (sagittal); so the patient's right, or front, is on the picture's left, and the head, or the front, at its top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, Num
from numpy.typing import NDArray

from transforms.io.grid import Affine, along_world_axes, orientation, voxel_edges_mm

_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Of the world axes x, y, z: where they come from and where they run to."""

_MOST_SAMPLES = 128
"""Voxels along an axis that are looked at to find the best slices."""

_MARGIN_MM = 8.0
"""What is kept around the body and around structures."""

_SMALL = 0.3
"""Structures that span less than this share of a plane both ways are drawn larger: with as much again around them."""

_LEAST_MM = 40.0
"""Of a plane that is cut down to its structures: what is kept at least."""


class PlaneKind(NamedTuple):
    """One of the three directions to look in."""

    name: str
    axis: int
    """World axis that it stands on: 0 left-right, 1 back-front, 2 foot-head."""
    across: int
    """World axis from the picture's right to its left, or from left to right."""
    up: int
    """World axis from the picture's bottom to its top."""


AXIAL, CORONAL, SAGITTAL = (
    PlaneKind("axial", 2, 0, 1),
    PlaneKind("coronal", 1, 0, 2),
    PlaneKind("sagittal", 0, 1, 2),
)
KINDS = (AXIAL, CORONAL, SAGITTAL)


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice, turned for looking at."""

    kind: PlaneKind
    image: NDArray
    """(H, W) intensities; the first row is the top."""
    label: NDArray[np.integer]
    """(H, W) class indices."""
    pixel_mm: tuple[float, float]
    """Height and width of a pixel."""
    position_mm: float
    """World coordinate (RAS+) of the slice's centre along the axis that the plane stands on."""
    beside: NDArray[np.integer] | None = None
    """(H, W) class indices of another segmentation of the same slice."""

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """Where left, right, top and bottom of the picture lie in the patient."""
        (left_end, right_end), (bottom, top) = _ENDS[self.kind.across], _ENDS[self.kind.up]
        return right_end, left_end, top, bottom  # both the right and the front are on the picture's left

    @property
    def position(self) -> str:
        """Position in words: "S 12.5 mm" is 12.5 mm towards the head from the world's origin."""
        return f"{_ENDS[self.kind.axis][self.position_mm >= 0]} {abs(self.position_mm):.1f} mm"

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the picture."""
        return self.image.shape[0] * self.pixel_mm[0], self.image.shape[1] * self.pixel_mm[1]

    def part(self, rows: slice, columns: slice) -> Plane:
        """A part of the picture."""
        beside = None if self.beside is None else self.beside[rows, columns]
        return replace(self, image=self.image[rows, columns], label=self.label[rows, columns], beside=beside)


def cut_planes(
    image: Num[np.ndarray, "i j k"],
    label: Integer[np.ndarray, "i j k"],
    affine: Affine,
    darkest: float,
    *,
    beside: Integer[np.ndarray, "i j k"] | None = None,
) -> tuple[Plane, Plane, Plane]:
    """Cut the axial, coronal and sagittal plane that show most of the structures; see `best_slice`.

    Each is cut to the body and the structures with a margin, and to small structures with as much again around them.

    Args:
        image: intensities.
        label: class indices, 0 for the background.
        affine: of both, voxel index -> world mm (RAS+).
        darkest: intensity up to which a pixel is drawn black, and counts as outside of the body.
        beside: another segmentation, shown on the same slices.
    """
    planes = (_cut(image, label, beside, affine, kind) for kind in KINDS)
    axial, coronal, sagittal = (plane.part(*_seen(plane, darkest)) for plane in planes)
    return axial, coronal, sagittal


def best_slice(label: Integer[np.ndarray, "i j k"], axis: int) -> int:
    """The slice across an axis that shows most: each structure counts with its share of its largest cross-section.

    For one structure that is where its cross-section is largest; the middle of a volume without any.

    >>> ball = np.zeros((5, 5, 9), np.uint8)
    >>> ball[1:4, 1:4, 6], ball[2, 2, 5:8] = 1, 1
    >>> best_slice(ball, 2)
    6
    """
    steps = [max(1, -(-n // _MOST_SAMPLES)) for n in label.shape]
    steps[axis] = 1
    few = np.moveaxis(label[tuple(slice(step // 2, None, step) for step in steps)], axis, 0)
    if not few.any():  # nothing, or what lies between the samples
        few = np.moveaxis(label, axis, 0)
    n_classes = int(few.max()) + 1
    areas = np.stack([np.bincount(plane.ravel(), minlength=n_classes)[1:] for plane in few]).astype(float)
    if not areas.any():
        return label.shape[axis] // 2
    shown = (areas / np.maximum(areas.max(0), 1)).sum(1)
    best = np.flatnonzero(shown >= shown.max() - 1e-9)
    return int(best[len(best) // 2])


def _cut(image: NDArray, label: NDArray, beside: NDArray | None, affine: NDArray, kind: PlaneKind) -> Plane:
    towards = orientation(affine)
    axes = [int(axis) for axis in along_world_axes((0, 1, 2), towards)]  # voxel axis along each world axis
    edges_mm = voxel_edges_mm(affine)
    axis = axes[kind.axis]
    index = best_slice(label, axis)
    centre = [(n - 1) / 2 for n in label.shape]
    centre[axis] = index
    position = (affine @ [*centre, 1.0])[kind.axis]

    def turned(volume: NDArray) -> NDArray:
        rows_first = axes[kind.up] < axes[kind.across]
        plane = np.moveaxis(volume, axis, 0)[index]  # a view: numpy's take would copy the volume
        plane = plane if rows_first else plane.T
        # rows run down from the top end, columns from the right, or front, end of their axes
        flips = [towards[axes[world]] == _ENDS[world][1] for world in (kind.up, kind.across)]
        return plane[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]

    pixel_mm = (edges_mm[axes[kind.up]], edges_mm[axes[kind.across]])
    other = None if beside is None else turned(beside)
    return Plane(kind, turned(image), turned(label), pixel_mm, float(position), other)


def _seen(plane: Plane, darkest: float) -> tuple[slice, slice]:
    """Rows and columns of the body and of the structures, or of small structures alone, with their surroundings."""
    structures = plane.label > 0 if plane.beside is None else (plane.label > 0) | (plane.beside > 0)
    body = structures | (np.nan_to_num(plane.image.astype(np.float64), nan=darkest) > darkest)
    whole = [_extent(np.asarray(body.any(1 - axis))) for axis in (0, 1)]
    found = [_extent(np.asarray(structures.any(1 - axis))) for axis in (0, 1)]
    spans = [(b - a) / max(1, d - c) for (a, b), (c, d) in zip(found, whole, strict=True)]
    parts = []
    for axis, step_mm in enumerate(plane.pixel_mm):
        (first, last), (least, most) = whole[axis], (0, body.shape[axis])
        margin = _MARGIN_MM
        if structures.any() and max(spans) < _SMALL:
            (least, most), (first, last) = whole[axis], found[axis]
            margin = max((last - first) * step_mm, _LEAST_MM / 2)
        extra = int(np.ceil(margin / step_mm))
        parts.append(slice(max(least, first - extra), min(most, last + extra)))
    return parts[0], parts[1]


def _extent(used: NDArray[np.bool_]) -> tuple[int, int]:
    """First and behind the last index that is used; all of them where none is."""
    indices = np.flatnonzero(used)
    return (int(indices[0]), int(indices[-1]) + 1) if indices.size else (0, len(used))


def shown_classes(planes: Sequence[Plane]) -> list[int]:
    """Indices of the classes that some of the planes show, background left out."""
    return sorted({int(index) for plane in planes for index in np.unique(plane.label)} - {0})
