"""Lists of cases that a person wrote."""

from __future__ import annotations

import pytest

from pipeline.datasets.listing import list_cases
from tests.support.datasets import LABELS, pairs, refused, volume, write_json


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_csv_list_says_everything_itself(tmp_path, separator):
    far = volume(tmp_path / "far/away.nii.gz")
    volume(tmp_path / "near.nii.gz")
    rows = [
        ["case", "subject", "image", "label", "split"],
        ["one", "p1", "near.nii.gz|near.nii.gz", "near.nii.gz", "train"],
        ["two", "p2", f"{far}|../{tmp_path.name}/near.nii.gz", str(far), "Validation"],
        ["three", "p3", "near.nii.gz|near.nii.gz", "", "test"],
    ]
    (tmp_path / "my list.csv").write_text("\n".join(separator.join(row) for row in rows))
    write_json(tmp_path / "labels.json", LABELS)
    found = list_cases(tmp_path / "my list.csv")
    assert (found.layout, found.channel_names) == ("list", ("image", "image1"))
    assert found.cases[1].image[0] == far
    assert (found.split.train, found.split.val, found.split.test) == (("one",), ("two",), ())
    assert [case.subject for case in found.cases] == ["p1", "p2"]
    assert [case.id for case in found.unlabelled] == ["three"]


def test_a_list_counts_before_the_folders_beside_it(tmp_path):
    pairs(tmp_path)
    write_json(tmp_path / "labels.json", LABELS)
    (tmp_path / "cases.csv").write_text("case,image,label,split\nonly,images/x.nii.gz,labels/y.nii,train\n")
    found = list_cases(tmp_path)
    assert found.layout == "list"
    assert [case.id for case in found.cases] == ["only"]


def test_a_json_list_names_its_classes(tmp_path):
    for name in "ab":
        volume(tmp_path / f"{name}.nii.gz")
    cases = [{"image": f"{name}.nii.gz", "label": f"{name}.nii.gz"} for name in "ab"]
    write_json(tmp_path / "cases.json", {"cases": cases, "labels": LABELS, "channel_names": ["T2"]})
    found = list_cases(tmp_path)
    assert ([case.id for case in found.cases], found.channel_names) == (["a", "b"], ("T2",))
    write_json(tmp_path / "cases.json", [{**case, "sex": "f"} for case in cases])
    refused(tmp_path, "unknown column 'sex'", class_names=["background", "organ"])


def test_entries_that_say_too_little_are_named(tmp_path):
    image = str(volume(tmp_path / "a.nii.gz"))
    listed = tmp_path / "cases.json"
    write_json(listed, {"cases": [{"case": "one", "image": "", "label": image}], "labels": LABELS})
    refused(listed, "case number 1")
    write_json(
        listed, {"cases": [{"case": "one", "image": image, "label": image, "split": "tuning"}], "labels": LABELS}
    )
    refused(listed, "case one", "'tuning'")
    write_json(listed, {"cases": [], "labels": LABELS})
    refused(listed, "expected a list of cases, found none")
