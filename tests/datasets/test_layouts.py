"""Layouts are recognised, and a folder in none of them hears what was looked for."""

from __future__ import annotations

import pytest

from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.layouts import READERS, find_layout, recognise
from pipeline.datasets.listing import list_cases
from tests.support.datasets import decathlon, nnunet, pairs, refused, totalsegmentator, volume


@pytest.mark.parametrize(
    ("layout", "build"),
    [("nnunet", nnunet), ("msd", decathlon), ("totalsegmentator", totalsegmentator), ("pairs", pairs)],
)
def test_every_layout_is_recognised(tmp_path, layout, build):
    build(tmp_path)
    assert recognise(tmp_path, FileIndex()) == layout
    assert list_cases(tmp_path).layout == layout


def test_a_list_is_a_file_or_a_folder_with_one(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("case,image\n")
    assert recognise(path, FileIndex()) == "list"
    path.rename(tmp_path / "cases.csv")
    assert recognise(tmp_path, FileIndex()) == "list"


def test_a_folder_that_is_not_a_data_set_hears_what_was_looked_for(tmp_path):
    refused(tmp_path, str(tmp_path), "dataset.json", "segmentations", "images/", "cases.csv")
    refused(tmp_path / "absent", "no such file")
    refused(tmp_path, "nnunet, msd, totalsegmentator, pairs, folders, list", layout="bids")
    assert find_layout(tmp_path, FileIndex()) is None
    assert find_layout(volume(tmp_path / "scan.nii.gz"), FileIndex()) is None


@pytest.mark.parametrize("layout", [name for name in READERS if name not in ("pairs", "folders")])
def test_a_layout_that_is_asked_for_must_be_there(tmp_path, layout):
    refused(tmp_path, str(tmp_path), layout=layout)


@pytest.mark.parametrize("layout", ["pairs", "folders"])
def test_cases_that_are_asked_for_must_be_there(tmp_path, layout):
    refused(tmp_path, f"expected cases in the {layout} layout", layout=layout, class_names=["background", "organ"])
