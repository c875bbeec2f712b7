"""Keys that other lists have for a case's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.entry_keys import with_usual_keys
from pipeline.datasets.errors import DatasetError


@pytest.mark.parametrize(
    "entry", [{"img": "a", "mask": "b"}, {"Image_Path": "a", "SEG": "b"}, {"image": "a", "label": "b"}]
)
def test_keys_are_known_by_their_other_names(entry):
    assert with_usual_keys(entry, Path("cases.csv")) == {"image": "a", "label": "b"}


def test_a_usual_key_counts_before_others():
    assert with_usual_keys({"case": "a", "id": "7"}, Path("cases.csv")) == {"case": "a", "id": "7"}


def test_two_keys_that_may_mean_one_are_refused():
    with pytest.raises(
        DatasetError, match="one key that names the label, found seg and mask; rename the right one to label"
    ):
        with_usual_keys({"image": "a", "mask": "b", "seg": "c"}, Path("cases.csv"))
