"""How far two segmentations' surfaces lie apart: HD95 and surface Dice of all classes of a volume. Pure: opens no file.

Overlap measures live in `metrics`; of which elements a surface consists, and what each counts, is `surface_elements`'.
With "voxels" distances run between voxel centres in mm and the 95th percentile interpolates between elements, as in
monai.metrics. With "area" they run between corners of voxels and every element counts with its area, also in the
percentile, as in DeepMind's surface-distance. The two differ by some percent, and their values do not mix.

Conventions for a class that the reference lacks, named as in `metrics`: "left_out" gives NaN; "scored" gives HD95 0 mm
and surface Dice 1 if the prediction lacks it too, else infinity and 0. A class that only the prediction lacks has
HD95 infinity and surface Dice 0 either way: averages of HD95 have to say what they make of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer
from scipy.spatial import KDTree

from pipeline.metrics.surface_elements import Surface, SurfaceKind, find_surface

# About so many neighbours of a surface voxel are looked up directly before a search tree is asked. With the surfaces
# of a usable segmentation nearly all distances are found this way: 70 classes at 160×160×256 took 0.16 s instead of
# 0.40 s by trees alone, and a distance transform of each class's box costs 30 ns a voxel, for 8 million voxels, twice.
N_NEIGHBOURS = 100
# 3 × 0.7 mm is 2.0999999999999996 mm: distances are compared with the tolerance up to this share of it.
ROUNDING = 1e-6


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
    tolerance_mm: float | int | Sequence[float | int] | Float[np.ndarray, " C"] = 2.0,
    percentile: float | int = 95,
    ignore_index: int | None = None,
    absent: Literal["left_out", "scored"] = "left_out",
    surface: SurfaceKind = "voxels",
) -> SurfaceScores:
    """Compute HD95 (Huttenlocher et al. 1993) and surface Dice (Nikolov et al. 2021) of every class in one pass.

    spacing_mm is the voxel's size along i, j, k; tolerance_mm one number or one a class, background included. Voxels
    whose reference is `ignore_index` count as background in both maps, as in MONAI. For classes that one of the maps
    lacks, and for the two kinds of surface, see the top of this file. Raises ValueError if the maps differ in shape,
    hold other values than 0 … n_classes − 1, or if a spacing is not positive.
    """
    tolerances = np.broadcast_to(np.asarray(tolerance_mm, dtype=np.float64), n_classes)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if reference.shape != prediction.shape:
        raise ValueError(f"prediction: expected the reference's shape {reference.shape}, found {prediction.shape}")
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise ValueError(f"spacing_mm: expected three positive numbers, found {tuple(spacing_mm)}")
    reach = np.floor(_radius(spacing) / spacing).astype(int)
    # Padded by what is looked up around a voxel: no neighbour lies outside, and no row's end meets the next row.
    cropped = _cropped(reference, prediction, n_classes, ignore_index)
    shape = tuple(n + 2 * (int(r) + 1) for n, r in zip(cropped[0].shape, reach, strict=True))
    first, second = (find_surface(np.pad(m, [(r + 1, r + 1) for r in reach]), surface, spacing) for m in cropped)
    from_reference = _by_class(first, _nearest(first, second, shape, reach, spacing))
    from_prediction = _by_class(second, _nearest(second, first, shape, reach, spacing))
    scores = np.full((2, n_classes), np.nan)
    nothing = _Distances(np.zeros(0), np.zeros(0))
    for c in range(1, n_classes):
        both = from_reference.get(c, nothing), from_prediction.get(c, nothing)
        scores[:, c] = _score(*both, tolerances[c], percentile, absent, surface)
    return SurfaceScores(*scores)


class _Distances(NamedTuple):
    """Of one class's surface elements: distance to the other surface in mm, and what each element counts."""

    mm: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]


def _score(
    from_reference: _Distances,
    from_prediction: _Distances,
    tolerance: float,
    percentile: float | int,
    absent: str,
    surface: SurfaceKind,
) -> tuple[float, float]:
    both = from_reference, from_prediction
    if not len(from_reference.mm) and absent == "left_out":
        return np.nan, np.nan
    if not any(len(one.mm) for one in both):
        return 0.0, 1.0
    if not all(len(one.mm) for one in both):
        return np.inf, 0.0
    distance = max(_percentile(one, percentile, surface) for one in both)
    within = sum(one.weights[one.mm <= tolerance * (1 + ROUNDING)].sum() for one in both)
    return float(distance), float(within / sum(one.weights.sum() for one in both))


def _percentile(distances: _Distances, percentile: float | int, surface: SurfaceKind) -> float:
    """Return the percentile of the distances in mm: of the elements, or of their area, where nothing is interpolated
    (DeepMind's compute_robust_hausdorff)."""
    if surface == "voxels":
        return float(np.percentile(distances.mm, percentile))
    order = np.argsort(distances.mm, kind="stable")
    share = distances.weights[order].cumsum()
    place = int(np.searchsorted(share, percentile / 100 * share[-1]))
    return float(distances.mm[order[min(place, len(order) - 1)]])


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
    distances = np.full(len(of.places), np.inf)
    rest = np.arange(len(of.places))
    for offset, distance in _neighbours(reach, spacing, shape):
        hit = to.holds(of.places[rest] + offset, of.classes[rest])
        distances[rest[hit]] = distance
        rest = rest[~hit]
    goals_of = dict(_groups(to.classes)) if len(rest) else {}
    for c, members in _groups(of.classes[rest]):
        if c in goals_of:
            tree = KDTree(_points(to.places[goals_of[c]], shape, spacing), balanced_tree=False, compact_nodes=False)
            distances[rest[members]] = tree.query(_points(of.places[rest[members]], shape, spacing))[0]
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
    """Yield each class that occurs with the places where it does."""
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    for c, members in zip(present, np.split(order, starts[1:]), strict=False):
        yield int(c), members


def _by_class(surface: Surface, distances: Float[np.ndarray, " n"]) -> dict[int, _Distances]:
    return {c: _Distances(distances[at], surface.weights[at]) for c, at in _groups(surface.classes)}
