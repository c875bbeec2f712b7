"""Tables fit the screen and lose nothing."""

from __future__ import annotations

import pytest

from pipeline.console.tables import in_parts, wrapped
from tests.support.notebook import in_a_notebook

ROWS = [["data.patch_growth", "[[16, 24, 16, 5, 33], [24, 32, 24, 3, 23]]", "small patches first, in equal shares"]]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_is_as_wide_as_the_screen_and_holds_every_letter(width):
    table = wrapped(("setting", "value", "because"), ROWS, width)
    lines = table.splitlines()
    assert max(map(len, lines)) <= width
    assert sorted("".join(lines[2:]).replace(" ", "")) == sorted("".join(ROWS[0]).replace(" ", ""))


def test_a_table_is_the_same_text_in_a_notebook(monkeypatch):
    text = wrapped(("setting", "value", "because"), ROWS, 40)
    in_a_notebook(monkeypatch)
    assert wrapped(("setting", "value", "because"), ROWS, 40) == text


def test_no_cell_steers_the_terminal():
    assert "\x1b" not in wrapped(("run",), [["liver\x1b[2J"]], 40)


@pytest.mark.parametrize("width", [40, 60, 80, 200, None])
def test_a_table_in_parts_has_every_number_whole_beside_the_name_of_its_row(width):
    headings = ["structure", *(f"score\n{n}" for n in range(12)), "nothing"]
    rows = [[name, *(f"{n}.{r}000" for n in range(12)), ""] for r, name in enumerate(("liver", "lung_lower_left"))]
    text = in_parts(headings, rows, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= (width or 200)
    assert "nothing" not in text
    for row in rows:
        found = [cell for line in lines if line.startswith(row[0]) for cell in line.split()[1:]]
        assert found == row[1:-1]


def test_a_name_that_leaves_no_room_for_numbers_is_cut_in_its_middle():
    text = in_parts(["structure", "Dice"], [["a" * 60 + "_left", "0.9000"]], 30)
    assert max(map(len, text.splitlines())) <= 30
    assert "…" in text
    assert "_left" in text
    assert "0.9000" in text


def test_names_that_differ_in_their_middle_alone_are_cut_around_it():
    rows = [(f"left_upper_{n}_lobe_of_lung", "0.5") for n in (1, 2)]
    names = [line.split()[0] for line in in_parts(("class", "Dice"), rows, 20).splitlines()[2:]]
    assert len(names) == len(set(names)) == 2
    assert all(f"_{n}_" in name for n, name in enumerate(names, start=1))


def test_a_table_without_rows_has_its_headings():
    assert in_parts(["structure", "Dice"], [], 30).splitlines()[0] == "structure"
