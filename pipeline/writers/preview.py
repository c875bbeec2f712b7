"""Draw a segmented case: three planes of the scan's own voxels through its structures, with names and volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.files.atomic import write_atomically
from pipeline.visualisation.display_window import display_window
from pipeline.visualisation.planes import cut_planes, shown_classes
from pipeline.writers.segmentation import Segmentation
from transforms.io.grid import orientation, voxel_edges_mm
from transforms.io.load import read_volume


def write_preview(segmentation: Segmentation, path: Path, *, is_ct: bool = False) -> None:
    """Write the axial, coronal and sagittal plane that show most of the structures as PNG.

    Args:
        segmentation: on its source's voxels; the source is read again.
        path: its stem is the case's name in the picture.
        is_ct: whether the source holds HU; a format or voxels that say so need not be told.

    Raises:
        FileError: the disk refuses. VolumeError: the source can no longer be read.
    """
    # imported where a picture is asked for: matplotlib takes as long to import as a small scan to segment
    from pipeline.visualisation.plane_figure import LegendEntry, draw_planes

    volume = read_volume(segmentation.source)
    image = volume.array if volume.array.ndim == 3 else volume.array[..., segmentation.frame]
    window = display_window(image, "CT" if is_ct else volume.geometry.modality)
    planes = cut_planes(image, segmentation.array, segmentation.affine, window.low)
    shown = sorted(shown_classes(planes), key=lambda index: -segmentation.voxels[index])
    volumes_ml = segmentation.voxels * segmentation.voxel_ml
    names, colours = segmentation.class_names, segmentation.colours
    not_shown = int(np.count_nonzero(segmentation.voxels[1:])) - len(shown)
    edges = " × ".join(f"{edge:.3g}" for edge in voxel_edges_mm(segmentation.affine))
    facts = [window.name, f"voxels {edges} mm, {orientation(segmentation.affine)}"]
    facts += [f"{not_shown} structures not shown"] if not_shown > 0 else []
    figure = draw_planes(
        planes,
        title=path.stem,
        subtitle=" · ".join(facts),
        legend=[LegendEntry(names[index], colours[index], float(volumes_ml[index])) for index in shown],
        colours=colours,
        window=(window.low, window.high),
    )
    write_atomically(path, lambda stream: figure.savefig(stream, format="png"))
