"""Tables of classes in every form; contradictions are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.class_table import ClassTable, find_table, parse_table, reconcile, resolve_remap
from pipeline.datasets.errors import DatasetError
from tests.support.datasets import write_json

SOURCE = Path("labels.json")


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "liver": 1, "spleen": 2},
        {"0": "background", "1": "liver", "2": "spleen"},
        {"spleen": 2, "liver": 1},
        {"background": "0", "liver": "1", "spleen": "2"},
        {"background": 0.0, "liver": 1.0, "spleen": 2.0},
        ["background", "liver", "spleen"],
    ],
)
def test_every_form_gives_the_same_table(labels):
    assert parse_table(labels, SOURCE) == ClassTable(("background", "liver", "spleen"), (0, 1, 2))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"liver": 1, "spleen": 1}, "label value 1 2 times"),
        ({"0": "background", "1": "liver", "2": "liver"}, "class name 'liver' 2 times"),
        ({"background": 0, "whole": [1, 2]}, "'whole' is a region"),
        ({"background": 0, "whole": [1, 2]}, 'leave regions out: "part_1": 1, "part_2": 2'),
        ({"background": 0, "liver": "one"}, "whole number for class 'liver'"),
        ({"background": 0, "liver": 2**31}, "values up to 2147483647"),
        ({"background": 0, "liver": -1}, "a background at 0"),
        ({"background": 0}, "at least one class above it"),
        ({"1": " "}, "a name for label value 1"),
        ("liver", "labels as"),
    ],
)
def test_contradictions_are_named(labels, words):
    with pytest.raises(DatasetError, match=r"^labels\.json: expected ") as error:
        parse_table(labels, SOURCE)
    assert words in str(error.value)


@pytest.mark.parametrize("names", [["liver", "spleen"], ["Kidney_L", "background"], ["airway", "lung"], ["C10", "C11"]])
def test_a_list_without_a_background_in_front_is_refused(names):
    with pytest.raises(DatasetError, match=f"begins with the background, found '{names[0]}' in front"):
        parse_table(names, SOURCE)
    with pytest.raises(DatasetError, match="begins with the background"):
        reconcile(None, names, SOURCE)


@pytest.mark.parametrize("name", ["background", "Background", "unlabeled", "air", "BG", "class_0", "0", "Other tissue"])
def test_the_background_has_many_names(name):
    assert ClassTable.in_order([name, "liver"], SOURCE).names == (name, "liver")


def test_a_named_value_0_may_be_called_anything():
    assert parse_table({"body": 0, "liver": 1}, SOURCE).names == ("body", "liver")


def test_names_of_the_settings_must_be_the_data_sets_own():
    own = parse_table({"liver": 1, "spleen": 2}, SOURCE)
    assert reconcile(own, ("background", "liver", "spleen"), SOURCE) is own
    with pytest.raises(DatasetError, match=r"differ.*'organ' against 'liver'"):
        reconcile(own, ("background", "organ", "spleen"), SOURCE)
    with pytest.raises(DatasetError, match="one list is longer"):
        reconcile(own, ("background", "liver"), SOURCE)


def test_a_list_with_ignore_in_it_agrees_with_the_same_list_of_the_data_set():
    """What it stands for is no class, so that it is none of the names that are compared."""
    given = ["background", "liver", "ignore"]
    own = parse_table(given, SOURCE)
    assert reconcile(own, given, SOURCE) is own
    with pytest.raises(DatasetError, match=r"3 names that differ"):
        reconcile(parse_table(given[:2], SOURCE), given, SOURCE)


def test_a_remap_takes_names_and_indices():
    names = ("background", "liver", "spleen")
    assert resolve_remap({7: "spleen", "255": 0}, names) == {7: 2, 255: 0}
    for target in ("livr", 3, -1):
        with pytest.raises(
            DatasetError, match=r"label_remap: 7: expected a class, ignore, or an index of 0 to 2, found "
        ):
            resolve_remap({7: target}, names)


def test_values_of_classes_remaps_and_ignored_voxels_are_known():
    table = ClassTable(("background", "liver"), (0, 4), ignore_value=9, remap={7: 1})
    assert table.class_of_value == {0: 0, 4: 1, 7: 1}
    assert table.known_values == {0, 4, 7, 9}


def test_the_first_of_three_files_names_the_classes(tmp_path):
    assert find_table(tmp_path) is None
    write_json(tmp_path / "dataset.json", {"labels": {"a": 1}})
    assert find_table(tmp_path).names == ("background", "a")
    write_json(tmp_path / "class_names.json", ["background", "b"])
    assert find_table(tmp_path).names == ("background", "b")
    write_json(tmp_path / "labels.json", {"c": 3})
    assert (find_table(tmp_path).names, find_table(tmp_path).values) == (("background", "c"), (0, 3))


def test_a_class_of_the_value_to_ignore_is_refused():
    with pytest.raises(DatasetError, match="expected every label value once, found label value 2 2 times"):
        parse_table({"background": 0, "liver": 1, "spleen": 2, "ignore": 2}, SOURCE)


def test_the_background_cannot_be_ignored():
    with pytest.raises(DatasetError, match='expected a value above 0 for "ignore", found 0, which is the background'):
        parse_table({"liver": 1, "ignore": 0}, SOURCE)


def test_a_bare_list_may_hold_what_is_ignored():
    """As labels.json and the settings have it (data.class_names, --class_names): voxels of that value are no class."""
    names = ["background", "liver", "ignore", "spleen"]
    found = [ClassTable.in_order(names, SOURCE), parse_table(names, SOURCE), reconcile(None, names, SOURCE)]
    assert found == [ClassTable(("background", "liver", "spleen"), (0, 1, 3), ignore_value=2)] * 3
