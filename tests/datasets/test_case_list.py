"""Lists of cases that a person wrote."""

from __future__ import annotations

import pytest

from pipeline.datasets.errors import DatasetError
from pipeline.datasets.listing import list_cases
from pipeline.datasets.splits import split_by_subject
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
    (tmp_path / "cases.csv").write_text("case,image,label,split\nonly,images/x.nii.gz,labels/y.nii,\n")
    found = list_cases(tmp_path)
    assert found.layout == "list"
    assert [case.id for case in found.cases] == ["only"]


def written(folder, *rows, header="case,image,label,split"):
    """A list of cases that all have the same image and label."""
    volume(folder / "a.nii.gz")
    path = folder / "cases.csv"
    path.write_text("\n".join([header, *rows]))
    write_json(folder / "labels.json", LABELS)
    return path


def test_cases_marked_to_train_are_not_divided_with_the_others(tmp_path):
    rows = [f"c{number},a.nii.gz,a.nii.gz,{'train' if number < 6 else ''}" for number in range(10)]
    refused(written(tmp_path, *rows), "a split for every case or for none", "none for case c6")
    only_train = [f"c{number},a.nii.gz,a.nii.gz,train" for number in range(4)]
    refused(written(tmp_path, *only_train), "4 cases to train and 0 to validate", "remove it")


def test_cases_marked_to_test_leave_the_others_to_be_divided(tmp_path):
    found = list_cases(written(tmp_path, "a,a.nii.gz,a.nii.gz,test", "b,a.nii.gz,a.nii.gz,", "c,a.nii.gz,a.nii.gz,"))
    assert found.split is None
    assert [case.id for case in found.cases if case.held_out] == ["a"]


def test_subject_0_is_a_subject_like_any_other(tmp_path):
    volume(tmp_path / "a.nii.gz")
    entries = [
        {"case": f"c{number}", "image": "a.nii.gz", "label": "a.nii.gz", "subject": number // 2} for number in range(20)
    ]
    listed = write_json(tmp_path / "cases.json", {"cases": entries, "labels": LABELS})
    cases = list_cases(listed).cases
    assert [case.subject for case in cases[:3]] == ["0", "0", "1"]
    for seed in range(50):
        split = split_by_subject(cases, seed=seed)
        assert split.of("c0") == split.of("c1")


def test_case_0_is_a_case_like_any_other(tmp_path):
    volume(tmp_path / "a.nii.gz")
    entries = [{"case": number, "image": "a.nii.gz", "label": "a.nii.gz"} for number in range(2)]
    listed = write_json(tmp_path / "cases.json", {"cases": entries, "labels": LABELS})
    assert [case.id for case in list_cases(listed).cases] == ["0", "1"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = written(tmp_path, "a,a.nii.gz,b.nii.gz,a.nii.gz", header="case,image,image,label")
    refused(path, "2 columns 'image'", "ct.nii.gz|pet.nii.gz")


def test_rows_are_numbered_as_in_the_file(tmp_path):
    refused(written(tmp_path, "", "a,a.nii.gz,a.nii.gz,", "", "b,,a.nii.gz,"), "an image for row 5")


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


def test_a_list_says_which_classes_a_label_annotates(tmp_path):
    rows = ["a,a.nii.gz,a.nii.gz,liver", "b,a.nii.gz,a.nii.gz,spleen | liver", "c,a.nii.gz,a.nii.gz,"]
    found = list_cases(written(tmp_path, *rows, header="case,image,label,labelled"))
    assert [case.annotated for case in found.cases] == [(1,), (1, 2), None]
    entries = [{"case": "a", "image": "a.nii.gz", "label": "a.nii.gz", "labelled": ["background", "spleen"]}]
    path = write_json(tmp_path / "list.json", {"cases": entries, "labels": LABELS})
    assert list_cases(path).cases[0].annotated == (2,)
    written(tmp_path, "a,a.nii.gz,a.nii.gz,lever", header="case,image,label,labelled")
    refused(tmp_path, "case a", "liver, spleen", "'lever'")
    write_json(path, {"cases": [entries[0] | {"labelled": {"liver": 1}}], "labels": LABELS})
    refused(path, "case a", "labelled to be names of classes")
    for nothing in ([], ["background"], " | "):  # not what a missing one means, all classes
        write_json(path, {"cases": [entries[0] | {"labelled": nothing}], "labels": LABELS})
        refused(path, "case a", "a class beside the background under labelled", "leave labelled out if all")


def test_a_table_without_images_is_refused_once_and_names_its_columns(tmp_path):
    path = written(tmp_path, "a,a.nii.gz,a.nii.gz,", "b,a.nii.gz,a.nii.gz,", header="case,file,label,split")
    refused(path, "found case, file, label, split; rename the one that names the images to image")
    path = written(tmp_path, "b.nii.gz,b_seg.nii.gz", header="a.nii.gz,a_seg.nii.gz")
    refused(path, "found a.nii.gz, a_seg.nii.gz; write a line above the first file that names the columns")
    with pytest.raises(DatasetError) as error:
        list_cases(path)
    assert len(error.value.lines) == 1


def test_other_words_for_the_columns_are_read(tmp_path):
    path = written(tmp_path, "a,p1,a.nii.gz,a.nii.gz", header="ID,Patient,img,mask")
    (case,) = list_cases(path).cases
    assert (case.id, case.subject, case.label.name) == ("a", "p1", "a.nii.gz")
    refused(written(tmp_path, "a,a.nii.gz,a.nii.gz,train", header="case,image,label,spilt"), "rename it to split")


def test_a_path_may_begin_with_the_users_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (case,) = list_cases(written(tmp_path, "a,~/a.nii.gz,~/a.nii.gz,")).cases
    assert case.image == (tmp_path / "a.nii.gz",)


def test_a_missing_file_is_not_replaced_by_one_that_the_list_names_for_something_else(tmp_path):
    """The image of a case is never its own label, nor its label that of a case whose name differs in case alone."""
    for name in ("a.nii.gz", "b.nii.gz", "C.nii.gz", "d.nii.gz", "e.nii"):
        volume(tmp_path / name)
    path = written(
        tmp_path, "1,a.nrrd,a.nii.gz", "2,b.nii.gz,c.nii.gz", "3,d.nii.gz,C.nii.gz", "4,d.nii.gz,e.nii.gz",
        header="case,image,label",
    )  # fmt: skip
    found = list_cases(path, strict=False)
    assert [(case.id, case.label.name) for case in found.cases] == [("3", "C.nii.gz"), ("4", "e.nii")]
    assert [(error.kind, error.case) for error in found.refused] == [("missing_file", "1"), ("missing_file", "2")]
