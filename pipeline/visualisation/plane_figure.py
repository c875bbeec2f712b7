"""Lay planes of a volume out as one figure: true proportions, sides of the patient, positions, scale and a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from numpy.typing import NDArray

from pipeline.console.text import printable, shortened
from pipeline.visualisation.overlay import enlarged, overlay_slice
from pipeline.visualisation.planes import Plane

DPI = 100
"""Pixels of a figure's inch."""

_SIDE = (420, 1000)
"""Pixels of the longer side of a picture: voxels are drawn one by one in between."""

_FLAT = 0.5
"""A picture whose height is below this share of its width is a strip: it takes the width of the largest one."""

_LEAST_HEIGHT = 36
"""Pixels of a picture that two letters fit into, one above the other; those of a lower strip are in its caption."""

_GAP = 14
_HEADER = 58
_CAPTION = 24
_LEAST_WIDTH = 620
"""Pixels of a figure with strips at least: what two columns of a legend need."""

_WIDEST = 1700
"""Pixels of a row of pictures at most, unless voxels would be lost."""

_LEGEND_LINE = 20
_LEGEND_COLUMN = 300
_MOST_LINES = 20
_BARS_MM = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, eq=False)
class LegendEntry:
    """A structure that a figure shows."""

    name: str
    colour: NDArray[np.uint8]
    """(3,) red, green, blue, 0…255."""
    volume_ml: float | None = None
    """Of the whole structure; None: not said."""


@dataclass
class _Box:
    """Where a picture goes, in pixels from the figure's top left."""

    plane: Plane
    width: int
    height: int
    x: int = 0
    y: int = 0


