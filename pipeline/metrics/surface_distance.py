"""HD95 and surface Dice of all classes of two label maps, in one pass. Opens no file.

Two definitions of a surface, see `surface_elements`. With "voxels" distances run between voxel centres in mm and the
95th percentile interpolates between elements, as in monai.metrics. With "area" they run between corners of voxels and
every element counts with its area, also in the percentile, as in DeepMind's surface-distance
(github.com/google-deepmind/surface-distance). The two differ by some percent, and their values do not mix.

A class that the reference lacks has neither score (NaN), as in `overlap`. One that only the prediction lacks has HD95
infinity and surface Dice 0: averages of HD95 have to say what they make of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer
from scipy.spatial import KDTree

from pipeline.metrics.surface_elements import Surface, SurfaceKind, find_surface

PERCENTILE = 95
N_NEIGHBOURS = 100
"""About so many neighbours of a surface voxel are searched directly before a search tree is built. With the surfaces of
a usable segmentation nearly all distances are found this way: 70 classes at 160×160×256 took 0.16 s instead of 0.40 s
by trees alone, and a distance transform of each class's box costs 30 ns a voxel, for 8 million voxels, twice."""
ROUNDING = 1e-6
"""3 × 0.7 mm is 2.0999999999999996 mm: distances are compared with the tolerance up to this share of it."""


class SurfaceScores(NamedTuple):
    """Scores by class (C,), float64; the background, whose surface has no meaning, is NaN."""

    hd95_mm: Float[np.ndarray, " C"]
    """The larger of the two directed 95th percentiles of surface distance."""
    surface_dice: Float[np.ndarray, " C"]
    """Share of both surfaces that lies within the tolerance of the other surface."""


def surface_scores(
    reference: Integer[np.ndarray, "I J K"],
    prediction: Integer[np.ndarray, "_ _ _"],
    spacing_mm: Sequence[float | int] | Float[np.ndarray, " axes"],
    n_classes: int,
    *,
    tolerance_mm: float | int = 2.0,
    ignore_index: int | None = None,
    surface: SurfaceKind = "voxels",
) -> SurfaceScores:
    """Compute HD95 (Huttenlocher et al. 1993) and surface Dice (Nikolov et al. 2021) of every class in one pass.

    Args:
        reference, prediction: class indices on the same grid; they are not changed.
        spacing_mm: the voxel's size along i, j, k, in mm.
        n_classes: C, with the background.
        tolerance_mm: distance up to which two surfaces agree, for the surface Dice.
        ignore_index: voxels with this value in the reference count as background in both maps, as in MONAI.
        surface: what a surface consists of, see the top of this file.

    Raises:
        ValueError: the maps differ in shape or hold other values than 0 … n_classes − 1, or a spacing is not positive.

    >>> label = np.zeros((9, 5, 5), dtype=np.uint8)
    >>> label[1:4] = 1
    >>> scores = surface_scores(label, np.roll(label, 2, axis=0), (1.5, 1, 1), n_classes=2, tolerance_mm=1)
    >>> scores.hd95_mm, scores.surface_dice.round(2)  # moved by 2 voxels of 1.5 mm
    (array([nan,  3.]), array([ nan, 0.38]))
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if reference.shape != prediction.shape:
        raise ValueError(f"prediction: expected the reference's shape {reference.shape}, found {prediction.shape}")
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise ValueError(f"spacing_mm: expected three positive numbers, found {tuple(spacing_mm)}")
    reach = np.floor(_radius(spacing) / spacing).astype(int)
    # Padded by the reach of the search around a voxel: no neighbour lies outside, no row's end meets the next row.
    cropped = _cropped(reference, prediction, n_classes, ignore_index)
    shape = tuple(n + 2 * (int(r) + 1) for n, r in zip(cropped[0].shape, reach, strict=True))
    first, second = (find_surface(np.pad(m, [(r + 1, r + 1) for r in reach]), surface, spacing) for m in cropped)
    from_reference = _by_class(first, _nearest(first, second, shape, reach, spacing))
    from_prediction = _by_class(second, _nearest(second, first, shape, reach, spacing))
    scores = np.full((2, n_classes), np.nan)
    nothing = _Distances(np.zeros(0), np.zeros(0))
    for c in range(1, n_classes):
        both = from_reference.get(c, nothing), from_prediction.get(c, nothing)
        scores[:, c] = _score(*both, tolerance_mm, surface)
    return SurfaceScores(*scores)


class _Distances(NamedTuple):
    """Of one class's surface elements: distance to the other surface in mm, and what each element counts."""

    mm: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]


