"""The figure of a case: its pictures have true proportions and whole voxels, and the legend says what they show."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from pipeline.visualisation.class_colours import class_colours
from pipeline.visualisation.plane_figure import LegendEntry, draw_planes
from pipeline.visualisation.planes import cut_planes

NAMES = ["background", *(f"structure {number}" for number in range(1, 60))]


def figure_of(shape, spacing_mm, names=NAMES[:2], title="case"):
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(n // 4, max(n // 4 + 1, 3 * n // 4)) for n in shape)] = 1
    planes = cut_planes(label.astype(float), label, np.diag([*spacing_mm, 1.0]), -1.0)
    colours = class_colours(names)
    legend = [LegendEntry(name, colours[1], 12.3) for name in names[1:]]
    figure = draw_planes(
        planes, title=title, subtitle="facts", legend=legend, colours=colours, window=(0, 2),
    )  # fmt: skip
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, canvas


def pictures(figure):
    """Height and width in pixels, top and left of each picture."""
    boxes = [axes.get_window_extent() for axes in figure.axes]
    return [(box.height, box.width, figure.bbox.height - box.y1, box.x0) for box in boxes]


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((64, 64, 30), (1, 1, 3)), ((40, 50, 60), (0.5, 0.5, 0.5)), ((300, 280, 8), (0.7, 0.7, 5)),
     ((6, 90, 90), (4, 1, 1))],
)  # fmt: skip
def test_pictures_have_true_proportions_and_no_voxel_is_lost(shape, spacing_mm):
    figure, _ = figure_of(shape, spacing_mm)
    for axes in figure.axes:
        (picture,) = axes.get_images()
        pixels = picture.get_array().shape
        box = axes.get_window_extent()
        assert (round(box.height), round(box.width)) == pixels[:2]  # a pixel of the picture is one of the file
    assert len(figure.axes) == 3


def test_a_cube_is_square_in_all_planes_and_a_slab_has_its_strips_below():
    figure, _ = figure_of((40, 40, 40), (1, 1, 1))
    assert all(height == pytest.approx(width, abs=1) for height, width, _, _ in pictures(figure))
    figure, _ = figure_of((200, 200, 6), (1, 1, 3))
    axial, coronal, sagittal = pictures(figure)
    assert axial[0] > 500
    assert coronal[2] > axial[2] + axial[0]
    assert sagittal[2] > coronal[2] + coronal[0]
    assert all(strip[1] == pytest.approx(axial[1], abs=1) for strip in (coronal, sagittal))
    assert all(strip[0] > 40 for strip in (coronal, sagittal))


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_sides_positions_names_and_volumes_are_written_and_stay_inside():
    figure, canvas = figure_of((40, 44, 48), (1, 1, 1), title="case $x_1$ \x1b[2J")
    found = texts(figure)
    assert {"R", "L", "A", "P", "S", "I"} <= set(found)
    assert "axial   S 24.0 mm" in found
    assert "structure 1   12.3 ml" in found
    assert "1 cm" in found
    assert any(text.startswith("case $x_1$ \N{REPLACEMENT CHARACTER}") for text in found)
    width, height = canvas.get_width_height()
    for text in figure.findobj(Text):
        if text.get_text():
            box = text.get_window_extent()
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, text.get_text()


@pytest.mark.parametrize(("n_slices", "in_caption"), [(6, False), (2, True)])
def test_strips_say_all_their_sides_too(n_slices, in_caption):
    figure, _ = figure_of((200, 200, n_slices), (1, 1, 3))
    found = texts(figure)
    captions = [text for text in found if text.endswith("S above, I below")]
    assert len(captions) == 2 * in_caption  # coronal and sagittal
    assert [found.count(letter) for letter in "RLAPSI"] == [2, 2, 2, 2, *([0, 0] if in_caption else [2, 2])]


def test_a_long_legend_counts_what_it_leaves_out():
    figure, _ = figure_of((40, 40, 6), (1, 1, 3), names=[*NAMES[:40], *(f"more {n}" for n in range(100))])
    shown = [text for text in texts(figure) if text.startswith(("structure", "more"))]
    assert f"and {139 - len(shown)} more" in texts(figure)
