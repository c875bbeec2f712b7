"""Restore a segmentation on the source's own grid from features on a network's grid, slab by slab.

The target grid of a chain comes from the source grid by orientation, padding and resize (`transforms.resize`), so that
the map between the two is separable: each source axis runs along one target axis, scaled, shifted, perhaps backwards.
Linear interpolation then is one banded product an axis, and a linear head commutes with it: interpolating the features,
then applying the head, gives the interpolated logits. Logits exist for one slab of source voxels at a time, whatever
the number of classes.

A voxel between eight network voxels of one class is of that class: no interpolation between them exceeds its corners.
So the head and the highest class are computed on the network's grid, and only where the corners differ, at the surfaces
of structures, on the source's, whose voxels are a dozen times as many.

Interpolation is centre-aligned and repeats the border voxel beyond the outermost centres, as torch's
`interpolate(align_corners=False)` does. The border is that of the source's field of view: padding is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Integer, UInt8
from torch import Tensor

from transforms.io.grid import voxel_edges_mm
from transforms.resize import voxel_map
from transforms.separable import apply_along, band
from transforms.slabs import first_highest, segmentation_dtype, share_out, slab_bytes

SEPARABLE_TOLERANCE = 0.01
"""Target voxels that a source corner may be off when the axes are taken one by one."""

SLICES_A_BLOCK = 16
"""Target slices brought into the source's memory order at once. Where the two orders differ, neighbouring slices lie in
the same cache lines, and to fetch them one by one takes longer than all the rest."""

SOURCE_SLICES_A_BLOCK = 32
"""Source slices restored together from streams: enough for every thread, few enough to hold their features."""

OPEN = -1
"""In place of a class: the network's voxels around differ, so that the interpolated logits decide."""

MOST_OPEN = 0.4
"""Share of open voxels in a slice above which it is interpolated as a whole: one by one they take twice as long."""

PROBABILITY_STEPS = 255
"""Probabilities leave as uint8: value / 255."""


class RestoreError(ValueError):
    """Features that cannot be brought back: which, expected, found."""

    is_input_error = True


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """The output of one pass of one network over a volume.

    A pass over a mirrored volume is described by the mirrored grid's affine, and by a head (or logits) whose sided
    classes are swapped.
    """

    features: Float[Tensor, "F I J K"]
    """On the network's grid."""
    affine: Float64[np.ndarray, "4 4"]
    """Voxel of the features -> world mm."""
    weight: Float[Tensor, "C _"] | None = None
    """(C, F) of the linear head; None: the features are the logits."""
    bias: Float[Tensor, " C"] | None = None
    """Of the linear head; None: 0."""

    @property
    def n_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.features if self.weight is None else self.weight)


@dataclass(frozen=True, eq=False)
class FeatureStream:
    """Features of a volume that are handed out slice by slice, so that they need not all exist at once.

    The fields are those of `FeatureMap`, but for the features themselves.
    """

    slices: Callable[[int, int], Tensor]
    """Gives slices start … stop along `axis` of the features (F, I, J, K); called with rising, overlapping ranges."""
    size: tuple[int, int, int]
    """Voxels (I, J, K) of the features' grid."""
    axis: int
    """The axis along which slices are handed out, the same axis of the source for all streams: see `slice_axis`."""
    affine: np.ndarray
    n_classes: int
    weight: Tensor | None = None
    bias: Tensor | None = None

    def part(self, start: int, stop: int) -> FeatureMap:
        """The feature map of slices start … stop."""
        matrix = np.eye(4)
        matrix[self.axis, 3] = start
        return FeatureMap(self.slices(start, stop), self.affine @ matrix, self.weight, self.bias)


