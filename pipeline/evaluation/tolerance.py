"""Choose the distance up to which two surfaces agree by the size of the voxels, and say where one tells nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from jaxtyping import Float

from pipeline.console.text import some_of
from pipeline.datasets.dataset import Label
from pipeline.evaluation.label_maps import is_seg
from transforms.io.errors import VolumeError
from transforms.io.load import read_geometry

USUAL_MM = 2.0
"""For the body of a person in CT and MR; in a mouse it reaches through most structures."""

_MOST_VOXELS = 4
"""Voxels that a tolerance may span: over more of them, surfaces that the scans show apart count as equal."""

_VOXELS = 2
"""The default where USUAL_MM spans more: as much as 2 mm are of voxels of 1 mm."""

_MOST_READ = 100
"""Headers that are read, spread over all cases."""

_ALL_AGREE, _DIFFERENT = 0.9995, 0.95
"""A surface Dice that is as good as 1, and a mean Dice below which segmentations differ."""


def default_tolerance_mm(spacings_mm: Iterable[Sequence[float]]) -> float:
    """Two voxels where these are much finer than 2 mm, else 2 mm; of a voxel the longest edge, of scans the median.

    >>> default_tolerance_mm([(0.15, 0.15, 0.15)]), default_tolerance_mm([(0.4, 0.4, 3.0)])
    (0.3, 2.0)
    """
    edges = [max(spacing) for spacing in spacings_mm]
    if not edges or _MOST_VOXELS * median(edges) >= USUAL_MM:
        return USUAL_MM
    return float(f"{_VOXELS * median(edges):.2g}")


def default_tolerance_of(pairs: Sequence[tuple[Label, Label]]) -> float:
    """The default tolerance in mm for (label, prediction) pairs of files, of which headers are read."""
    some = pairs[:: -(-len(pairs) // _MOST_READ) or 1]
    found = (_spacing_mm(label) or _spacing_mm(prediction) for label, prediction in some)
    return default_tolerance_mm(spacing for spacing in found if spacing)


def _spacing_mm(source: Label) -> Sequence[float] | None:
    """None where no header says it; a damaged file is refused when its case is scored."""
    if is_seg(source) or not source:
        return None
    try:
        return read_geometry(source if isinstance(source, Path) else source[0][1]).spacing_mm
    except VolumeError:
        return None


def too_wide(
    tolerance_mm: float,
    edges_mm: Mapping[str, float],
    *,
    surface_dice: Float[np.ndarray, "cases classes"],
    dice: Float[np.ndarray, "cases classes"],
) -> list[str]:
    """Say where surfaces agree within so many voxels that surface Dice tells little, or nothing at all.

    Args:
        tolerance_mm: up to which surfaces agreed.
        edges_mm: by case, the longest edge of its voxels.
        surface_dice, dice: of the structures; NaN where there is none.
    """
    fine = sorted(case for case, edge in edges_mm.items() if tolerance_mm > _MOST_VOXELS * edge)
    known = np.isfinite(surface_dice) & np.isfinite(dice)
    if fine:
        edges = f"{min(edges_mm[case] for case in fine):.3g}"
        found = f"tells little of {len(fine)} cases, whose voxels are as small as {edges} mm ({some_of(fine, 3)})"
    elif known.any() and surface_dice[known].min() >= _ALL_AGREE and dice[known].mean() < _DIFFERENT:
        found = f"is 1 for every structure though their mean Dice is {dice[known].mean():.2f}: it tells nothing"
    else:
        return []
    return [f"surface Dice within {tolerance_mm:g} mm {found}; name a smaller distance with --tolerance_mm"]