def draw_planes(
    planes: Sequence[Plane],
    *,
    title: str,
    subtitle: str,
    legend: Sequence[LegendEntry],
    colours: NDArray[np.uint8],
    window: tuple[float, float],
) -> Figure:
    """Draw planes with their structures.

    Args:
        planes: see `planes.cut_planes`; drawn on their own pixels, or enlarged.
        title: the case.
        subtitle: what else there is to know about the picture.
        legend: what the planes show; the last ones are only counted where there are too many.
        colours: (n_classes, 3) from `class_colours`.
        window: intensities that are black and white.
    """
    boxes = _layout(planes)
    right = max(_LEAST_WIDTH, *(box.x + box.width for box in boxes))
    bottom = max(box.y + box.height for box in boxes)
    columns = max(1, (right + _GAP) // _LEGEND_COLUMN)
    lines = min(_MOST_LINES, math.ceil(len(legend) / columns))
    width, height = right + 2 * _GAP, _HEADER + bottom + _GAP + lines * _LEGEND_LINE + _GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    _text(figure, _GAP, 20, shortened(title, right // 11), size=13, weight="bold")
    _text(figure, _GAP, 42, shortened(subtitle, int(right / 6.6)), size=9, color="0.35")
    for box in boxes:
        _draw_box(figure, box, colours, window)
    _draw_legend(figure, legend, columns, lines, _HEADER + bottom + _GAP)
    return figure


def _layout(planes: Sequence[Plane]) -> list[_Box]:
    """Pictures of one height side by side; where some are strips, these beside or below the largest picture."""
    largest = max(planes, key=lambda plane: math.prod(plane.size_mm))
    flat = [p for p in planes if p is not largest and p.size_mm[0] < _FLAT * p.size_mm[1]]
    tall = [p for p in planes if p is not largest and p.size_mm[1] < _FLAT * p.size_mm[0]]
    beside = [plane for plane in planes if plane not in (*flat, *tall)]
    boxes = []
    side = max(_pixels(plane)[0] for plane in beside)
    across = sum(side * plane.size_mm[1] / plane.size_mm[0] for plane in [*beside, *tall])
    if across > _WIDEST:
        side = max(*(plane.image.shape[0] for plane in beside), round(side * _WIDEST / across))
    elif flat or tall:
        side = round(side * max(1.0, _LEAST_WIDTH / across))
    x = 0
    for plane in [*beside, *tall]:
        tall_mm, wide_mm = plane.size_mm
        boxes.append(_Box(plane, max(24, round(side * wide_mm / tall_mm)), side, x, _CAPTION))
        x += max(boxes[-1].width, 170) + _GAP
    y = side + _CAPTION
    full = x - _GAP
    for plane in map(_around_structures, flat):
        tall_mm, wide_mm = plane.size_mm
        boxes.append(_Box(plane, full, max(24, round(full * tall_mm / wide_mm)), 0, y + _GAP + _CAPTION))
        y = boxes[-1].y + boxes[-1].height
    return boxes


def _around_structures(plane: Plane) -> Plane:
    """A strip cut to the columns of its structures, with a tenth of them on both sides: so it is drawn larger."""
    used = np.flatnonzero((plane.label > 0).any(0))
    if not used.size:
        return plane
    extra = max(2, (int(used[-1]) - int(used[0]) + 1) // 10)
    return plane.part(np.s_[:], np.s_[max(0, int(used[0]) - extra) : int(used[-1]) + 1 + extra])


def _pixels(plane: Plane) -> tuple[int, int]:
    """Height and width of a picture, both in the same scale, so that no voxel is smaller than a pixel if that fits."""
    tall_mm, wide_mm = plane.size_mm
    scale = max(1 / min(plane.pixel_mm), _SIDE[0] / max(tall_mm, wide_mm))
    scale = min(scale, _SIDE[1] / max(tall_mm, wide_mm))
    return max(24, round(tall_mm * scale)), max(24, round(wide_mm * scale))


def _draw_box(figure: Figure, box: _Box, colours: NDArray[np.uint8], window: tuple[float, float]) -> None:
    size = (box.height, box.width)
    line = 2 if min(size) > 300 else 1
    picture = overlay_slice(enlarged(box.plane.image, size), enlarged(box.plane.label, size), colours, window, line)
    width, height = (figure.get_size_inches() * DPI).tolist()
    top = _HEADER + box.y
    # one pixel of the picture is one of the figure
    corner = ((_GAP + box.x) / width, 1 - (top + box.height) / height)
    axes = figure.add_axes((*corner, box.width / width, box.height / height))
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    letters: Sequence[str] = box.plane.letters
    caption = f"{box.plane.kind.name}   {box.plane.position}"
    if box.height < _LEAST_HEIGHT:
        caption, letters = f"{caption}   {letters[2]} above, {letters[3]} below", letters[:2]
    _text(figure, _GAP + box.x, top - 9, caption, size=9.5, color="0.15")
    edge = 0.5 * 16 / box.width, 0.5 * 16 / box.height
    places = ((edge[0], 0.5), (1 - edge[0], 0.5), (0.5, 1 - edge[1]), (0.5, edge[1]))
    for letter, (x, y) in zip(letters, places, strict=False):
        axes.text(
            x, y, letter, transform=axes.transAxes, ha="center", va="center", color="white", fontsize=10,
            weight="bold", path_effects=[withStroke(linewidth=2.5, foreground="black")],
        )  # fmt: skip
    _draw_bar(figure, box, top)


def _draw_bar(figure: Figure, box: _Box, top: int) -> None:
    """A scale bar of a round length at the picture's bottom left, outside of strips."""
    per_mm = box.width / box.plane.size_mm[1]
    length = max((mm for mm in _BARS_MM if mm * per_mm <= box.width / 3), default=None)
    if length is None or box.height < 60:
        return
    x, y = _GAP + box.x + 8, top + box.height - 10
    _rectangle(figure, x, y, (length * per_mm, 3), facecolor="white", edgecolor="black", linewidth=0.6)
    words = f"{length} mm" if length < 10 else f"{length // 10} cm"
    text = _text(figure, x, y - 10, words, size=8, color="white")
    text.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _draw_legend(figure: Figure, legend: Sequence[LegendEntry], columns: int, lines: int, top: int) -> None:
    most = columns * lines
    shown = list(legend[: most - 1 if len(legend) > most else most])
    for number, entry in enumerate(shown):
        x, y = _GAP + number // lines * _LEGEND_COLUMN, top + number % lines * _LEGEND_LINE
        _rectangle(figure, x, y + 14, (14, 14), facecolor=entry.colour / 255, edgecolor="0.3", linewidth=0.5)
        volume = "" if entry.volume_ml is None else f"   {volume_in_words(entry.volume_ml)}"
        _text(figure, x + 20, y + 8, f"{shortened(entry.name, 30)}{volume}", size=8.5)
    if len(shown) < len(legend):
        x, y = _GAP + (columns - 1) * _LEGEND_COLUMN, top + (lines - 1) * _LEGEND_LINE
        _text(figure, x + 20, y + 8, f"and {len(legend) - len(shown)} more", size=8.5, color="0.35")


def _rectangle(figure: Figure, x: float, y: float, size: tuple[float, float], **look: Any) -> None:
    """Draw a rectangle whose lower left corner is so many pixels from the figure's top left; size: width and height."""
    width, height = (figure.get_size_inches() * DPI).tolist()
    corner, size = (x / width, 1 - y / height), (size[0] / width, size[1] / height)
    figure.add_artist(Rectangle(corner, *size, transform=figure.transFigure, **look))


def _text(figure: Figure, x: float, y: float, words: str, *, size: float, **look: str) -> Text:
    width, height = (figure.get_size_inches() * DPI).tolist()
    text = figure.text(x / width, 1 - y / height, printable(words), fontsize=size, va="center", **look)  # type: ignore[arg-type]
    text.set_parse_math(False)  # a name may hold dollar signs
    return text


def volume_in_words(volume_ml: float) -> str:
    """A volume with three digits in a unit that fits it.

    >>> volume_in_words(1534.2), volume_in_words(2.954), volume_in_words(0.0042)
    ('1534 ml', '2.95 ml', '4.2 µl')
    """
    value, unit = (volume_ml, "ml") if volume_ml >= 0.1 or not volume_ml else (1000 * volume_ml, "µl")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
