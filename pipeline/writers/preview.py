"""Draw a segmented case: three planes through the middle of the structures, overlaid in the class colours.

The planes lie on the network's RAS grid, and the label map is looked up there through world coordinates: a segmentation
that is shifted, flipped or swapped does not fit the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files.atomic import write_atomically
from pipeline.visualisation.overlay import overlay_slice
from pipeline.writers.segmentation import Segmentation
from transforms.io.grid import voxel_edges_mm
from transforms.resize import voxel_map

PLANES = (("sagittal", 0), ("coronal", 1), ("axial", 2))
HEIGHT_INCHES = 5.0


class PreviewImage(NamedTuple):
    """The grey picture below the overlay."""

    array: NDArray
    """(I, J, K) intensities; axes run to the patient's right, front and head (RAS)."""
    affine: NDArray[np.float64]
    """4×4, voxel index -> world mm (RAS+)."""


def write_preview(segmentation: Segmentation, image: PreviewImage, path: Path) -> None:
    """Write sagittal, coronal and axial plane side by side as PNG; the patient's right is on the left.

    Raises FileError if the disk refuses.
    """
    # imported where a picture is asked for: matplotlib takes as long to import as a small scan to segment
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = _on_grid(segmentation, image.array.shape, image.affine)
    inside = np.nonzero(found)
    centre = [int(np.median(index)) if index.size else n // 2 for index, n in zip(inside, found.shape, strict=True)]
    spacing_mm = voxel_edges_mm(image.affine)
    figure = Figure(figsize=(3 * HEIGHT_INCHES, HEIGHT_INCHES), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    for column, (title, axis) in enumerate(PLANES, start=1):
        across, up = (a for a in range(3) if a != axis)
        axes = figure.add_subplot(1, 3, column)
        plane = overlay_slice(
            image.array.take(centre[axis], axis), found.take(centre[axis], axis), segmentation.colours
        )
        # Rows from head (or front) down; patient's right on the left of the picture, as radiologists look at it.
        picture = plane.swapaxes(0, 1)[::-1]
        axes.imshow(picture[:, ::-1] if across == 0 else picture, aspect=spacing_mm[up] / spacing_mm[across])
        axes.set_title(title, color="white")
        axes.text(0.01, 0.5, "R" if across == 0 else "P", color="white", transform=axes.transAxes)
        axes.set_axis_off()
    write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=100))


def _on_grid(segmentation: Segmentation, shape: tuple[int, ...], affine: NDArray) -> NDArray:
    """The nearest label at each voxel of another grid; background outside."""
    matrix = voxel_map(affine, segmentation.affine)
    found = np.zeros(shape, segmentation.array.dtype)
    j, k = np.meshgrid(*(np.arange(n) for n in shape[1:]), indexing="ij")
    for i in range(shape[0]):
        index = np.stack([np.full_like(j, i), j, k, np.ones_like(j)])
        nearest = np.rint(np.tensordot(matrix[:3], index, 1)).astype(int)
        limits = np.array(segmentation.array.shape)[:, None, None]
        inside = ((nearest >= 0) & (nearest < limits)).all(0)
        found[i][inside] = segmentation.array[tuple(nearest[:, inside])]
    return found
