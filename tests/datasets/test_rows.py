"""What readers share: safe paths, words of a split column, subjects."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.errors import DatasetError
from pipeline.datasets.rows import parse_channel_names, parse_split, path_inside

SOURCE = Path("dataset.json")


def test_a_name_that_only_looks_as_if_it_left_the_data_set_is_taken():
    assert path_inside(Path("root"), "a/../b.nii.gz", SOURCE) == Path("root/b.nii.gz")
    assert path_inside(Path("root"), "./..a.nii.gz", SOURCE) == Path("root/..a.nii.gz")


@pytest.mark.parametrize(
    ("word", "split"), [("train", "train"), ("Tr", "train"), ("Validation", "val"), ("testing", "test"), ("", None)]
)
def test_words_of_a_split_column(word, split):
    assert parse_split(word, "a", SOURCE) == split


@pytest.mark.parametrize(
    ("channels", "names"), [({"1": "PET", "0": "CT"}, ("CT", "PET")), (["T1"], ("T1",)), ("MRI", ("MRI",))]
)
def test_channel_names_in_every_form(channels, names):
    assert parse_channel_names(channels, SOURCE) == names
    with pytest.raises(DatasetError, match="channel_names like"):
        parse_channel_names({"1": "CT"}, SOURCE)
