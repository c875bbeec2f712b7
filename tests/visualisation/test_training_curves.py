"""Training curves: the lines drawn are the log's numbers, every point can be seen, every name fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.visualisation.training_curves import draw_curves
from tests.support.training_logs import a_log


def coloured_pixels(path: Path) -> int:
    """Count the pixels that are neither white, black nor grey: those of the curves."""
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB")).astype(int)
    return int((rgb.max(axis=2) - rgb.min(axis=2) > 60).sum())


def test_the_lines_are_the_logs_numbers_with_gaps_where_they_are_undefined():
    log = a_log(12, undefined=(0, 3, 4, 6))
    loss, miou, accuracy, rate = draw_curves(["run"], [log]).axes
    drawn = [*loss.lines, miou.lines[0], *accuracy.lines, *rate.lines]
    keys = ("train_loss", "val_loss", "val_mIoU", "train_accuracy", "learning_rate")
    for line, key in zip(drawn, keys, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(12))
        np.testing.assert_array_equal(line.get_ydata(), np.array(log.history[key], dtype=float))
    assert miou.lines[1].get_xydata().tolist() == [[log.best_epoch, log.best_val_miou]]


@pytest.mark.parametrize("n_epochs", [1, 100])
def test_a_lonely_point_is_visible(tmp_path, n_epochs):
    log = a_log(n_epochs, undefined=tuple(range(1, n_epochs)))
    with_point, without = (draw_curves(["x"], [each]) for each in (log, a_log(n_epochs, undefined=range(n_epochs))))
    without.axes[1].set_ylim(with_point.axes[1].get_ylim())
    pictures = []
    for number, figure in enumerate((with_point, without)):
        for axes in (figure.axes[0], figure.axes[2], figure.axes[3]):
            axes.set_visible(False)
        figure.savefig(tmp_path / f"{number}.png", format="png")
        pictures.append(coloured_pixels(tmp_path / f"{number}.png"))
    assert pictures[0] > pictures[1] + 10


def test_epochs_are_marked_with_whole_numbers():
    for n_epochs in (1, 2, 3, 40, 1000):
        figure = draw_curves(["x"], [a_log(n_epochs)])
        low, high = figure.axes[0].get_xlim()
        ticks = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
        assert ticks
        assert all(float(tick).is_integer() for tick in ticks)


@pytest.mark.parametrize("n_runs", [1, 3, 25])
def test_names_of_any_length_and_kind_stay_inside_the_picture(n_runs, tmp_path):
    names = [f"_{'a_very_long_name_' * 14}{i} $x^ [red] %" for i in range(n_runs)]
    figure = draw_curves(names, [a_log(3)] * n_runs)
    figure.savefig(tmp_path / "x.png", format="png")
    legend, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= legend.x0 < legend.x1 <= page.x1
    assert page.y0 <= legend.y0 < legend.y1 < min(axes.get_window_extent().y0 for axes in figure.axes)
    assert all(axes.get_window_extent().height > 200 for axes in figure.axes)
    assert len({text.get_text() for text in figure.legends[0].get_texts()}) == n_runs


def test_several_runs_share_the_axes_and_are_named():
    figure = draw_curves(["a", "b", "c"], [a_log(5), a_log(9), a_log(0)])
    assert len(figure.axes) == 4
    assert len({line.get_color() for line in figure.axes[2].lines}) == 3
    assert [text.get_text().split()[0] for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert "no finished epoch" in figure.legends[0].get_texts()[2].get_text()
