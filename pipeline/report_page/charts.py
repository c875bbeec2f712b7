"""Draw curves of trainings and distributions of scores as SVG, with the values of points where the mouse rests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.console.text import shortened
from pipeline.report_page.markup import text

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 34
_MOST_POINTS = 150
"""Points of a line that say their value; of a longer training every so many."""

_MOST_DOTS = 4000
"""Dots of a distribution; of more cases the quartiles are drawn."""

_ROW = 16
_NAMES = 190
_LONGEST_NAME = 28

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
    low, high = (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))
    last = max(1, *(x for x, _ in every))

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (WIDTH - _LEFT - _RIGHT) * x / last
        return round(across, 1), round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (high - y) / (high - low), 1)

    parts = [_axes(low, high, last)]
    for line, one in zip(lines, points, strict=True):
        path = " ".join(f"{'M' if n == 0 else 'L'}{x},{y}" for n, (x, y) in enumerate(place(*p) for p in one))
        dashes = ' stroke-dasharray="5 3"' if line.dashed else ""
        parts.append(f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="1.6"{dashes}/>')
        for epoch, value in one[:: max(1, len(one) // _MOST_POINTS)]:
            x, y = place(epoch, value)
            label = text(f"{line.name}, epoch {epoch}: {value:.5g}")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{line.colour}"><title>{label}</title></circle>')
    head = f'<figure><figcaption>{text(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    return f"{head}{''.join(parts)}</svg></figure>"


def _axes(low: float, high: float, last: int) -> str:
    parts = []
    for step in range(5):
        value = low + (high - low) * step / 4
        y = _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - step / 4)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.3g}</text>')
    for epoch in sorted({round(last * step / 5) for step in range(6)}):
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * epoch / last
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 16}" text-anchor="middle">{epoch}</text>')
    parts.append(f'<text x="{(_LEFT + WIDTH) / 2}" y="{HEIGHT - 2}" text-anchor="middle">epoch</text>')
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
    width, height = 860, _ROW * len(rows) + 34
    with_dots = sum(map(len, scores.values())) <= _MOST_DOTS
    parts = []
    for tenth in range(0, 11, 2):
        x = _across(tenth / 10, width)
        parts.append(f'<line x1="{x}" x2="{x}" y1="4" y2="{height - 26}" class="grid"/>')
        parts.append(f'<text x="{x}" y="{height - 10}" text-anchor="middle">{tenth / 10:.1f}</text>')
    for number, name in enumerate(rows):
        y = 12 + _ROW * number
        values = [score for _, score in scores[name]]
        low, middle, high = (_across(float(q), width) for q in np.percentile(values, (25, 50, 75)))
        shown = text(shortened(name, _LONGEST_NAME))
        parts.append(f'<text x="{_NAMES - 8}" y="{y + 4}" text-anchor="end">{shown}</text>')
        parts.append(f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" class="quartiles"/>')
        if with_dots:
            for case, score in scores[name]:
                label = text(f"{name}, {case}: {score:.4f}")
                parts.append(
                    f'<circle cx="{_across(score, width)}" cy="{y}" r="3.5" fill="{colours.get(name, "#888")}" '
                    f'class="dot"><title>{label}</title></circle>'
                )
        label = text(f"{name}: median {np.median(values):.4f} of {len(values)} cases")
        parts.append(
            f'<line x1="{middle}" x2="{middle}" y1="{y - 6}" y2="{y + 6}" class="median"><title>{label}</title></line>'
        )
    return f'<svg viewBox="0 0 {width} {height}" class="wide" role="img">{"".join(parts)}</svg>'


def _across(score: float, width: int) -> float:
    return round(_NAMES + (width - _NAMES - 20) * score, 1)
