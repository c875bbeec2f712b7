"""The colour of every class, the same in every picture, file and page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.visualisation.anatomy_colours import TABLE, Colour, colours_by_words, name_words
from pipeline.visualisation.colour_distance import VISIONS, ciede2000, lab
from transforms.left_right import find_sides

FEWER_CONES = 2.0
"""How much more a distance counts where one kind of cone is missing: such eyes have fewer colours to tell apart."""

_USED = 0.5
"""Distance below which two colours are the same one; the table's differ by more."""

_STEPS = range(0, 256, 23)
_LIGHTNESS = (30, 96)  # of colours beyond the table: darker ones look like air, lighter ones like bone
_LEAST_CHROMA = 10  # greyer ones look like the scan


def class_colours(class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Give every class a colour; which one follows from the names alone.

    Known anatomy has the colour of `anatomy_colours.TABLE` in every data set. Any other name takes a colour of the
    table that no class has, as far as can be from those in use: the table's smallest distance holds for any names, up
    to as many as it has. A left and a right structure take shades of one hue while there are such pairs.

    Args:
        class_names: `class_names[0]` is the background.

    Returns:
        (n_classes, 3) RGB, 0…255; the background is black.
    """
    return np.array(_colours(tuple(class_names)), np.uint8).reshape(-1, 3)


@lru_cache(maxsize=32)
def _colours(class_names: tuple[str, ...]) -> tuple[Colour, ...]:
    sides = find_sides(class_names)
    side_of = {index: "left" for index, _ in sides.pairs} | {index: "right" for _, index in sides.pairs}
    partners = sides.partners(len(class_names))
    found: dict[int, Colour] = {0: (0, 0, 0)}
    for index, name in enumerate(class_names[1:], start=1):
        words = name_words(name)
        if index in side_of:
            words = (words & name_words(class_names[partners[index]])) | {side_of[index]}
        candidates = (words, words | {"right"}, words | {"left"})
        known = (colours_by_words().get(key) for key in candidates)
        colour = next((one for one in known if one is not None and one not in found.values()), None)
        if colour is not None:
            found[index] = colour
    free = _FreeColours([colour for index, colour in found.items() if index])
    for left, right in sides.pairs:
        if left not in found and right not in found and (pair := free.pair()):
            found[left], found[right] = pair
    for index in range(1, len(class_names)):
        if index not in found:
            found[index] = free.next()
    return tuple(found[index] for index in range(len(class_names)))


class _FreeColours:
    """The colours that no class has yet: those of the table, and when it is used up a grid of all colours."""

    def __init__(self, used: Sequence[Colour]) -> None:
        self._take_from(list(TABLE.values()), used)

    def _take_from(self, colours: Sequence[Colour], used: Sequence[Colour]) -> None:
        self._colours = list(colours)
        self._seen = [(1.0 if vision == "normal" else FEWER_CONES, lab(colours, vision), vision) for vision in VISIONS]
        self._nearest = np.full(len(colours), np.inf)
        for colour in used:
            self._use(colour)

    def _use(self, colour: Colour) -> None:
        for weight, seen, vision in self._seen:
            self._nearest = np.minimum(self._nearest, weight * ciede2000(lab(colour, vision), seen))

    def next(self) -> Colour:
        """The colour that is farthest from all in use; of equals the first."""
        if self._nearest.max() < _USED and len(self._colours) == len(TABLE):
            self._take_from(_grid(), list(TABLE.values()))
        colour = self._colours[int(np.argmax(self._nearest))]
        self._use(colour)
        return colour

    def pair(self) -> tuple[Colour, Colour] | None:
        """The free colours of a left and a right structure of the table that are farthest from all in use, if any."""
        best = max(_table_pairs(), key=lambda pair: self._nearest[list(pair)].min())
        if self._nearest[list(best)].min() < _USED:
            return None
        left, right = self._colours[best[0]], self._colours[best[1]]
        self._use(left)
        self._use(right)
        return left, right


@lru_cache(maxsize=1)
def _table_pairs() -> tuple[tuple[int, int], ...]:
    names = list(TABLE)
    return tuple(pair for pair in find_sides(names).pairs if not names[pair[0]].startswith("heart"))


@lru_cache(maxsize=1)
def _grid() -> list[Colour]:
    colours = np.array(list(itertools.product(_STEPS, repeat=3)), np.uint8)
    lightness, a, b = np.moveaxis(lab(colours), -1, 0)
    kept = (lightness >= _LIGHTNESS[0]) & (lightness <= _LIGHTNESS[1]) & (np.hypot(a, b) >= _LEAST_CHROMA)
    return [(int(red), int(green), int(blue)) for red, green, blue in colours[kept]]
