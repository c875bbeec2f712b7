"""Text for people: what is printed says what is there, and steers no terminal."""

from __future__ import annotations

import itertools
import math
import unicodedata

import pytest

from pipeline.console.text import (
    aligned,
    fitted,
    four_digits,
    gigabytes,
    number,
    printable,
    shortened,
    shortened_apart,
    some_of,
    volume_unit,
    words,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("liver\x1b[2J", "liver�[2J"),
        ("a\nb\tc\rd", "a�b�c�d"),
        ("\x9b31m", "�31m"),
        ("\u202ecod.txt\u202c", "�cod.txt�"),
        ("\u2066left\u2069", "�left�"),
        ("caf\udce9", "caf�"),
        ("Leber (größte), 肝臓, کبد، نیم\u200cفاصله", "Leber (größte), 肝臓, کبد، نیم\u200cفاصله"),
    ],
)
def test_what_steers_a_terminal_or_cannot_be_encoded_is_replaced_and_nothing_else(text, shown):
    assert printable(text) == shown


def test_no_control_character_and_no_reordering_of_unicode_gets_through():
    reordering = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for code in range(0x110000):
        character = chr(code)
        unsafe = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        if unsafe or unicodedata.bidirectional(character) in reordering:
            assert printable(character) == "�"


def test_every_printable_text_can_be_encoded():
    printable("".join(map(chr, range(0x20000)))).encode("utf-8")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a, b"),
        (["a", "b", "c"], "a, b and 1 more"),
        (range(12), "0, 1 and 10 more"),
        (iter("abc"), "a, b and 1 more"),
    ],
)
def test_a_long_list_is_cut_and_says_how_much_is_left(names, text):
    assert some_of(names, 2) == text


def test_texts_that_differ_are_shortened_to_texts_that_differ():
    """All texts of one letter in two forms between others, wherever and however often they differ."""
    parts = [("/data/hospital/", "/mnt/d/"), ("2019", "2021"), ("/labels" * 5, "/"), ("a", "b"), ("/nnUNet_raw", "")]
    texts = ["".join(chosen) for chosen in itertools.product(*parts)]
    for most in (1, 2, 8, 22, 60):
        shown = shortened_apart(texts, most)
        assert len(set(shown)) == len(texts)
        for pair in itertools.combinations(texts, 2):
            one, other = shortened_apart(pair, most)
            assert one != other
            if most >= 8:
                assert max(len(one), len(other)) <= most
    alike = ["x" * 1000, "x" * 1001, "x" * 1000]
    assert shortened_apart(alike, 20) == alike  # nothing but their length tells them apart
    assert shortened_apart(["liver", "lung_upper_lobe_left"], 10) == ["liver", shortened("lung_upper_lobe_left", 10)]
    assert shortened_apart([], 10) == []


def test_a_gigabyte_is_a_thousand_million_bytes():
    assert gigabytes(1e9) == "1.00 GB"
    assert gigabytes(2**30, 3) == "1.074 GB"
    assert (gigabytes(10**7), gigabytes(43_008), gigabytes(0)) == ("0.01 GB", "0.0 MB", "0.00 GB")


def test_a_number_that_is_not_there_leaves_its_cell_empty():
    assert number(math.nan) == ""
    assert number(math.inf) == "inf"
    assert number(-0.12345) == "-0.1235"


def test_columns_are_aligned_and_lines_end_without_spaces():
    rows = [("class", "dice", "note"), ("liver", "0.9", ""), ("a", "0.95", "x")]
    assert aligned(rows) == ["class  dice  note", "liver   0.9", "a      0.95     x"]
    assert aligned(rows, left=(2,)) == ["class  dice  note", "liver   0.9", "    a  0.95  x"]
    assert aligned([]) == []


def test_words_are_what_lies_between_commas():
    assert words(" liver, spleen,,aorta ") == ["liver", "spleen", "aorta"]
    assert words("") == []


def test_lines_go_on_between_words_below_their_last_column():
    line = "  split         train 8, val 1, test 1 (80/10/10 by subject, seed 42)"
    lines = fitted(line, 40).split("\n")
    assert max(map(len, lines)) <= 40
    assert [line[:16].strip() for line in lines] == ["split", "", ""]
    assert " ".join(" ".join(lines).split()) == " ".join(line.split())
    assert fitted(line, None) == line


def test_a_path_stays_whole_and_short_lines_stay_as_they_are():
    path = "/data/" + "folder-with-hyphens/" * 5
    assert path in fitted(f"written to {path}; next: train", 40)
    command = "    bodyseg train --dataset_root data --target_size 32 24 56 --exp_name first"
    assert fitted(command, 40) == command
    table = "a    b\n\n  1    2"
    assert fitted(table, 40) == table


def test_the_second_line_of_a_list_item_begins_below_its_first_word():
    assert fitted("- one two three four", 12).split("\n") == ["- one two", "  three four"]


@pytest.mark.parametrize("value", [195_812.4, 12_345.0, 100.0, 99.96, 8.0, 0.5, 0.0123, 1.5e-7, 0.0])
def test_four_digits_say_a_number_within_half_a_thousandth_and_without_a_power_of_ten(value):
    text = four_digits(value)
    assert float(text) == pytest.approx(value, rel=5e-4)
    assert "e" not in text
    assert not text.endswith(".0")


@pytest.mark.parametrize(
    ("volumes", "unit"), [([1500.0, 0.0], "ml"), ([0.45, 0.0001], "µl"), ([], "ml"), ([math.nan, 0.0], "ml")]
)
def test_volumes_of_a_mouse_are_in_microlitres(volumes, unit):
    assert volume_unit(volumes)[0] == unit
