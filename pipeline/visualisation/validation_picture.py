"""The picture of one validation case: its label above, the network's segmentation below, on the same three slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.visualisation.class_colours import class_colours
from pipeline.visualisation.display_window import DisplayWindow, display_window
from pipeline.visualisation.planes import Plane, cut_planes, shown_classes


@dataclass(frozen=True, eq=False)
class ValidationSample:
    """A validation case as the network saw it, on the CPU."""

    case: str
    image: torch.Tensor
    """(C, I, J, K), scaled for the network; the first channel is drawn."""
    label: torch.Tensor
    """(I, J, K) class indices; what is beyond the classes is ignored by the loss, and drawn white."""
    segmentation: torch.Tensor
    """(I, J, K) class indices."""
    affine: NDArray[np.float64]
    """4×4 of the network's grid, voxel index -> world mm (RAS+)."""


def validation_picture(sample: ValidationSample, class_names: Sequence[str], epoch: int) -> NDArray[np.uint8]:
    """Draw a case of a validation as (height, width, 3) RGB, 0…255."""
    image = sample.image[0].float().numpy()
    label, segmentation = (volume.to(torch.int32).numpy() for volume in (sample.label, sample.segmentation))
    window = display_window(image, "scaled")
    planes = cut_planes(image, label, sample.affine, window.low, beside=segmentation)
    found = [replace(plane, label=plane.beside) for plane in planes if plane.beside is not None]
    above = _drawn(f"label   ·   case {sample.case}", planes, class_names, window, epoch)
    below = _drawn("prediction", found, class_names, window, epoch)
    width = max(above.shape[1], below.shape[1])
    return np.concatenate([_widened(above, width), _widened(below, width)])


def _drawn(
    title: str, planes: Sequence[Plane], class_names: Sequence[str], window: DisplayWindow, epoch: int
) -> NDArray[np.uint8]:
    # imported where a picture is due: matplotlib takes as long to import as a small training to start
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from pipeline.visualisation.plane_figure import LegendEntry, draw_planes

    colours = class_colours(class_names)
    legend = []
    for index in shown_classes(planes):
        if index < len(colours):
            red, green, blue = (int(part) for part in colours[index])
            legend.append(LegendEntry(class_names[index], (red, green, blue)))
    figure = draw_planes(
        planes,
        title=title,
        subtitle=f"after epoch {epoch} (counted from 0), on the network's grid",
        legend=legend,
        colours=colours,
        window=(window.low, window.high),
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _widened(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
