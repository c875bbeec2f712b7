"""The table of known anatomy is found by the words of a name."""

from __future__ import annotations

import pytest

from pipeline.phantoms.anatomy import CLASS_NAMES
from pipeline.visualisation.anatomy_colours import colours_by_words, name_words


def test_every_structure_of_the_phantoms_is_known():
    assert [name for name in CLASS_NAMES[1:] if name_words(name) not in colours_by_words()] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [("Kidney, left", "kidney_left"), ("LeftKidney", "kidney_left"), ("oesophagus", "esophagus"),
     ("L1 Vertebra", "vertebrae_L1")],
)  # fmt: skip
def test_spellings_of_one_structure_have_the_same_words(first, second):
    assert name_words(first) == name_words(second)
    assert name_words(first) != name_words("kidney_right")