def _score(
    from_reference: _Distances, from_prediction: _Distances, tolerance_mm: float | int, surface: SurfaceKind
) -> tuple[float, float]:
    """Return HD95 and surface Dice of one class."""
    if not len(from_reference.mm):
        return np.nan, np.nan
    if not len(from_prediction.mm):
        return np.inf, 0.0
    both = from_reference, from_prediction
    distance = max(_percentile(one, surface) for one in both)
    within = sum(one.weights[one.mm <= tolerance_mm * (1 + ROUNDING)].sum() for one in both)
    return float(distance), float(within / sum(one.weights.sum() for one in both))


def _percentile(distances: _Distances, surface: SurfaceKind) -> float:
    """Return the 95th percentile of the distances in mm: of the elements, or of their area, where nothing is
    interpolated (surface-distance's compute_robust_hausdorff)."""
    if surface == "voxels":
        return float(np.percentile(distances.mm, PERCENTILE))
    order = np.argsort(distances.mm, kind="stable")
    share = distances.weights[order].cumsum()
    position = int(np.searchsorted(share, PERCENTILE / 100 * share[-1]))
    return float(distances.mm[order[min(position, len(order) - 1)]])


def _cropped(
    reference: Integer[np.ndarray, "I J K"],
    prediction: Integer[np.ndarray, "I J K"],
    n_classes: int,
    ignore_index: int | None,
) -> tuple[Integer[np.ndarray, "i j k"], Integer[np.ndarray, "i j k"]]:
    """Check both maps and crop them to the box around the foreground of both; ignored voxels become background."""
    if ignore_index is not None:
        counted = reference != ignore_index
        reference, prediction = reference * counted, prediction * counted
    for name, labels in (("reference", reference), ("prediction", prediction)):
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
            raise ValueError(f"{name}: expected classes 0 … {n_classes - 1}, found {labels.min()} … {labels.max()}")
    box = _foreground_box(reference, prediction)
    return reference[box], prediction[box]


def _foreground_box(*maps: Integer[np.ndarray, "I J K"]) -> tuple[slice, ...]:
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        occupied = np.flatnonzero(np.logical_or.reduce([m.any(axis=others) for m in maps]))
        box.append(slice(occupied[0], occupied[-1] + 1) if len(occupied) else slice(0, 0))
    return tuple(box)


def _nearest(
    of: Surface,
    to: Surface,
    shape: tuple[int, ...],
    reach: Int[np.ndarray, " axes"],
    spacing: Float[np.ndarray, " axes"],
) -> Float[np.ndarray, " n"]:
    """Return each `of` element's distance (mm) to the nearest `to` element of its class, infinity if there is none."""
    distances = np.full(len(of.positions), np.inf)
    rest = np.arange(len(of.positions))
    for offset, distance in _neighbours(reach, spacing, shape):
        hit = to.holds(of.positions[rest] + offset, of.classes[rest])
        distances[rest[hit]] = distance
        rest = rest[~hit]
    goals_of = dict(_groups(to.classes)) if len(rest) else {}
    for c, members in _groups(of.classes[rest]):
        if c in goals_of:
            tree = KDTree(_points(to.positions[goals_of[c]], shape, spacing), balanced_tree=False, compact_nodes=False)
            distances[rest[members]] = tree.query(_points(of.positions[rest[members]], shape, spacing))[0]
    return distances


def _radius(spacing: Float[np.ndarray, " axes"]) -> float:
    """Return the radius (mm) of the ball that holds about N_NEIGHBOURS voxels."""
    return float(np.cbrt(N_NEIGHBOURS * spacing.prod() * 3 / (4 * np.pi)))


def _neighbours(
    reach: Int[np.ndarray, " axes"], spacing: Float[np.ndarray, " axes"], shape: tuple[int, ...]
) -> Iterator[tuple[int, float]]:
    """Yield the voxels of the ball as offsets into the flattened volume, nearest first, with their distance in mm."""
    steps = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1).reshape(-1, 3)
    distances = np.sqrt(((steps * spacing) ** 2).sum(1))
    offsets = steps @ np.array([shape[1] * shape[2], shape[2], 1])
    for k in np.argsort(distances, kind="stable"):
        if distances[k] <= _radius(spacing):
            yield int(offsets[k]), float(distances[k])


def _points(
    positions: Int[np.ndarray, " n"], shape: tuple[int, ...], spacing: Float[np.ndarray, " axes"]
) -> Float[np.ndarray, "n 3"]:
    return np.stack(np.unravel_index(positions, shape), 1) * spacing


def _groups(classes: Integer[np.ndarray, " n"]) -> Iterator[tuple[int, Int[np.ndarray, " m"]]]:
    """Yield each class that occurs, with the indices where it does."""
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    for c, members in zip(present, np.split(order, starts[1:]), strict=False):
        yield int(c), members


def _by_class(surface: Surface, distances: Float[np.ndarray, " n"]) -> dict[int, _Distances]:
    return {c: _Distances(distances[at], surface.weights[at]) for c, at in _groups(surface.classes)}
