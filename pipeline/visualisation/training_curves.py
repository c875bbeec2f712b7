"""Draw the training histories of runs: loss, validation mIoU, accuracy and learning rate against the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.console.text import shortened
from pipeline.runs.history import TrainingLog

LineStyle = Literal["-", "--"]
Fill = Literal["full", "none"]

PANELS: tuple[tuple[str, dict[str, tuple[LineStyle, Fill]]], ...] = (
    ("loss", {"train_loss": ("--", "none"), "val_loss": ("-", "full")}),
    ("validation mIoU", {"val_mIoU": ("-", "full")}),
    ("training accuracy", {"train_accuracy": ("-", "full")}),
    ("learning rate", {"learning_rate": ("-", "full")}),
)
"""Title of each panel, and the arrays it shows with the look of their lines and markers."""
MANY_EPOCHS = 60
"""Above this many epochs every point having a marker would hide the line."""
LONGEST_NAME = 100
"""Characters of a run's name that fit the figure's width."""
LABEL_OF_HALF_WIDTH = 72
"""Characters of a label beside which a second one fits."""


def draw_curves(names: Sequence[str], logs: Sequence[TrainingLog]) -> Figure:
    """Draw the histories of the named runs on four common panels; undefined values are gaps in the lines.

    Args:
        names: of the runs, in the legend.
        logs: their histories, at least one with an epoch.
    """
    labels = [f"{shortened(name, LONGEST_NAME)}  {_headline(log)}" for name, log in zip(names, logs, strict=True)]
    columns = 2 if len(labels) > 3 and max(map(len, labels)) <= LABEL_OF_HALF_WIDTH else 1
    # a Figure of its own, not pyplot's: no global state, no window system, and a notebook's backend stays as it is
    figure = Figure(figsize=(11.0, 7.6 + 0.24 * math.ceil(len(labels) / columns)), layout="constrained")
    colours = _colours(len(logs))
    n_epochs = max(map(len, logs))
    for axes, (title, series) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for log, colour in zip(logs, colours, strict=True):
            for key, (style, fill) in series.items():
                _draw_series(
                    axes, log, key, mark_all=n_epochs <= MANY_EPOCHS, linestyle=style, fillstyle=fill, color=colour
                )
        _finish_panel(axes, title, series, n_epochs)
    _mark_best(figure.axes[1], logs, colours)
    _name_runs(figure, labels, colours, columns)
    return figure


def _colours(n: int) -> list[Any]:
    """Ten colours that are easy to tell apart; beyond ten runs, steps along one map."""
    return [colormaps["tab10"](i) if n <= 10 else colormaps["turbo"](i / (n - 1)) for i in range(n)]


def _draw_series(axes: Axes, log: TrainingLog, key: str, *, mark_all: bool, **look: Any) -> None:
    values = [math.nan if value is None else value for value in log.history[key]]
    marked = [i for i in range(len(values)) if mark_all or not _has_neighbour(values, i)]
    axes.plot(log.history["epoch"], values, linewidth=1.5, marker="o", markersize=4, markevery=marked, **look)


def _has_neighbour(values: Sequence[float], i: int) -> bool:
    """Whether a line is drawn to or from point i; without one it takes a marker to be seen."""
    return any(math.isfinite(values[j]) for j in (i - 1, i + 1) if 0 <= j < len(values))


def _finish_panel(axes: Axes, title: str, series: dict[str, tuple[LineStyle, Fill]], n_epochs: int) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("epoch")
    margin = max(0.5, 0.03 * n_epochs)
    axes.set_xlim(-margin, n_epochs - 1 + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        looks = [
            Line2D([], [], color="0.3", linestyle=style, marker="o", markersize=4, fillstyle=fill)
            for style, fill in series.values()
        ]
        axes.legend(looks, ["training", "validation"], fontsize=9)


def _mark_best(axes: Axes, logs: Sequence[TrainingLog], colours: Sequence[Any]) -> None:
    for log, colour in zip(logs, colours, strict=True):
        if log.best_epoch is not None and log.best_val_miou is not None:
            axes.plot(log.best_epoch, log.best_val_miou, "*", color=colour, markersize=13, markeredgecolor="white")


def _name_runs(figure: Figure, labels: Sequence[str], colours: Sequence[Any], columns: int) -> None:
    lines = [Line2D([], [], color=colour, linewidth=3) for colour in colours]
    legend = figure.legend(lines, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a run name may hold dollar signs


def _headline(log: TrainingLog) -> str:
    if not len(log):
        return "(no finished epoch)"
    return "" if log.best_val_miou is None else f"(best mIoU {log.best_val_miou:.4f}, epoch {log.best_epoch})"
