"""Progress: a bar on a terminal, plain lines elsewhere, one call for both."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.console.progress import Bar, Progress, one_step


def count_to(n: int, progress: Progress) -> None:
    for done in range(1, n + 1):
        progress(done, n, "Counting", note=f"last was {done}")


def test_elsewhere_than_on_a_terminal_the_end_is_one_plain_line():
    text = io.StringIO()
    with Bar("Working", Console(file=text, width=80)) as bar:
        count_to(3, bar.update)
    assert text.getvalue() == "Counting: 3/3 last was 3\n"


def test_who_stops_something_long_is_told_how_far_it_came():
    bar = Bar("Checking", Console(file=io.StringIO()))
    bar.update(3, 10, "checking cases")
    with pytest.raises(KeyboardInterrupt) as stopped, bar:
        raise KeyboardInterrupt
    assert stopped.value.__notes__ == ["checking cases: 3/10 done"]


def test_a_terminal_sees_title_count_and_note_in_80_columns():
    text = io.StringIO()
    with Bar("Working", Console(file=text, force_terminal=True, width=80)) as bar:
        count_to(3, bar.update)
    assert "Counting" in text.getvalue()
    assert "3/3" in text.getvalue()
    assert "last was 3" in text.getvalue()


def test_a_part_of_a_step_gets_a_second_bar_that_never_goes_back():
    text = io.StringIO()
    with Bar("Working", Console(file=text, force_terminal=True, width=80)) as bar:
        bar.update(1, 2)
        bar.update_part("case_1", 0.5)
        bar.update_part("case_1", 0.25)
    assert "50%" in text.getvalue()
    assert "25%" not in text.getvalue()


def test_names_from_files_are_shown_as_they_are_and_steer_nothing():
    text = io.StringIO()
    with Bar("Working", Console(file=text, force_terminal=True, width=80)) as bar:
        bar.update(1, 2, "[red]case[/red]\x1b]0;title\x07", note="[bold]")
    assert "[red]case[/red]�]0;title" in text.getvalue()
    assert "[bold]" in text.getvalue()


def test_what_is_done_in_one_step_is_reported_before_and_after_and_not_as_done_where_it_fails():
    said = []
    with one_step(lambda *step: said.append(step), "preparing"):
        said.append("prepared")
    assert said == [(0, 1, "preparing"), "prepared", (1, 1, "preparing")]
    with pytest.raises(OSError, match="full"), one_step(lambda *step: said.append(step), "writing"):
        raise OSError("full")
    assert said[3:] == [(0, 1, "writing")]
    with one_step(None, "in silence"):
        pass
