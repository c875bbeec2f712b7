"""File names of classes stay in their folder and differ."""

from __future__ import annotations

from pipeline.writers.segmentation import file_names
from tests.support.segmentations import NAMES


def test_no_class_name_leaves_the_folder_or_collides():
    names = file_names([*NAMES, "", "..", "a/b", "a\\b", "x" * 500, "CON:", "-rf"])
    assert len({name.lower() for name in names}) == len(names)
    assert all(name and not set(name) & set("/\\.:\n ") and len(name) < 100 for name in names)
