"""Find out whether a scan is unlike all that a network was trained on: kind, intensities, spacing, extent, slices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from pipeline.inference.model import Model
from transforms.intensity import AIR_HU, FIXED_RANGES
from transforms.io.grid import (
    MAX_SHEAR_DEGREES,
    SHEAR_IN_ITK,
    PerAxis,
    along_world_axes,
    orientation,
    shear_degrees,
    voxel_edges_mm,
)

AXES_IN_WORDS = ("left-right", "back-front", "foot-head")
"""World axes x, y and z."""

FAR_SPACING = 2.0
"""A voxel edge this many times longer than the longest, or shorter than the shortest, of the training is warned of."""

FAR_EXTENT = 1.5
"""The same for the field of view, which is stretched to the network's grid."""

_SLICES_LOOKED_AT = 32
"""Of a channel, to find out whether it is a label map."""

_EQUAL_NEIGHBOURS = 0.5
"""Share of the voxels above the lowest value whose neighbour is equal: in label maps three quarters and more (of small
structures), in images that hold whole numbers a quarter at most."""


class ScanFacts(NamedTuple):
    """What is known of a scan once it is loaded, before preprocessing."""

    shape: tuple[int, ...]
    """Voxels (I, J, K)."""
    affine: np.ndarray
    """4×4, voxel index -> world mm (RAS+)."""
    modality: str
    """"CT" or "MR" as the file's header says it; "" where it does not."""
    ranges: tuple[tuple[float, float], ...]
    """Lowest and highest intensity of every channel."""
    like_labels: tuple[bool, ...]
    """Whether a channel looks like a label map: whole numbers from 0 on, in regions of one value each."""

    @classmethod
    def of(cls, image: MetaTensor) -> ScanFacts:
        """Measure a loaded image (C, I, J, K)."""
        ranges = tuple((float(low), float(high)) for low, high in map(torch.aminmax, image.as_tensor()))
        shape = tuple(int(n) for n in image.shape[1:])
        affine = np.asarray(image.affine, np.float64)
        like_labels = tuple(map(_is_like_labels, image.as_tensor()))
        return cls(shape, affine, str(image.meta.get("modality") or ""), ranges, like_labels)

    @property
    def lowest(self) -> float:
        """The lowest intensity of the first channel."""
        return self.ranges[0][0]

    @property
    def orientation(self) -> str:
        """Where the voxel axes run, as "RAS"."""
        return orientation(self.affine)

    @property
    def spacing_mm(self) -> PerAxis:
        """Edge lengths of a voxel along the world axes."""
        return along_world_axes(voxel_edges_mm(self.affine), self.orientation)

    @property
    def extent_mm(self) -> PerAxis:
        """Field of view along the world axes."""
        extent = np.multiply(voxel_edges_mm(self.affine), self.shape)
        return along_world_axes(extent.tolist(), self.orientation)


def warnings_about(scan: ScanFacts, model: Model) -> list[str]:
    """Say in a line each what is unusual about a scan for a network; nothing for most scans."""
    warnings = [*_constant_warnings(scan, model)]
    if scan.lowest < scan.ranges[0][1]:
        warnings += _kind_warnings(scan, model)
    warnings += _range_warnings(scan, model)
    warnings += _label_warnings(scan, model)
    if (degrees := shear_degrees(scan.affine)) > MAX_SHEAR_DEGREES:
        warnings.append(f"the scan's voxel axes are {degrees:.2g} degrees off right angles: {SHEAR_IN_ITK}")
    if model.scans is None:
        return warnings
    warnings += _size_warnings("voxels", scan.spacing_mm, model.scans.spacing_mm, FAR_SPACING)
    warnings += _size_warnings("a field of view", scan.extent_mm, model.scans.extent_mm, FAR_EXTENT)
    slices = {_slice_axis(code) for code in model.scans.orientations}
    if slices and _slice_axis(scan.orientation) not in slices:
        usual = " or ".join(sorted(slices))
        warnings.append(f"the scan's slices lie {_slice_axis(scan.orientation)}, those of the training {usual}")
    return warnings


def _size_warnings(what: str, found: PerAxis, trained: tuple[PerAxis, PerAxis], factor: float) -> list[str]:
    """Name the axes along which a size is far from all of the training, in one line; none where it is not."""
    sizes, usual = [], []
    for size, smallest, largest, axis in zip(found, *trained, AXES_IN_WORDS, strict=True):
        if not smallest / factor <= size <= largest * factor:
            sizes.append(f"{size:.4g} mm {axis}")
            usual.append(f"{smallest:.4g} to {largest:.4g}" if largest > smallest else f"{largest:.4g}")
    return [f"the scan has {what} of {', '.join(sizes)}, those of the training {', '.join(usual)} mm"] if sizes else []