def slice_axis(affine: np.ndarray, shape: Sequence[int], onto_affine: np.ndarray) -> int:
    """The axis of the features' grid (`onto_affine`) along which a `FeatureStream` best hands out its slices.

    That is where the source's last axis runs, in which files have their slices, unless the source is more than twice as
    long (in mm) along another: what is kept in work does not grow with the length of the axis.

    Raises:
        RestoreError: the grids differ by more than axis permutation, flip, scale and shift.
    """
    extent_mm = np.multiply(voxel_edges_mm(affine), shape)
    longest = int(extent_mm.argmax())
    along = longest if extent_mm[longest] > 2 * extent_mm[2] else 2
    return _separated(voxel_map(affine, onto_affine), shape)[along].target_axis


@dataclass(frozen=True, eq=False)
class Restored:
    """A segmentation on the source's grid; arrays in Fortran order, as files have them."""

    segmentation: Integer[np.ndarray, "I J K"]
    """Class indices, uint8, uint16 above 255 classes."""
    probabilities: dict[int, UInt8[np.ndarray, "I J K"]]
    """By class index, from 0 to `PROBABILITY_STEPS`, which is 1."""


def restore(
    maps: Sequence[FeatureMap | FeatureStream],
    shape: Sequence[int],
    affine: Float64[np.ndarray, "4 4"],
    *,
    probabilities_of: Sequence[int] = (),
    memory_budget_mb: float | int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Restored:
    """Segment the source's own voxels from the feature maps of one or several passes.

    The class of a voxel is that of the highest interpolated logit, the lowest among equals; with several maps, of the
    highest mean of their probabilities (softmax of the interpolated logits). Maps may have different grids and
    networks, but the same classes.

    Args:
        maps: one a pass (ensemble, mirrored passes). Streams are read once, in blocks of a few slices.
        shape: source voxels (I, J, K).
        affine: source voxel -> world mm, the same world as that of the maps' affines.
        probabilities_of: class indices whose probabilities are returned, too.
        memory_budget_mb: MiB of all slabs in work together, see `transforms.slabs.slab_bytes`.
        progress: called with (slices done, slices).

    Beside maps and result, memory is one slab a thread.

    Raises:
        RestoreError: no map, class counts that differ, a wrong head, or grids that differ by more than axis
            permutation, flip, scale and shift.

    >>> logits = torch.stack([torch.zeros(2, 2, 2), torch.arange(8.0).view(2, 2, 2) - 3.5])
    >>> on_half_the_voxels = np.diag([0.5, 1, 1, 1])
    >>> restore([FeatureMap(logits, np.eye(4))], (4, 2, 2), on_half_the_voxels).segmentation[:, 1, 1].tolist()
    [0, 1, 1, 1]
    """
    n_classes = _check(maps, probabilities_of)
    order = _axis_order(maps, shape, affine)
    shape, affine = [int(shape[axis]) for axis in order], affine[:, [*order, 3]]
    n_i, n_j, n_k = shape
    segmentation = torch.empty((n_k, n_j, n_i), dtype=segmentation_dtype(n_classes))
    chosen = {c: torch.empty((n_k, n_j, n_i), dtype=torch.uint8) for c in probabilities_of}
    as_probabilities = len(maps) > 1 or bool(chosen)
    done = count(1)

    @torch.no_grad()
    def work(parts: Sequence[FeatureMap], n_rows: int, ks: Sequence[int]) -> None:
        views = [_SourceView(one, shape, affine) for one in parts]
        settles = not as_probabilities and views[0].has_fewer_voxels(len(ks))
        for k in ks:
            if not (settles and _settle(views[0], k, segmentation[k], memory_budget_mb)):
                of_slice = {c: volume[k] for c, volume in chosen.items()}
                _restore_slice(views, k, n_rows, segmentation[k], of_slice, as_probabilities=as_probabilities)
            if progress:
                progress(next(done), n_k)

    for ks in _blocks(maps, shape, affine):
        parts = [_part(one, ks, shape, affine) for one in maps]
        n_rows = _rows_of_a_slab(parts, shape, memory_budget_mb)
        share_out(ks, partial(work, parts, n_rows), parts[0].features.device)

    def as_in_files(volume: Tensor) -> np.ndarray:
        return np.asfortranarray(volume.numpy().T.transpose(np.argsort(order)))

    return Restored(as_in_files(segmentation), {c: as_in_files(volume) for c, volume in chosen.items()})


def _axis_order(maps: Sequence[FeatureMap | FeatureStream], shape: Sequence[int], affine: np.ndarray) -> list[int]:
    """The source's axes, that along which the streams hand out their slices last."""
    last = 2
    for one in maps:
        if isinstance(one, FeatureStream):
            along = [axis.target_axis for axis in _separated(voxel_map(affine, one.affine), shape)]
            last = along.index(one.axis)
            break
    return [axis for axis in range(3) if axis != last] + [last]


def _blocks(maps: Sequence[FeatureMap | FeatureStream], shape: Sequence[int], affine: np.ndarray) -> list[range]:
    """Source slices restored together, in the order in which the streams hand out their own."""
    streams = [one for one in maps if isinstance(one, FeatureStream)]
    n_k = int(shape[2])
    if not streams:
        return [range(n_k)]
    backwards = set()
    for one in streams:
        along_k = _separated(voxel_map(affine, one.affine), shape)[2]
        if along_k.target_axis != one.axis:
            raise RestoreError(
                f"a stream hands out slices along axis {one.axis}, expected axis {along_k.target_axis} (slice_axis)"
            )
        backwards.add(along_k.scale < 0)
    if len(backwards) > 1:
        raise RestoreError("streams of mirrored grids cannot be read together; mirror the features back first")
    blocks = [range(start, min(n_k, start + SOURCE_SLICES_A_BLOCK)) for start in range(0, n_k, SOURCE_SLICES_A_BLOCK)]
    return blocks[::-1] if backwards == {True} else blocks


def _part(one: FeatureMap | FeatureStream, ks: range, shape: Sequence[int], affine: np.ndarray) -> FeatureMap:
    """The features between which the source slices `ks` lie."""
    if isinstance(one, FeatureMap):
        return one
    along_k = _Axis(int(shape[2]), one.size[one.axis], _separated(voxel_map(affine, one.affine), shape)[2])
    low, high = along_k.low[list(ks)], along_k.high[list(ks)]
    return one.part(int(low.min()), int(high.max()) + 1)


def _check(maps: Sequence[FeatureMap | FeatureStream], probabilities_of: Sequence[int]) -> int:
    if not maps:
        raise RestoreError("expected at least one feature map, found none")
    n_classes = maps[0].n_classes
    for one in maps:
        if one.n_classes != n_classes:
            raise RestoreError(f"feature maps of {n_classes} and {one.n_classes} classes cannot be joined")
        if isinstance(one, FeatureStream):
            continue
        if one.features.ndim != 4 or (one.weight is not None and one.weight.shape[1:] != one.features.shape[:1]):
            head = None if one.weight is None else tuple(one.weight.shape)
            raise RestoreError(
                f"expected features (F, I, J, K) and weight (C, F), found {tuple(one.features.shape)} and {head}"
            )
    if unknown := [c for c in probabilities_of if not 0 <= c < n_classes]:
        raise RestoreError(f"probabilities of class {unknown[0]} are asked for, the classes are 0 to {n_classes - 1}")
    return n_classes


def _rows_of_a_slab(maps: Sequence[FeatureMap], shape: Sequence[int], memory_budget_mb: float | int | None) -> int:
    # Logits before and after the last interpolation, and sums of probabilities where there are several maps.
    bytes_per_row = int(shape[0]) * 4 * maps[0].n_classes * (4 / 3 if len(maps) == 1 else 7 / 3)
    return max(1, int(slab_bytes(maps[0].features.device, memory_budget_mb) / bytes_per_row))


def _restore_slice(
    views: Sequence[_SourceView],
    k: int,
    n_rows: int,
    segmentation: Tensor,
    chosen: Mapping[int, Tensor],
    *,
    as_probabilities: bool,
) -> None:
    """Fill slice k of the segmentation, and of the probabilities by class, (J, I), `n_rows` rows at a time."""
    slices = [view.features_of(k) for view in views]
    for start in range(0, len(segmentation), n_rows):
        rows = slice(start, min(len(segmentation), start + n_rows))
        scores = _scores(views, slices, rows, as_probabilities)
        for c, volume in chosen.items():
            volume[rows] = (scores[c] * (PROBABILITY_STEPS / len(views))).round_().to(torch.uint8)
        segmentation[rows] = first_highest(scores).to(segmentation.dtype)


def _settle(view: _SourceView, k: int, segmentation: Tensor, memory_budget_mb: float | int | None) -> bool:
    """Fill slice k of the segmentation from the network's own voxels, and its open voxels one by one.

    False, and nothing filled, where more than `MOST_OPEN` of them are open.
    """
    n_at_once = max(256, slab_bytes(view.features.device, memory_budget_mb) // view.bytes_per_voxel)
    classes = view.settled(k, n_at_once)
    open_voxels = torch.nonzero((classes == OPEN).flatten()).flatten()
    if len(open_voxels) > MOST_OPEN * classes.numel():
        return False
    if len(open_voxels):
        highest = [view.highest_at(k, part) for part in open_voxels.split(n_at_once)]
        classes.view(-1)[open_voxels] = torch.cat(highest).to(classes.dtype)
    segmentation.copy_(classes)
    return True


def _scores(views: Sequence[_SourceView], slices: Sequence[Tensor], rows: slice, as_probabilities: bool) -> Tensor:
    """(C, rows, I): logits of a single map, or the maps' sum of probabilities."""
    total = None
    for view, features in zip(views, slices, strict=True):
        logits = view.logits(features, rows)
        scores = torch.softmax(logits, 0, out=logits) if as_probabilities else logits
        total = scores if total is None else total.add_(scores)
    assert total is not None
    return total


class _SourceView:
    """One feature map seen from the source grid; axes run (K, J, I), as the source lies in memory."""

    def __init__(self, one: FeatureMap, shape: Sequence[int], affine: np.ndarray) -> None:
        maps = _separated(voxel_map(affine, one.affine), shape)  # of the source's axes i, j, k
        target_sizes = [one.features.shape[1 + axis.target_axis] for axis in maps]
        self.axes = [_Axis(int(n), n_target, axis) for n, n_target, axis in zip(shape, target_sizes, maps, strict=True)]
        self.features = one.features.detach().permute(0, *(1 + axis.target_axis for axis in reversed(maps)))
        self.dtype = torch.float64 if one.features.dtype == torch.float64 else torch.float32
        device = one.features.device
        self.weight = None if one.weight is None else one.weight.detach().to(device, self.dtype)
        bias = torch.zeros(one.n_classes) if one.bias is None else one.bias.detach()
        self.bias = bias.to(device, self.dtype)[:, None]
        self.along_i = self.axes[0].matrix.to(device, self.dtype)
        self.along_j = self.axes[1].matrix.to(device, self.dtype)
        self.bytes_per_voxel = self.bias.element_size() * (len(self.bias) + 2 * len(self.features))
        self.lower_j, self.upper_j, self.fraction_j = (part.to(device) for part in self.axes[1].neighbours(self.dtype))
        self.lower_i = torch.from_numpy(self.axes[0].low).to(device)
        self.kept: dict[int, Tensor] = {}
        self.classes: dict[int, Tensor] = {}
        self.block, self.block_start = self.features, -1
        self.slice, self.of_slice = -1, self.features
        self.buffers: dict[str, Tensor] = {}

    def has_fewer_voxels(self, n_slices: int) -> bool:
        """Whether the network's grid has less than half the voxels of so many source slices that lie in it."""
        n_target = self.features[0, 0].numel() * min(self.features.shape[1], 2 * n_slices)
        return self.features.device.type == "cpu" and 2 * n_target < n_slices * len(self.lower_i) * len(self.lower_j)

    def settled(self, k: int, n_at_once: int) -> Tensor:
        """Classes of source slice k where the network's voxels around are of one class, else `OPEN`; (J, I)."""
        low, high = self._keep(k)
        for t in (low, high):
            if t not in self.classes:
                self.classes[t] = self._highest(self._block_slice(t).flatten(1), n_at_once)
        self.classes = {t: self.classes[t] for t in (low, high)}
        size = self.features.shape[2:]
        common = self.classes[low].masked_fill(self.classes[low] != self.classes[high], OPEN).view(size)
        common = _shared_with_next(_shared_with_next(common, 0), 1)
        return common.index_select(1, self.lower_i).index_select(0, self.lower_j)

    def highest_at(self, k: int, voxels: Tensor) -> Tensor:
        """The highest class at some voxels of source slice k, by their index in (J, I)."""
        features = self.features_of(k).flatten(1)
        n_i = len(self.lower_i)
        j, i = voxels // n_i, voxels % n_i
        between = features.index_select(1, self.lower_j[j] * n_i + i)
        between.lerp_(features.index_select(1, self.upper_j[j] * n_i + i), self.fraction_j[j])
        return self._highest(between, len(voxels))

    def _highest(self, features: Tensor, n_at_once: int) -> Tensor:
        """The highest class at each column of (F, voxels), int16."""
        found = torch.empty(features.shape[1], dtype=torch.int16, device=features.device)
        for start in range(0, len(found), n_at_once):
            voxels = slice(start, start + n_at_once)
            part = features[:, voxels]
            logits = part.clone() if self.weight is None else torch.addmm(self.bias, self.weight, part)
            found[voxels] = first_highest(logits)
        return found

    def features_of(self, k: int) -> Tensor:
        """Features of source slice k: interpolated along i and k, not yet along j; (F, target rows, I)."""
        low, high = self._keep(k)
        if self.slice != k:
            out = self._buffer("features", tuple(self.kept[low].shape))
            torch.lerp(self.kept[low], self.kept[high], float(self.axes[2].fraction[k]), out=out)
            self.slice, self.of_slice = k, out
        return self.of_slice

    def _keep(self, k: int) -> tuple[int, int]:
        """Which two target slices source slice k lies between; they are kept, since its neighbours do, too."""
        low, high = int(self.axes[2].low[k]), int(self.axes[2].high[k])
        self.kept = {t: self.kept[t] if t in self.kept else self._target_slice(t) for t in (low, high)}
        return low, high

    def _target_slice(self, t: int) -> Tensor:
        return apply_along(self._block_slice(t), self.along_i, 2)

    def _block_slice(self, t: int) -> Tensor:
        start = t - t % SLICES_A_BLOCK
        if self.block_start != start:
            self.block, self.block_start = self._block(start), start
        return self.block[t - start]

    def _block(self, start: int) -> Tensor:
        """(block, F, target rows, target columns): read in the features' own memory order, turned inside the cache."""
        part = self.features[:, start : start + SLICES_A_BLOCK]
        block = self._buffer("block", (part.shape[1], part.shape[0], *part.shape[2:]))
        # Channels-last features lie together voxel by voxel: taken one by one, each of them fetches all of the others.
        axis = 2 if part.stride(0) == 1 else 0
        for piece, plane in zip(part.unbind(axis), block.transpose(0, 1).unbind(axis), strict=True):
            plane.copy_(torch.empty_like(piece, dtype=self.dtype).copy_(piece))
        return block

    def logits(self, features: Tensor, rows: slice) -> Tensor:
        """Logits of some rows of a source slice; (C, rows, I). The head comes before the last interpolation, when
        there are fewer voxels to apply it to."""
        weights = self.along_j[rows]
        low, high = band(weights)
        part = features[:, low:high]
        if self.weight is not None:
            headed = self._buffer("headed", (len(self.weight), part[0].numel()))
            torch.addmm(self.bias, self.weight, part.flatten(1), out=headed)
            part = headed.view(-1, *part.shape[1:])
        logits = self._buffer("logits", (len(part), len(weights), part.shape[2]))
        return torch.bmm(weights[:, low:high].expand(len(part), -1, -1), part, out=logits)

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor to write into, the same memory each time: fresh megabytes cost more than the sums in them."""
        n_values = prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < n_values:
            self.buffers[name] = torch.empty(n_values, dtype=self.dtype, device=self.features.device)
        return self.buffers[name][:n_values].view(shape)


def _shared_with_next(classes: Tensor, axis: int) -> Tensor:
    """The class that each voxel shares with the next one along an axis, `OPEN` where they differ; the last stays."""
    n = classes.shape[axis] - 1
    shared = classes.clone()
    shared.narrow(axis, 0, n).masked_fill_(classes.narrow(axis, 0, n) != classes.narrow(axis, 1, n), OPEN)
    return shared


class _AxisMap(NamedTuple):
    """Where one source axis lies in the target: target index = scale · source index + offset along `target_axis`."""

    target_axis: int
    scale: float
    offset: float


class _Axis:
    """Linear interpolation along one axis: source index s lies between the target indices low[s] and high[s]."""

    def __init__(self, n_source: int, n_target: int, along: _AxisMap) -> None:
        # Rounded, so that the noise of two affines (1e-13) does not make a grid that fits exactly look shifted.
        position = np.round(along.scale * np.arange(n_source) + along.offset, 9)
        # What lies beyond the source's field of view is padding, which must not be mixed into the source's rim.
        ends = np.round(along.scale * np.array([-0.5, n_source - 0.5]) + along.offset, 9)
        inside = max(0, np.ceil(ends.min())), min(n_target - 1, np.floor(ends.max()))
        position = np.clip(position, *(inside if inside[0] <= inside[1] else (0, n_target - 1)))
        self.low = np.floor(position).astype(np.int64)
        self.high = np.minimum(self.low + 1, n_target - 1)
        self.fraction = position - self.low
        matrix = np.zeros((n_source, n_target))
        every = np.arange(n_source)
        matrix[every, self.low] = 1 - self.fraction
        matrix[every, self.high] += self.fraction
        self.matrix = torch.from_numpy(matrix)

    def neighbours(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Lower and upper target index of each source index, and the weight of the upper one."""
        return torch.from_numpy(self.low), torch.from_numpy(self.high), torch.from_numpy(self.fraction).to(dtype)


def _separated(matrix: Float64[np.ndarray, "4 4"], shape: Sequence[int]) -> list[_AxisMap]:
    """Take a map of voxel indices (source -> target) apart into the maps of the source's axes.

    Raises:
        RestoreError: if a corner of the source, `shape` (I, J, K), would land more than `SEPARABLE_TOLERANCE` target
            voxels from its place: the grids are turned or sheared against each other.
    """
    linear = matrix[:3, :3]
    order = [int(axis) for axis in np.abs(linear).argmax(axis=0)]
    kept = np.zeros((3, 3))
    kept[order, range(3)] = linear[order, range(3)]
    error = np.abs(linear - kept) @ np.array([float(n - 1) for n in shape])
    if sorted(order) != [0, 1, 2] or error.max() > SEPARABLE_TOLERANCE:
        raise RestoreError(
            f"the source grid is turned or sheared against the network's grid, by {error.max():.3g} target voxels at a "
            "corner; resample with a general interpolation"
        )
    return [_AxisMap(t, float(linear[t, p]), float(matrix[t, 3])) for p, t in enumerate(order)]
