"""Cut a case to the surroundings of one structure, small enough to be looked at inside a page."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.console.text import printable
from pipeline.evaluation.scored_case import ScoredCase
from pipeline.visualisation.display_window import display_window
from pipeline.visualisation.overlay import grey_values
from transforms.io.grid import along_world_axes, orientation, voxel_edges_mm

MARGIN_MM = 15.0
"""What is shown around the structure."""

MOST_VOXELS = 1_200_000
"""Of one case: six of them, packed, keep a page below 15 MB. A larger part is shown in every second voxel or fewer."""


def viewer_data(volumes: ScoredCase, focus: int, colours: NDArray[np.uint8], names: Sequence[str]) -> dict[str, Any]:
    """What the page's viewer shows of a case: bytes with the patient's right, front and head last along their axes.

    Args:
        volumes: the case.
        focus: index of the class that is shown with `MARGIN_MM` around it, in label or prediction.
        colours: (n_classes, 3) from `class_colours`.
        names: of the classes, background first.
    """
    towards_ras = io_orientation(volumes.affine)

    def turned(array: NDArray) -> NDArray:
        return np.asarray(apply_orientation(array, towards_ras))

    edges_mm = np.array(along_world_axes(voxel_edges_mm(volumes.affine), orientation(volumes.affine)))
    label, prediction = turned(volumes.label), turned(volumes.prediction)
    structure = (label == focus) | (prediction == focus)
    box = _box(structure, edges_mm)
    step = _steps(tuple(part.stop - part.start for part in box), edges_mm)
    cut = tuple(slice(part.start, part.stop, n) for part, n in zip(box, step, strict=True))
    parts: dict[str, Any] = {
        "label": _packed(label[cut].astype(np.uint16)),
        "prediction": _packed(prediction[cut].astype(np.uint16)),
    }
    words = "no image was found"
    if volumes.image is not None:
        window = display_window(volumes.image)
        grey = grey_values(turned(volumes.image)[cut], (window.low, window.high))
        parts["image"] = _packed((255 * grey).round().astype(np.uint8))
        words = window.name
    present = sorted({int(c) for array in (label[cut], prediction[cut]) for c in np.unique(array)} - {0})
    every = "" if set(step) == {1} else f", every {' × '.join(map(str, step))}th voxel"
    return parts | {
        "shape": [len(range(*part.indices(n))) for part, n in zip(cut, label.shape, strict=True)],
        "edges_mm": [float(edge * n) for edge, n in zip(edges_mm, step, strict=True)],
        "focus": focus,
        "start": _start(structure[cut]),
        "about": f"{words}; voxels {' × '.join(f'{edge:.3g}' for edge in edges_mm)} mm{every}",
        "classes": [[c, printable(names[c]), [int(part) for part in colours[c]]] for c in present],
    }


def _start(mask: NDArray[np.bool_]) -> list[int]:
    """The voxel of a structure next to its middle, which may lie beside it."""
    inside = np.argwhere(mask)
    if not len(inside):
        return [n // 2 for n in mask.shape]
    middle = np.median(inside, axis=0).astype(int)
    return [int(index) for index in inside[np.abs(inside - middle).sum(axis=1).argmin()]]


def _box(mask: NDArray[np.bool_], edges_mm: NDArray[np.float64]) -> list[slice]:
    """The structure's bounding box with its margin; all of a volume without it."""
    found = ndimage.find_objects(mask.view(np.uint8), 1)[0] or tuple(slice(0, n) for n in mask.shape)
    extra = np.ceil(MARGIN_MM / edges_mm).astype(int).tolist()
    parts = zip(found, extra, mask.shape, strict=True)
    return [slice(max(0, part.start - more), min(n, part.stop + more)) for part, more, n in parts]


def _steps(shape: tuple[int, ...], edges_mm: NDArray[np.float64]) -> list[int]:
    """Every how many voxels are taken along each axis: the finest axes are thinned out first."""
    steps = [1, 1, 1]
    while np.prod([-(-n // step) for n, step in zip(shape, steps, strict=True)]) > MOST_VOXELS:
        finest = min(edge * step for edge, step in zip(edges_mm, steps, strict=True))
        steps = [step + 1 if edge * step < 1.3 * finest else step for edge, step in zip(edges_mm, steps, strict=True)]
    return steps


def _packed(array: NDArray) -> str:
    """Bytes with the first index fastest, little-endian, packed and as text."""
    stored = array.astype(array.dtype.newbyteorder("<")).tobytes(order="F")
    return base64.b64encode(gzip.compress(stored, 6, mtime=0)).decode("ascii")
