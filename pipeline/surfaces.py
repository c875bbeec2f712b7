"""How far two segmentations' surfaces lie apart: HD95 and surface Dice of all classes of a volume. Pure: opens no file.

Overlap measures live in `metrics`. Here a surface is the set of a class's voxels that have a face neighbour of another
class or lie at the volume's rim, and distances run between voxel centres in mm, as in monai.metrics with its default
use_subvoxels=False. The surface-distance package of DeepMind weighs elements between voxels by their area instead
(MONAI's use_subvoxels=True): its surface Dice differs by some percent, and its values do not mix with these.

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
    """Share of both surfaces' voxels that lie within the tolerance of the other surface."""


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
) -> SurfaceScores:
    """Compute HD95 (Huttenlocher et al. 1993) and surface Dice (Nikolov et al. 2021) of every class in one pass.

    spacing_mm is the voxel's size along i, j, k; tolerance_mm one number or one a class, background included. Voxels
    whose reference is `ignore_index` count as background in both maps, as in MONAI. For classes that one of the maps
    lacks see the top of this file. Raises ValueError if the maps differ in shape, hold other values than
    0 … n_classes − 1, or if a spacing is not positive.
    """
    tolerances = np.broadcast_to(np.asarray(tolerance_mm, dtype=np.float64), n_classes)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if reference.shape != prediction.shape:
        raise ValueError(f"prediction: expected the reference's shape {reference.shape}, found {prediction.shape}")
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise ValueError(f"spacing_mm: expected three positive numbers, found {tuple(spacing_mm)}")
    surfaces = _surfaces(reference, prediction, n_classes, ignore_index)
    from_reference, from_prediction = (
        _by_class(*_nearest(of, to, spacing), n_classes) for of, to in (surfaces, surfaces[::-1])
    )
    scores = np.full((2, n_classes), np.nan)
    for c in range(1, n_classes):
        scores[:, c] = _score(from_reference[c], from_prediction[c], tolerances[c], percentile, absent)
    return SurfaceScores(*scores)


def _score(
    from_reference: Float[np.ndarray, " n"],
    from_prediction: Float[np.ndarray, " m"],
    tolerance: float,
    percentile: float | int,
    absent: str,
) -> tuple[float, float]:
    if not len(from_reference) and absent == "left_out":
        return np.nan, np.nan
    if not len(from_reference) and not len(from_prediction):
        return 0.0, 1.0
    if not len(from_reference) or not len(from_prediction):
        return np.inf, 0.0
    distance = max(np.percentile(d, percentile) for d in (from_reference, from_prediction))
    within = np.concatenate([from_reference, from_prediction]) <= tolerance * (1 + ROUNDING)
    return float(distance), float(within.mean())


def _surfaces(
    reference: Integer[np.ndarray, "I J K"],
    prediction: Integer[np.ndarray, "I J K"],
    n_classes: int,
    ignore_index: int | None,
) -> tuple[Integer[np.ndarray, "i j k"], Integer[np.ndarray, "i j k"]]:
    """Keep the classes of surface voxels, 0 elsewhere, in the box around the foreground of both maps."""
    if ignore_index is not None:
        counted = reference != ignore_index
        reference, prediction = reference * counted, prediction * counted
    for name, labels in (("reference", reference), ("prediction", prediction)):
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
            raise ValueError(f"{name}: expected classes 0 … {n_classes - 1}, found {labels.min()} … {labels.max()}")
    box = _foreground_box(reference, prediction)
    return _surface(reference[box]), _surface(prediction[box])


def _foreground_box(*maps: Integer[np.ndarray, "I J K"]) -> tuple[slice, ...]:
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        occupied = np.flatnonzero(np.logical_or.reduce([m.any(axis=others) for m in maps]))
        box.append(slice(occupied[0], occupied[-1] + 1) if len(occupied) else slice(0, 0))
    return tuple(box)


def _surface(labels: Integer[np.ndarray, "i j k"]) -> Integer[np.ndarray, "i j k"]:
    """Set to 0 what has six neighbours of its own class; outside is background."""
    inner = np.ones(labels.shape, dtype=bool)
    for axis in range(3):
        along = np.moveaxis(labels, axis, 0)
        inside = np.moveaxis(inner, axis, 0)
        same = along[1:] == along[:-1]
        inside[1:] &= same
        inside[:-1] &= same
        inside[:1] = False
        inside[-1:] = False
    return np.where(inner, 0, labels)


def _nearest(
    of: Integer[np.ndarray, "i j k"], to: Integer[np.ndarray, "i j k"], spacing: Float[np.ndarray, " axes"]
) -> tuple[Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return each `of` voxel's class and distance (mm) to the nearest `to` voxel of that class, infinity if none."""
    reach = np.floor(_radius(spacing) / spacing).astype(int)
    of, to = (np.pad(v, [(r, r) for r in reach]) for v in (of, to))
    found = np.flatnonzero(of)
    classes, distances = of.reshape(-1)[found], np.full(len(found), np.inf)
    rest, target = np.arange(len(found)), to.reshape(-1)
    for offset, distance in _neighbours(reach, spacing, to.shape):
        hit = target[found[rest] + offset] == classes[rest]
        distances[rest[hit]] = distance
        rest = rest[~hit]
    targets = np.flatnonzero(to)
    for c, members in _groups(classes[rest]):
        goals = targets[target[targets] == c]
        if len(goals):
            tree = KDTree(_points(goals, to.shape, spacing), balanced_tree=False, compact_nodes=False)
            distances[rest[members]] = tree.query(_points(found[rest[members]], to.shape, spacing))[0]
    return classes, distances


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


def _by_class(
    classes: Integer[np.ndarray, " n"], distances: Float[np.ndarray, " n"], n_classes: int
) -> list[Float[np.ndarray, " m"]]:
    groups = {c: distances[members] for c, members in _groups(classes)}
    return [groups.get(c, distances[:0]) for c in range(n_classes)]
