"""The picture of one validation case: its label above, the network's segmentation below, on the same three slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.visualisation.class_colours import class_colours
from pipeline.visualisation.display_window import display_window
from pipeline.visualisation.planes import KINDS, Plane, cut_planes, shown_classes


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


@dataclass(frozen=True, eq=False)
class ValidationSlices:
    """The slices of a validation case that are drawn: little enough to be kept."""

    case: str
    planes: tuple[Plane, ...]
    """With the network's segmentation beside the label."""
    window: tuple[float, float]
    """Intensities that are drawn black and white."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain containers and tensors, which torch.load reads with weights_only=True."""
        planes = [
            {
                "kind": plane.kind.name,
                "pixel_mm": list(plane.pixel_mm),
                "position_mm": plane.position_mm,
                "image": torch.from_numpy(plane.image),
                "label": torch.from_numpy(plane.label),
                "beside": torch.from_numpy(plane.beside),
            }
            for plane in self.planes
        ]
        return {"case": self.case, "window": list(self.window), "planes": planes}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ValidationSlices:
        """Take what `to_dict` gave. Raises an error of some kind for anything else."""
        kinds = {kind.name: kind for kind in KINDS}
        planes = []
        for plane in document["planes"]:
            image, label, beside = (plane[name].numpy() for name in ("image", "label", "beside"))
            height_mm, width_mm = map(float, plane["pixel_mm"])
            kind, position_mm = kinds[plane["kind"]], float(plane["position_mm"])
            planes.append(Plane(kind, image, label, (height_mm, width_mm), position_mm, beside))
        low, high = map(float, document["window"])
        return cls(str(document["case"]), tuple(planes), (low, high))


def cut_sample(sample: ValidationSample) -> ValidationSlices:
    """Cut the slices that a picture of a case shows."""
    image = sample.image[0].float().numpy()
    label, segmentation = (volume.to(torch.int32).numpy() for volume in (sample.label, sample.segmentation))
    window = display_window(image, "scaled")
    planes = cut_planes(image, label, sample.affine, window.low, beside=segmentation)
    # copies: the planes are views that would keep the whole volumes
    copies = (
        replace(plane, image=plane.image.copy(), label=plane.label.copy(), beside=np.array(plane.beside))
        for plane in planes
    )
    return ValidationSlices(sample.case, tuple(copies), (float(window.low), float(window.high)))


def validation_picture(slices: ValidationSlices, class_names: Sequence[str], epoch: int) -> NDArray[np.uint8]:
    """Draw a case of a validation as (height, width, 3) RGB, 0…255."""
    found = [replace(plane, label=plane.beside) for plane in slices.planes if plane.beside is not None]
    above = _drawn(f"label   ·   case {slices.case}", slices.planes, class_names, slices.window, epoch)
    below = _drawn("prediction", found, class_names, slices.window, epoch)
    width = max(above.shape[1], below.shape[1])
    return np.concatenate([_widened(above, width), _widened(below, width)])


def _drawn(
    title: str, planes: Sequence[Plane], class_names: Sequence[str], window: tuple[float, float], epoch: int
) -> NDArray[np.uint8]:
    # imported where a picture is due: matplotlib takes as long to import as a small training to start
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from pipeline.visualisation.plane_figure import LegendEntry, draw_planes

    colours = class_colours(class_names)
    shown = [index for index in shown_classes(planes) if index < len(colours)]
    figure = draw_planes(
        planes,
        title=title,
        subtitle=f"after epoch {epoch} (counted from 0), on the network's grid",
        legend=[LegendEntry(class_names[index], colours[index]) for index in shown],
        colours=colours,
        window=window,
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _widened(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
