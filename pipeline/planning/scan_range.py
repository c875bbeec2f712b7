"""Measure which scans a network was trained on, so that prediction can tell a scan that is far from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.checks.voxel_statistics import ImageStatistics
from pipeline.files.json_files import plain
from transforms.io.grid import PerAxis


@dataclass(frozen=True)
class ScanRange:
    """The smallest and largest scans of a training; triples run along the world axes left-right, back-front, foot-head.

    Of the first image channel of the training cases.
    """

    spacing_mm: tuple[PerAxis, PerAxis]
    """Smallest and largest edge length of a voxel."""
    extent_mm: tuple[PerAxis, PerAxis]
    """Smallest and largest field of view."""
    orientations: tuple[str, ...]
    """Where the voxel axes run, as "RAS" or "LPS"; sorted."""
    modalities: tuple[str, ...]
    """What the DICOM headers say, as "CT" or "MR"; empty for other formats. Sorted."""
    darkest: tuple[float, float]
    """Lowest and highest of the scans' smallest intensities."""

    def to_document(self) -> dict[str, Any]:
        """Return it as plain lists and numbers, as a checkpoint holds it."""
        return plain(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ScanRange:
        """Take what `to_document` made. Raises ValueError, KeyError or TypeError for anything else."""
        return cls(
            spacing_mm=_two_rows(document["spacing_mm"]),
            extent_mm=_two_rows(document["extent_mm"]),
            orientations=tuple(_axis_code(code) for code in document["orientations"]),
            modalities=tuple(str(modality) for modality in document["modalities"]),
            darkest=(float(document["darkest"][0]), float(document["darkest"][1])),
        )


def scan_range(images: Sequence[ImageStatistics]) -> ScanRange | None:
    """Sum up the scans of a training; None for none."""
    if not images:
        return None
    spacings = np.array([image.world_spacing_mm for image in images])
    sizes = np.array([image.world_size for image in images])
    darkest = [image.minimum for image in images if np.isfinite(image.minimum)] or [0.0]
    return ScanRange(
        spacing_mm=_smallest_and_largest(spacings),
        extent_mm=_smallest_and_largest(spacings * sizes),
        orientations=tuple(sorted({image.orientation for image in images})),
        modalities=tuple(sorted({image.modality for image in images if image.modality})),
        darkest=(min(darkest), max(darkest)),
    )


def _smallest_and_largest(rows: np.ndarray) -> tuple[PerAxis, PerAxis]:
    return _two_rows([rows.min(0).tolist(), rows.max(0).tolist()])


def _axis_code(code: str) -> str:
    if len(code) != 3 or not all(set(code) & set(pair) for pair in ("RL", "AP", "SI")):
        raise ValueError(f"expected an axis code such as RAS, found {code!r}")
    return code


def _two_rows(rows: Sequence[Sequence[float]]) -> tuple[PerAxis, PerAxis]:
    (a, b, c), (x, y, z) = rows
    return (float(a), float(b), float(c)), (float(x), float(y), float(z))
