"""Between cases: equal volumes, subjects in two splits, sizes that no scanner makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.check import check
from tests.support.volumes import AFFINE, Folder, hounsfield, organs, save


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def kinds(folder: Folder) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.kind, finding.case) for finding in folder.check().findings]


@pytest.mark.parametrize(
    ("copy", "expected"),
    [("b", [("warning", "equal_volumes", "b")]), ("c", [("error", "voxels_in_two_splits", "c")])],
)
def test_a_copy_counts_by_the_split_that_it_lies_in(folder: Folder, copy: str, expected: list) -> None:
    """Cases a and b train, c and d validate."""
    save(folder.image(copy), hounsfield("a"))
    assert kinds(folder) == expected


def test_blank_images_are_no_copies_of_each_other(folder: Folder) -> None:
    for name in "ac":
        save(folder.image(name), np.full(organs().shape, -1000, np.int16))
    assert {kind for _, kind, _ in kinds(folder)} == {"constant_image"}


@pytest.mark.parametrize(("edge", "is_odd"), [(0.04, True), (0.06, True), (0.7, False), (14.9, False), (15.1, True)])
def test_voxels_beyond_what_scanners_make_are_named(folder: Folder, edge: float, is_odd: bool) -> None:
    """0.06 mm is the edge of a scanner, but 16 of them are no patient."""
    affine = AFFINE.copy()
    affine[0, 0] = affine[1, 1] = affine[2, 2] = edge
    save(folder.image("c"), hounsfield("c"), affine)
    save(folder.label("c"), organs(), affine)
    assert (("warning", "odd_spacing", "c") in kinds(folder)) == is_odd


def test_a_value_of_no_class_hides_no_other_finding(folder: Folder) -> None:
    label = organs()
    label[0, 0, 0] = 9
    save(folder.label("a"), label)
    save(folder.image("c"), hounsfield("a"))
    assert set(kinds(folder)) == {("error", "label_unknown_values", "a"), ("error", "voxels_in_two_splits", "c")}


@pytest.mark.fault("a class name that cannot be written (half of a surrogate pair)", "check names it, exit 2")
def test_names_that_nothing_can_write_are_refused(folder: Folder) -> None:
    """Half of a surrogate pair, as JSON can hold it, ended a training after its first epoch (TensorBoard)."""
    folder.labels["a\udcff"] = 4
    findings = check(folder.write()).findings
    (finding,) = (finding for finding in findings if finding.severity == "error")
    assert finding.found == r"'a\udcff'"
    assert "UTF-8" in finding.expected