def _slice_axis(orientation: str) -> str:
    """The world axis along which slices k lie, in words."""
    return AXES_IN_WORDS[along_world_axes((0, 0, 1), orientation).index(1)]


def _kind_warnings(scan: ScanFacts, model: Model) -> list[str]:
    """Warn of an MR network on a CT, or the other way round: by the headers where they say it, else by the values."""
    expected = _trained_kind(model)
    if not expected:
        return []
    if scan.modality in ("CT", "MR"):
        found = scan.modality
        because = "its header says so"
    elif scan.lowest < AIR_HU:
        found = "CT"
        because = f"it has values down to {scan.lowest:g}, as air in HU"
    elif model.scans is not None and model.scans.darkest[1] < AIR_HU:
        found = "no CT in HU"
        because = (
            f"its lowest value is {scan.lowest:g}, that of the training's scans {model.scans.darkest[1]:g} or less"
        )
    else:
        return []
    return [] if found == expected else [f"the scan is {found} ({because}), the network was trained on {expected}"]


def _range_warnings(scan: ScanFacts, model: Model) -> Iterator[str]:
    """Warn of masks and probabilities in other numbers than those of the training, as 0 and 1 for 0 and 255."""
    for name, way, _, (lowest, highest) in _channels(scan, model):
        end = FIXED_RANGES[way][1] if way in FIXED_RANGES else 0
        if end and (lowest < 0 or highest > end or 0 < highest <= 1 < end):
            values = f"values from {lowest:g} to {highest:g}"
            yield f"channel {name} of the scan has {values}, that of the training from 0 to {end:g}"


def _constant_warnings(scan: ScanFacts, model: Model) -> Iterator[str]:
    """Warn of channels without any contrast; a mask may be empty."""
    for name, way, _, (lowest, highest) in _channels(scan, model):
        if not lowest < highest and way not in FIXED_RANGES:
            yield f"every voxel of {_called(name, scan)} is {lowest:g}: nothing can be seen in it"


def _label_warnings(scan: ScanFacts, model: Model) -> Iterator[str]:
    """Warn of label maps in the place of scans; channels that were masks in the training may look like them."""
    for name, way, is_like, (_, highest) in _channels(scan, model):
        if is_like and way not in FIXED_RANGES:
            yield (
                f"{_called(name, scan)} looks like a label map (whole numbers from 0 to {highest:g}, in regions of one "
                "value): was a segmentation taken for a scan?"
            )


def _called(channel_name: str, scan: ScanFacts) -> str:
    return "the scan" if len(scan.ranges) == 1 else f"channel {channel_name} of the scan"


def _channels(scan: ScanFacts, model: Model) -> Iterator[tuple[str, str, bool, tuple[float, float]]]:
    """Of each channel its name, how its intensities are scaled, whether it is like labels, and its range."""
    return zip(model.channel_names, model.intensities, scan.like_labels, scan.ranges, strict=True)


def _is_like_labels(channel: torch.Tensor) -> bool:
    """Say whether a channel (I, J, K) looks like a label map: whole numbers from 0 on, in regions of one value."""
    some = channel[..., :: max(1, channel.shape[-1] // _SLICES_LOOKED_AT)]
    some = some if bool(some.any()) else channel  # a small structure may lie in other slices
    first, second = some[:-1], some[1:]
    is_structure = first > 0
    if bool(some.min() != 0) or not bool(is_structure.any()) or not bool((some == some.round()).all()):
        return False
    return float((first == second)[is_structure].float().mean()) > _EQUAL_NEIGHBOURS


def _trained_kind(model: Model) -> str:
    """ "CT" or "MR" by the training's headers, intensities or scaling; "" where these do not tell."""
    if model.scans is not None and len(model.scans.modalities) == 1:
        return model.scans.modalities[0]
    first = model.intensities[0]
    if model.scans is not None:
        lowest, highest = model.scans.darkest
        if first == "ct" and highest < AIR_HU:
            return "CT"
        return "MR" if first in ("mr", "zscore") and lowest > AIR_HU else ""
    return {"ct": "CT", "mr": "MR"}.get(first, "")
