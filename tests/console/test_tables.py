"""Tables fit the screen and lose nothing."""

from __future__ import annotations

import pytest

from pipeline.console.tables import wrapped

ROWS = [["data.patch_growth", "[[16, 24, 16, 5, 33], [24, 32, 24, 3, 23]]", "small patches first, in equal shares"]]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_is_as_wide_as_the_screen_and_holds_every_letter(width):
    table = wrapped(("setting", "value", "because"), ROWS, width)
    lines = table.splitlines()
    assert max(map(len, lines)) <= width
    assert sorted("".join(lines[2:]).replace(" ", "")) == sorted("".join(ROWS[0]).replace(" ", ""))


def test_no_cell_steers_the_terminal():
    assert "\x1b" not in wrapped(("run",), [["liver\x1b[2J"]], 40)
