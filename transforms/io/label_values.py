"""Which value of a label file is which class: values to class indices by table, integer all the way. Opens no file."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Shaped

from transforms.io.errors import VolumeError
from transforms.io.grid import slowest_first

logger = logging.getLogger(__name__)

INTEGRAL_TOLERANCE = 1e-3
"""How far from an integer a stored label may read: "integer" masks with slope 2.3e-10 and intercept 0.5 exist."""

_MAX_SPAN = 2**20  # between the smallest and the largest value of a class: bounds the table at 4 MB
_BINCOUNT_SPAN = 2**16  # values closer together than this are counted by table, others by sorting
_UNKNOWN = -1
_VALUES_LISTED = 12


def label_dtype(n_classes: int) -> np.dtype:
    """Return the dtype of a label map in memory: uint8 up to 255 classes, else int32 (torch cannot flip uint16).

    Example:
        >>> label_dtype(255), label_dtype(256)
        (dtype('uint8'), dtype('int32'))
    """
    return np.dtype(np.uint8 if n_classes <= 255 else np.int32)


def ignore_index(n_classes: int) -> int:
    """Return the value of ignored voxels in a label map: 255, or 65535 above 255 classes."""
    return 255 if n_classes <= 255 else 65535


class LabelLookup:
    """The mapping from stored label values to class indices.

    Args:
        label_values: the value of class 0, 1, …; None for 0…254 as they are.
        ignore_value: the value that becomes `ignore_index(n_classes)`.
        label_remap: class indices of further values, or of values that mean something else than above: several
            values may become one class, or be ignored (`ignore_index(n_classes)`). A voxel is looked up once, so that
            values can be exchanged.

    Raises:
        ValueError: two classes share a value, or the ignore value is a class's, or the values span too far, or
            `label_remap` names a class that does not exist.

    Example:
        >>> lookup = LabelLookup([0, 3, 207], ignore_value=None)
        >>> lookup.indices(np.array([[[0, 207, 3]]]), "label.nii").tolist()
        [[[0, 2, 1]]]
    """

    def __init__(
        self,
        label_values: Sequence[int] | None,
        ignore_value: int | None,
        label_remap: Mapping[int, int] | None = None,
    ) -> None:
        implicit = [value for value in range(255) if value != ignore_value]
        values = implicit if label_values is None else [int(value) for value in label_values]
        classes = implicit if label_values is None else list(range(len(values)))
        self.overlaps: Counter[tuple[int, int]] = Counter()
        """Voxels that a class (first) lost to a later one (second), over all merges so far."""
        self.n_classes = 255 if label_values is None else len(values)
        self.implicit = label_values is None
        if ignore_value is not None:
            values = [*values, int(ignore_value)]
            classes = [*classes, ignore_index(self.n_classes)]
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(
                f"label_values: every class (and ignore_value) needs a value of its own, {twice} is shared"
            )
        remap = {int(value): int(index) for value, index in (label_remap or {}).items()}  # JSON has texts as keys
        ignored = ignore_index(self.n_classes)
        if strange := [index for index in remap.values() if not 0 <= index < self.n_classes and index != ignored]:
            raise ValueError(f"label_remap: expected class indices of 0 to {self.n_classes - 1}, found {strange[0]}")
        self._fill(dict(zip(values, classes, strict=True)) | remap)

    @classmethod
    def of_values(cls, class_of_value: Mapping[int, int], n_classes: int) -> LabelLookup:
        """Return the lookup of values that are given one by one; `ignore_index(n_classes)` is that of ignored voxels.

        Raises:
            ValueError: as the class does.

        >>> LabelLookup.of_values({0: 0, 5: 2}, n_classes=3).indices(np.array([[[5, 0]]]), "label.nii").tolist()
        [[[2, 0]]]
        """
        lookup = cls(range(n_classes), None)
        lookup._fill(class_of_value)
        return lookup

    def _fill(self, index_of: Mapping[int, int]) -> None:
        """Make the table of the class index of each value."""
        values = list(index_of)
        if not 1 <= self.n_classes <= 65535 or max(values) - min(values) > _MAX_SPAN:
            raise ValueError(
                f"label_values: expected 1 to 65535 classes within {_MAX_SPAN} values, found {value_ranges(values)}"
            )
        if not -(2**63) < min(values) <= max(values) < 2**63 - 1:
            raise ValueError(f"label_values: expected values of less than 64 bits, found {value_ranges(values)}")
        self.values = sorted(values)
        self.dtype = label_dtype(self.n_classes)
        # One slot more than the span at either end: every value outside it is sent there.
        self._start = self.values[0] - 1
        self._table = np.full(self.values[-1] - self._start + 2, _UNKNOWN, dtype=np.int32)
        self._table[np.array(values) - self._start] = list(index_of.values())

    def indices(self, array: Shaped[np.ndarray, "i j k"], where: str) -> Int[np.ndarray, "i j k"]:
        """Return each voxel's class index for a label map, in `dtype`, the memory order kept.

        Raises:
            VolumeError: values off the integers by more than `INTEGRAL_TOLERANCE`, or of no class, with their counts.
        """
        out = np.empty_like(array, dtype=self.dtype)
        unknown: Counter[int] = Counter()
        slices = out.transpose(slowest_first(array.strides))
        for values, of_slice in zip(_integer_slices(array, where), slices, strict=True):
            classes = self._table.take(np.subtract(values, self._start, dtype=np.int64), mode="clip")
            if classes.min() == _UNKNOWN:
                unknown.update(map(int, values[classes == _UNKNOWN]))
            of_slice[:] = classes
        if unknown:
            expected = f"the label values {value_ranges(self.values)}"
            remedy = "map them to classes with label_values or label_remap, or repair the label"
            raise VolumeError("label_unknown_values", where, expected, list_counts(unknown), remedy)
        return out

    def merge(
        self, shape: tuple[int, ...], masks: Sequence[tuple[int, Path]], arrays: Iterable[Shaped[np.ndarray, "i j k"]]
    ) -> Int[np.ndarray, "i j k"]:
        """Return one map of class indices from a mask per class; where masks overlap the later one wins.

        Raises:
            VolumeError: a class index outside the table, or a mask that holds more than 0 and one other value.
        """
        merged = MergedMasks(shape, self.n_classes)
        for (index, path), array in zip(masks, arrays, strict=True):
            if not 0 < index < self.n_classes:
                expected = f"a class index of 1 to {self.n_classes - 1}"
                remedy = "give label_values for more than 255 classes" if self.implicit else "correct the list of masks"
                raise VolumeError("label_unknown_values", path, expected, f"{index}", remedy)
            merged.add(index, mask_of(array, str(path)))
        if merged.overlaps:
            n_voxels = sum(merged.overlaps.values())
            self.overlaps += merged.overlaps
            logger.debug("%d voxels lie in more than one of %d masks; the later class wins", n_voxels, len(masks))
        return merged.labels


class MergedMasks:
    """One label map out of a mask per class, added one after the other; where masks overlap the later one wins."""

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        self.labels: Int[np.ndarray, "i j k"] = np.zeros(shape, dtype=label_dtype(n_classes), order="F")
        self.overlaps: Counter[tuple[int, int]] = Counter()
        """Voxels that a class (first) lost to a later one (second)."""

    def add(self, index: int, inside: Bool[np.ndarray, "i j k"]) -> None:
        """Give a class the voxels of its mask."""
        before = self.labels[inside]
        if before.any():
            voxels = np.bincount(before)
            self.overlaps.update({(int(lost), index): int(voxels[lost]) for lost in np.flatnonzero(voxels) if lost})
        self.labels[inside] = index


def mask_of(array: Shaped[np.ndarray, "i j k"], where: str) -> Bool[np.ndarray, "i j k"]:
    """Return where a mask file has its one value besides 0.

    Raises:
        VolumeError: it holds several values, or values that are not integral.
    """
    inside = np.empty_like(array, dtype=bool)
    others: set[int] = set()
    slices = inside.transpose(slowest_first(array.strides))
    for values, of_slice in zip(_integer_slices(array, where), slices, strict=True):
        of_slice[:] = values != 0
        others.update(np.unique(values[of_slice]).tolist())
        if len(others) > 1:
            found = list_counts(count_values(array, where))
            remedy = "export one structure a file"
            raise VolumeError("label_unknown_values", where, "a mask of 0 and one other value", found, remedy)
    return inside


def count_values(array: Shaped[np.ndarray, "i j k"], where: str) -> dict[int, int]:
    """Return the voxels of every value of a label map, by value.

    Raises:
        VolumeError: values off the integers by more than `INTEGRAL_TOLERANCE`.
    """
    counts: Counter[int] = Counter()
    for values in _integer_slices(array, where):
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if high - low < _BINCOUNT_SPAN:
            of_value = np.bincount(np.subtract(values, low, dtype=np.int64).ravel())
            counts.update({int(step) + low: int(of_value[step]) for step in np.flatnonzero(of_value)})
        else:
            different, of_each = np.unique(values, return_counts=True)
            counts.update(dict(zip(different.tolist(), of_each.tolist(), strict=True)))
    return dict(sorted(counts.items()))


def _integer_slices(array: Shaped[np.ndarray, "i j k"], where: str) -> Iterator[Int[np.ndarray, "rows columns"]]:
    """Yield the slices of the label map along its slowest axis (small temporaries), as integers that int64 holds.

    Raises VolumeError, after the last slice, for values that are not integral or not of 64 bits, with their count.
    """
    n_off = 0
    example: float = 0
    for stored in array.transpose(slowest_first(array.strides)):
        values = stored
        if array.dtype.kind == "f":
            with np.errstate(invalid="ignore"):  # inf - inf; found below
                off = ~(np.abs(values - np.rint(values)) <= INTEGRAL_TOLERANCE)  # negated, so that NaN counts
            off |= np.abs(values) > 2**53  # beyond exact integers, and safe to cast below
            values = np.where(off, 0, np.rint(values)) if off.any() else np.rint(values)
        elif array.dtype == np.uint64:
            off = values > np.iinfo(np.int64).max  # would wrap to a negative value
            values = np.where(off, 0, values)
        else:
            yield values
            continue
        if off.any():
            n_off += int(off.sum())
            example = stored[off][0].item()
        yield values.astype(np.int64)
    if n_off:
        found = f"{n_off} voxels that are not, {example:g} for one"
        remedy = "resample the label with nearest neighbour and save it as integers"
        raise VolumeError("label_not_integral", where, "whole numbers as label values", found, remedy)


def list_counts(counts: Mapping[int, int]) -> str:
    """Write the first dozen values with their voxels: "3 (12 voxels), 7 (1 voxels)"."""
    ordered = sorted(counts.items())
    listed = ", ".join(f"{value} ({count} voxels)" for value, count in ordered[:_VALUES_LISTED])
    return listed + (f" and {len(ordered) - _VALUES_LISTED} more values" if len(ordered) > _VALUES_LISTED else "")


def value_ranges(values: Sequence[int]) -> str:
    """Write a sorted list as ranges, at most a dozen.

    Example:
        >>> value_ranges([0, 1, 2, 30, 207])
        '0-2, 30, 207'
    """
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    words = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    more = f" and {len(words) - _VALUES_LISTED} more ranges" if len(words) > _VALUES_LISTED else ""
    return ", ".join(words[:_VALUES_LISTED]) + more
