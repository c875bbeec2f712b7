"""The colour table has a line a class that 3D Slicer reads."""

from __future__ import annotations

from pipeline.visualisation.class_colours import class_colours
from pipeline.writers.colour_table import colour_table


def test_every_class_has_a_line_of_one_word_colour_and_opacity():
    lines = [line.split() for line in colour_table(["background", "left lung", "left_lung"]).splitlines()[1:]]
    assert [line[0] for line in lines] == ["0", "1", "2"]
    assert [line[1] for line in lines] == ["background", "left_lung", "left_lung_2"]
    assert [[int(part) for part in line[2:5]] for line in lines] == class_colours(
        ["background", "left lung", "left_lung"]
    ).tolist()
    assert [line[5] for line in lines] == ["0", "255", "255"]
