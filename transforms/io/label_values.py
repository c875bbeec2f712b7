"""Which value of a label file is which class: values to class indices by table, integer all the way. Opens no file."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from transforms.io.grid import VolumeError

logger = logging.getLogger(__name__)

INTEGRAL_TOLERANCE = 1e-3
"""How far from an integer a stored label may read: "integer" masks with slope 2.3e-10 and intercept 0.5 exist."""

_MAX_SPAN = 2**20  # between the smallest and the largest value of a class: bounds the table at 4 MB
_UNKNOWN = -1


def label_dtype(n_classes: int) -> np.dtype:
    """Return the dtype of a label map in memory: uint8 up to 255 classes, else int32 (torch cannot flip uint16)."""
    return np.dtype(np.uint8 if n_classes <= 255 else np.int32)


def ignore_index(n_classes: int) -> int:
    """Return the value of ignored voxels in a label map: 255, or 65535 above 255 classes."""
    return 255 if n_classes <= 255 else 65535


class ClassTable:
    """The mapping from stored label values to class indices.

    Args:
        label_values: the value of class 0, 1, …; None for 0…254 as they are.
        ignore_value: the value that becomes `ignore_index(n_classes)`.
        label_remap: class indices of further values, or of values that shall mean something else than above: several
            values may become one class. A voxel is looked up once, so that values can be exchanged.

    Raises:
        ValueError: two classes share a value, or the ignore value is a class's, or the values span too far, or
            `label_remap` names a class that there is not.
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
        self.n_classes = 255 if label_values is None else len(values)
        self.implicit = label_values is None
        if ignore_value is not None:
            values, classes = [*values, int(ignore_value)], [*classes, ignore_index(self.n_classes)]
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(
                f"label_values: every class (and ignore_value) needs a value of its own, {twice} is shared"
            )
        remap = {int(value): int(index) for value, index in (label_remap or {}).items()}  # JSON has texts as keys
        if strange := [index for index in remap.values() if not 0 <= index < self.n_classes]:
            raise ValueError(f"label_remap: expected class indices of 0 to {self.n_classes - 1}, found {strange[0]}")
        index_of = dict(zip(values, classes, strict=True)) | remap
        values = list(index_of)
        if not 1 <= self.n_classes <= 65535 or max(values) - min(values) > _MAX_SPAN:
            raise ValueError(
                f"label_values: expected 1 to 65535 classes within {_MAX_SPAN} values, found {value_ranges(values)}"
            )
        self.values, self.dtype = sorted(values), label_dtype(self.n_classes)
        # One slot more than the span: every value outside it is sent there.
        self._table = np.full(self.values[-1] - self.values[0] + 2, _UNKNOWN, dtype=np.int32)
        self._table[np.array(values) - self.values[0]] = list(index_of.values())

    def indices(self, array: np.ndarray, name: str) -> np.ndarray:
        """Return each voxel's class index for an (I, J, K) label map, in `dtype`, the memory order kept.

        Raises:
            VolumeError: values off the integers by more than `INTEGRAL_TOLERANCE`, or of no class, with their counts.
        """
        out = np.empty_like(array, dtype=self.dtype)
        unknown: Counter[int] = Counter()
        for k, values in enumerate(_integer_slices(array, name)):
            shifted = values - self.values[0]
            shifted[(shifted < 0) | (shifted >= len(self._table))] = len(self._table) - 1
            classes = self._table[shifted]
            if (missed := classes == _UNKNOWN).any():
                unknown.update(values[missed].tolist())
            out[:, :, k] = classes
        if unknown:
            raise VolumeError(self._complaint(unknown, name))
        return out

    def merge(
        self, shape: tuple[int, ...], masks: Sequence[tuple[int, Path]], arrays: Iterable[np.ndarray]
    ) -> np.ndarray:
        """Return one map of class indices from a mask per class; where masks overlap the later one wins.

        Raises:
            VolumeError: a class index outside the table, or a mask that holds more than 0 and one other value.
        """
        out = np.zeros(shape, dtype=self.dtype, order="F")
        n_overlapping = 0
        for (index, path), array in zip(masks, arrays, strict=True):
            if not 0 < index < self.n_classes:
                remedy = "; give label_values for more than 255 classes" if self.implicit else ""
                raise VolumeError(f"{path}: expected a class index of 1 to {self.n_classes - 1}, found {index}{remedy}")
            inside = _inside(array, str(path))
            n_overlapping += int(np.count_nonzero(out[inside]))
            out[inside] = index
        if n_overlapping:
            logger.debug("%d voxels lie in more than one of %d masks; the later class wins", n_overlapping, len(masks))
        return out

    def _complaint(self, unknown: Counter[int], name: str) -> str:
        found = ", ".join(f"{value} ({count} voxels)" for value, count in sorted(unknown.items())[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        remedy = "; map them to classes with label_values or label_remap, or repair the label"
        return f"{name}: expected the label values {value_ranges(self.values)}, found {found}{more}{remedy}"


def _inside(array: np.ndarray, name: str) -> np.ndarray:
    inside = np.empty_like(array, dtype=bool)
    positive: set[int] = set()
    for k, values in enumerate(_integer_slices(array, name)):
        inside[:, :, k] = values != 0
        positive.update(np.unique(values[inside[:, :, k]]).tolist())
        if len(positive) > 1:
            found = value_ranges(sorted(positive))
            raise VolumeError(f"{name}: expected a mask of 0 and one other value, found {found}")
    return inside


def _integer_slices(array: np.ndarray, name: str) -> Iterable[np.ndarray]:
    """Yield the label map slice by slice (small temporaries) as int64; refuse what is not integral, with its count."""
    n_off, example = 0, 0.0
    for k in range(array.shape[2]):
        values = array[:, :, k]
        if array.dtype.kind == "f":
            with np.errstate(invalid="ignore"):  # inf - inf; found below
                off = ~(np.abs(values - np.rint(values)) <= INTEGRAL_TOLERANCE)  # negated, so that NaN counts
            off |= np.abs(values) > 2**53  # beyond exact integers, and safe to cast below
            n_off, example = n_off + int(off.sum()), float(values[off][0]) if off.any() else example
            values = np.where(off, 0, np.rint(values))
        yield values.astype(np.int64)
    if n_off:
        raise VolumeError(
            f"{name}: expected integral label values, found {n_off} voxels that are not, {example:g} for one; "
            "a label must be resampled with nearest neighbour"
        )


def value_ranges(values: Sequence[int]) -> str:
    """Write a sorted list as ranges, at most a dozen: "0-24, 30, 207"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    words = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more ranges" if len(words) > 12 else "")
