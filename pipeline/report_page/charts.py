"""Draw curves of trainings and distributions of scores as SVG; every point has its value as a title."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.console.text import shortened
from pipeline.report_page.markup import text

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 34
_LEAST_DIFFERENCE = 1e-9  # of values, as a share of them, that makes a scale
_MOST_POINTS = 150
"""Points of a line that say their value; of a longer training every so many."""

_MOST_SEEN = 40
"""Points of a line that are drawn as dots; those of a longer one are there for the mouse alone."""

_MOST_DOTS = 4000
"""Dots of a distribution; of more cases the quartiles are drawn."""

_ROW, _HIGH_ROW = 16, 42
"""Height of a structure's row: the larger one, of pages with few structures, has lanes for many cases."""

_FEW_ROWS = 12
_LANE = 6.0
"""How far the dots of a row lie apart, so that equal scores are not one dot."""

_NAMES = 190
_LONGEST_NAME = 28
_WIDE = 860

RUN_COLOURS = (
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#17becf",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
)


class Line(NamedTuple):
    """One series of a chart."""

    name: str
    values: Sequence[float | None]
    """One an epoch; None and NaN are gaps."""
    colour: str
    dashed: bool = False
    best: int | None = None
    """The epoch that is marked; None: no epoch."""


def curves(title: str, epochs: Sequence[Sequence[int]], lines: Sequence[Line]) -> str:
    """A chart of values by epoch; "" where no value is finite.

    Args:
        title: what the values are.
        epochs: of each line.
        lines: the series.
    """
    points = [
        [(x, float(y)) for x, y in zip(xs, line.values, strict=True) if y is not None and math.isfinite(y)]
        for xs, line in zip(epochs, lines, strict=True)
    ]
    every = [point for one in points for point in one]
    if not every:
        return ""
    low, high = min(y for _, y in every), max(y for _, y in every)
    differ = high - low > _LEAST_DIFFERENCE * max(abs(low), abs(high))
    low, high = (low, high) if differ else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))
    heights = _ticks(low, high)
    low, high = heights[0], heights[-1]
    last = max(1, *(x for x, _ in every))

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (WIDTH - _LEFT - _RIGHT) * x / last
        return round(across, 1), round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (high - y) / (high - low), 1)

    parts = [_axes([(place(0, y)[1], y) for y in heights], [(place(x, low)[0], x) for x in _epochs(last)])]
    for line, one in zip(lines, points, strict=True):
        path = " ".join(f"{'M' if n == 0 else 'L'}{x},{y}" for n, (x, y) in enumerate(place(*p) for p in one))
        dashes = ' stroke-dasharray="5 3"' if line.dashed else ""
        parts.append(f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="1.6"{dashes}/>')
        kind = "point" if len(one) <= _MOST_SEEN else "point unseen"
        for epoch, value in one[:: max(1, len(one) // _MOST_POINTS)]:
            x, y = place(epoch, value)
            label = text(f"{line.name}, epoch {epoch}: {value:.5g}")
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="2.5" fill="{line.colour}" class="{kind}"><title>{label}</title></circle>'
            )
        parts += [_ring(*place(*point), line.colour) for point in one if point[0] == line.best]
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">{"".join(parts)}</svg>'
    return f'<figure class="chart by-epoch"><figcaption>{text(title)}</figcaption>{svg}</figure>'


def _ring(x: float, y: float, colour: str) -> str:
    return f'<path d="M{x - 6},{y} a6,6 0 1,0 12,0 a6,6 0 1,0 -12,0" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from one below to one above, at most `most` steps apart.

    >>> _ticks(0.213, 1.16)
    [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = power * next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, max(last, first + 1) + 1)]


def _epochs(last: int) -> list[int]:
    """Whole numbers up to the last epoch.

    >>> _epochs(7), _epochs(1999)
    ([0, 2, 4, 6], [0, 500, 1000, 1500])
    """
    return [int(epoch) for epoch in _ticks(0, last) if epoch <= last and epoch == int(epoch)]


def _axes(heights: Sequence[tuple[float, float]], epochs: Sequence[tuple[float, int]]) -> str:
    """Lines and numbers; both are (place, number)."""
    parts = []
    for y, value in heights:
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.6g}</text>')
    for x, epoch in epochs:
        parts.append(f'<text x="{x}" y="{HEIGHT - 18}" text-anchor="middle">{epoch}</text>')
    parts.append(f'<text x="{(_LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">epoch</text>')
    return "".join(parts)


