"""labels.json of a data set without class names holds the values of its label files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.cli.main import main
from tests.support.volumes import hounsfield, organs, save

VALUES = np.array([0, 4, 9, 200], np.uint8)


@pytest.fixture
def unnamed(tmp_path: Path) -> Path:
    """Images and labels of values 0, 4, 9 and 200, with no table of classes; 200 is in one label alone."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in "abcd":
        save(tmp_path / f"images/{name}.nii.gz", hounsfield(name))
        label = organs() if name == "c" else np.minimum(organs(), 2)
        save(tmp_path / f"labels/{name}.nii.gz", VALUES[label])
    return tmp_path


def test_the_values_are_written_and_checked_with(unnamed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(unnamed)]) == 2
    assert "bodyseg check --write_labels" in capsys.readouterr().out
    main(["check", str(unnamed), "--write_labels", "--json", "--no_measure"])
    printed = capsys.readouterr()
    held = {int(value) for path in (unnamed / "labels").iterdir() for value in np.unique(nib.load(path).dataobj)}
    labels = json.loads((unnamed / "labels.json").read_text())
    assert labels == {"background": 0, "class_4": 4, "class_9": 9, "class_200": 200}
    assert set(labels.values()) == held
    assert "labels.json: the classes are called class_4, class_9, class_200; name them before" in printed.err
    assert [c["n_cases"] for c in json.loads(printed.out)["fingerprint"]["classes"]] == [4, 4, 4, 1]


def test_a_table_that_is_there_is_not_written_over(unnamed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = unnamed / "labels.json"
    table.write_text('{"liver": 4, "spleen": 9, "aorta": 200}')
    before = table.read_bytes()
    assert main(["check", str(unnamed), "--write_labels"]) == 2
    assert "leave --write_labels out" in capsys.readouterr().err
    assert table.read_bytes() == before


def test_images_in_the_place_of_labels_give_no_table(unnamed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(unnamed / "labels/b.nii.gz", hounsfield("b"))
    assert main(["check", str(unnamed), "--write_labels"]) == 2
    assert "case b" in (error := capsys.readouterr().err)
    assert "an image instead of a label" in error
    for name in "abcd":
        save(unnamed / f"labels/{name}.nii.gz", np.zeros_like(organs()))
    assert main(["check", str(unnamed), "--write_labels"]) == 2
    assert "expected label values above 0" in capsys.readouterr().err
    assert not (unnamed / "labels.json").exists()
