"""File names of classes stay in their folder and differ."""

from __future__ import annotations

from pipeline.writers.segmentation import file_names, segment_label
from tests.support.segmentations import NAMES


def test_no_class_name_leaves_the_folder_or_collides():
    names = file_names([*NAMES, "", "..", "a/b", "a\\b", "x" * 500, "CON:", "-rf"])
    assert len({name.lower() for name in names}) == len(names)
    assert all(name and not set(name) & set("/\\.:\n ") and len(name) < 100 for name in names)


def test_a_class_has_its_own_name_where_another_ones_would_become_it():
    assert file_names(["background", "Rib", "rib", "rib_2"])[1:] == ("Rib", "rib_3", "rib_2")
    assert file_names(["a b", "a-b", "a_b", "A b", "a b_2"]) == ("a_b", "a-b", "a_b_3", "A_b_4", "a_b_2")


def test_a_segments_label_is_one_value_of_at_most_64_characters():
    assert segment_label("lesion \\ cyst\n2") == "lesion / cyst 2"  # a backslash would part two values
    assert len(segment_label("x" * 500)) == 64
