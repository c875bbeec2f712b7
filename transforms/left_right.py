"""Which classes are the left and the right of a pair, and how a mirrored label map becomes true again.

Knows class names and class indices. Which voxel holds which class is read in `transforms.load` and resized in
`transforms.resize`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform
from torch import Tensor

OTHER_SIDE = {"left": "right", "right": "left"}


def sided_pairs(class_names: Sequence[str]) -> tuple[int, ...]:
    """Class index of each class's partner on the other side of the body; its own index where it has no side.

    Sided are names with "left" or "right" as a word of their own, in any case, anywhere: kidney_left, rib_left_1,
    "Left kidney". `class_names[i]` names class i, background included.

    Raises ValueError that names a sided class whose partner is missing or double.
    """
    words = [tuple(re.findall(r"[^\W_]+", name.lower())) for name in class_names]
    partners = []
    for index, name in enumerate(class_names):
        mirrored = tuple(OTHER_SIDE.get(word, word) for word in words[index])
        found = [other for other, candidate in enumerate(words) if candidate == mirrored]
        if mirrored == words[index]:
            partners.append(index)
        elif len(found) == 1:
            partners.append(found[0])
        else:
            wanted = "_".join(mirrored)
            count = "no class" if not found else f"{len(found)} classes"
            raise ValueError(f"class {index} {name!r} has a side, but {count} named {wanted!r} stands beside it")
    return tuple(partners)


def swap_sides(label: Tensor, partners: Sequence[int]) -> Tensor:
    """Give every voxel the class of its partner (see `sided_pairs`); values beyond the list (ignore) stay.

    `label`: any shape, uint8, uint16 or int32 with values to 65535; returns the same.
    """
    n_values = 256 if label.dtype == torch.uint8 else 65536  # int32 labels are uint16 ones in a dtype torch can index
    table = torch.arange(n_values, dtype=torch.int32)
    table[: len(partners)] = torch.tensor(partners, dtype=torch.int32)
    swapped = table.to(label.device).index_select(0, label.flatten().int())
    return swapped.reshape(label.shape).to(label.dtype)


class SwapSidedClassesd(MapTransform):
    """`swap_sides` as a dictionary transform: what makes a mirrored label anatomically true again."""

    def __init__(self, keys: str | Sequence[str], class_names: Sequence[str], *, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.partners = sided_pairs(class_names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = swap_sides(d[key], self.partners)
        return d


def sided_classes(class_names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return (left, right) class indices of names that differ in nothing else; a side without partner is no pair."""
    words = [tuple(re.findall(r"[^\W_]+", name.lower())) for name in class_names]
    index_of = {word: index for index, word in enumerate(words)}
    pairs = []
    for index, word in enumerate(words):
        other = index_of.get(tuple(OTHER_SIDE.get(part, part) for part in word))
        if "left" in word and other not in (None, index):
            pairs.append((index, other))
    return tuple(pairs)
