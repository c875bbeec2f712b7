"""Lines that are as they were written, whatever became of the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import checked_lines
from pipeline.files.checked_lines import append_line, checked_line, whole_lines

TEXTS = ["one", "", '{"a": [1, 2]}', "00000000 four"]


def test_what_was_appended_is_read_back(tmp_path):
    for text in TEXTS:
        append_line(tmp_path / "x", text)
    assert list(whole_lines(tmp_path / "x")) == TEXTS
    with pytest.raises(FileNotFoundError):
        list(whole_lines(tmp_path / "y"))


@given(st.data())
def test_no_altered_byte_is_believed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("lines") / "x"
    whole = b"".join(map(checked_line, TEXTS))
    position = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[position]))
    path.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
    hit = whole[:position].count(b"\n")
    glued = whole[position : position + 1] == b"\n"  # with the next line, which is lost, too
    assert list(whole_lines(path)) == [*TEXTS[:hit], *TEXTS[hit + 1 + glued :]]


def test_a_torn_line_costs_itself_alone(tmp_path):
    (tmp_path / "x").write_bytes(checked_line("one")[:-2] + b"\n" + checked_line("two") + checked_line("three")[:-1])
    assert list(whole_lines(tmp_path / "x")) == ["two"]


def test_a_file_that_has_become_too_large_keeps_its_newer_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(checked_lines, "LARGEST_FILE", 50)
    for text in ("first", "second", "third", "fourth", "fifth"):
        append_line(tmp_path / "x", text)
    assert list(whole_lines(tmp_path / "x")) == ["third", "fourth", "fifth"]
