"""Bad data sets of every kind, typed as a person would: what is said, and that nothing else was touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.datasets.errors import DatasetError
from pipeline.datasets.listing import list_cases
from pipeline.inference.inputs import list_volumes
from tests.support.hostile import Row, check_answer, listed, table_of
from tests.support.hostile_data import ROWS, linked_folder
from tests.support.volumes import hounsfield, save


@table_of("bad data sets", ROWS)
def test_bad_input_is_named_and_nothing_else_is_touched(
    row: Row, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_answer(row, workspace, capsys)


def test_outputs_are_named_without_what_steers_a_terminal_or_overflows_a_name(tmp_path: Path) -> None:
    for name in ("a\x1b[2Jb", "é" * 100 + "1", "é" * 100 + "2"):
        save(tmp_path / f"{name}.nii.gz", hounsfield("a"))
    ids = sorted(source.id for source in list_volumes([tmp_path]))
    assert ids[0] == "a_[2Jb"
    assert len({*ids}) == 3
    assert all(len(name.encode()) <= 200 and name.isprintable() for name in ids)


def test_links_are_followed_where_the_user_says_so_or_made_them_at_the_root(workspace: Path) -> None:
    Path("link").symlink_to("data")
    assert len(list_cases("link").cases) == 4
    linked_folder()
    with pytest.raises(DatasetError) as error:
        list_cases("data")
    assert len([line for line in error.value.lines if line.startswith("case ")]) == 4
    assert len(list_cases("data", follow_links=True).cases) == 4
    listed(image=str(workspace / "new/scan.nii.gz"), label=str(workspace / "elsewhere/b.nii.gz"))
    for name in "ab":
        shutil.copy(f"elsewhere/{name}.nii.gz", "new")
    assert len(list_cases("cases.json").cases) == 2  # a list of the user's own may name any file


def test_every_entry_that_cannot_be_listed_is_named(workspace: Path) -> None:
    Path("data/labelsTr/a.nii.gz").unlink()
    Path("data/imagesTr/b_0000.nii.gz").rename("data/imagesTr/b_0003.nii.gz")
    Path("data/imagesTr/notes.nii.gz").touch()
    with pytest.raises(DatasetError) as error:
        list_cases("data")
    said = {line.split(":")[0] for line in error.value.lines}
    assert said == {"case a", "case b", "data/imagesTr/notes.nii.gz"}
    Path("data/splits_final.json").unlink()
    found = list_cases("data", strict=False)
    assert [case.id for case in found.cases] == ["c", "d"]
    assert len(found.refused) == 3