def distribution(scores: Mapping[str, Sequence[tuple[str, float]]], colours: Mapping[str, str]) -> str:
    """Dice of every case by structure, the worst structure first.

    Args:
        scores: by structure, (case, Dice) of the cases whose label holds it.
        colours: of the structures.
    """
    rows = sorted(
        (name for name in scores if scores[name]), key=lambda name: float(np.mean([s for _, s in scores[name]]))
    )
    if not rows:
        return ""
    row = _HIGH_ROW if len(rows) <= _FEW_ROWS else _ROW
    height = row * len(rows) + 44
    with_dots = sum(map(len, scores.values())) <= _MOST_DOTS
    parts = []
    for tenth in range(0, 11, 2):
        x = _across(tenth / 10)
        parts.append(f'<line x1="{x}" x2="{x}" y1="4" y2="{height - 38}" class="grid"/>')
        parts.append(f'<text x="{x}" y="{height - 24}" text-anchor="middle">{tenth / 10:.1f}</text>')
    parts.append(f'<text x="{_across(0.5)}" y="{height - 8}" text-anchor="middle">Dice</text>')
    for number, name in enumerate(rows):
        y = 4 + row * (number + 0.5)
        dots = _dots(name, scores[name], y, row, colours.get(name, "#888")) if with_dots else []
        parts += _row(name, [score for _, score in scores[name]], y, row, dots)
    head = f'<figure class="chart wide"><svg viewBox="0 0 {_WIDE} {height}" role="img" aria-label="Dice by structure">'
    return f"{head}{''.join(parts)}</svg></figure>"


def _row(name: str, values: Sequence[float], y: float, height: float, dots: Sequence[str]) -> list[str]:
    """The structure's name, a box between its quartiles, the dots on it, and on these the median."""
    low, middle, high = (_across(float(q)) for q in np.percentile(values, (25, 50, 75)))
    top, tall = y - height / 2 + 4, height - 8
    shown = text(shortened(name, _LONGEST_NAME))
    label = text(f"{name}: median {np.median(values):.4f} of {len(values)} cases")
    return [
        f'<text x="{_NAMES - 10}" y="{y + 4}" text-anchor="end">{shown}</text>',
        f'<rect x="{low}" y="{top}" width="{round(high - low, 1)}" height="{tall}" class="quartiles"/>',
        *dots,
        f'<line x1="{middle}" x2="{middle}" y1="{top - 2}" y2="{top + tall + 2}" class="median"><title>{label}</title>'
        "</line>",
    ]


def _dots(name: str, scores: Sequence[tuple[str, float]], y: float, row: float, colour: str) -> list[str]:
    """A dot a case: in the middle of the row, or in a lane beside it where the middle is taken."""
    n_lanes = max(1, int((row - 8) / _LANE))
    offsets = [_LANE * ((lane + 1) // 2) * (1 if lane % 2 else -1) for lane in range(n_lanes)]
    taken = [-math.inf] * n_lanes
    parts = []
    for case, score in sorted(scores, key=lambda one: one[1]):
        x = _across(score)
        lane = next((lane for lane, end in enumerate(taken) if x - end >= _LANE), int(np.argmin(taken)))
        taken[lane] = x
        label = text(f"{name}, {case}: {score:.4f}")
        place = f'cx="{x}" cy="{y + offsets[lane]:g}" r="3" fill="{colour}"'
        parts.append(f'<circle {place} class="dot"><title>{label}</title></circle>')
    return parts


def _across(score: float) -> float:
    return round(_NAMES + (_WIDE - _NAMES - 20) * score, 1)
