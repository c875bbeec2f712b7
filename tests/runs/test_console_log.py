"""console.log: what was said stands in it, it never grows beyond its bound, and no disk ends anything by it."""

from __future__ import annotations

import logging

import pytest

from pipeline.runs.console_log import ConsoleLog


def begun(path, most_bytes=10_000):
    log = ConsoleLog(path, most_bytes)
    log.begin()
    return log


def test_what_was_said_before_the_folder_was_ready_stands_first(tmp_path):
    path, said = tmp_path / "console.log", []
    log = ConsoleLog(path)
    say = log.beside(said.append)
    say("Setting up data...")
    assert not path.exists()
    log.begin()
    say("case \x1b[2Jx")
    _, *lines = path.read_text().splitlines()
    assert lines == ["Setting up data...", "case \N{REPLACEMENT CHARACTER}[2Jx"]
    assert said == ["Setting up data...", "case \x1b[2Jx"]


def test_a_second_start_is_written_below_the_first_and_below_half_a_line(tmp_path):
    path = tmp_path / "console.log"
    begun(path).line("one")
    with path.open("a") as file:
        file.write("Epoch 3 lo")
    begun(path).line("two")
    lines = path.read_text().splitlines()
    assert [lines[1], lines[2], lines[4]] == ["one", "Epoch 3 lo", "two"]


def test_the_file_keeps_the_newest_lines_whole_within_its_bound(tmp_path):
    path = tmp_path / "console.log"
    log = begun(path, most_bytes=2_000)
    for number in range(1_000):
        log.line(f"Epoch {number} größer")
        assert path.stat().st_size <= 2_000
    first, *lines = path.read_text().splitlines()
    assert first == "(earlier lines were left out)"
    assert lines == [f"Epoch {number} größer" for number in range(1_000 - len(lines), 1_000)]
    assert len(lines) > 40
    log.line("x" * 10_000)
    assert path.stat().st_size <= 2_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["console.log"]


def test_warnings_and_the_reason_of_an_early_end_are_kept(tmp_path):
    path = tmp_path / "console.log"
    log = begun(path)

    def end_early():
        logging.getLogger("pipeline.x").warning("the scale fell to %g", 0.5)
        logging.getLogger("pipeline.x").info("not shown, not kept")
        raise ValueError("no memory\nat all")

    with log.recording(), pytest.raises(ValueError, match="no memory"):
        end_early()
    with pytest.raises(ValueError, match="no memory"), log.recording():
        end_early()
    logging.getLogger("pipeline.x").warning("after it")
    assert path.read_text().splitlines()[1:] == [
        *["WARNING pipeline.x: the scale fell to 0.5"] * 2,
        "The training ended early: no memory at all",
    ]


@pytest.mark.parametrize("place", ["/dev/full", "/proc/nowhere/console.log", None])
def test_a_disk_that_refuses_ends_nothing(place, tmp_path):
    path = None
    if place is not None:
        path = tmp_path / "console.log"
        path.symlink_to(place)
    log = begun(path)
    log.line("x" * 100)
