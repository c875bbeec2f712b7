"""A listing is trusted: ids are safe and unique, files are there, contradictions are named; splits are taken over."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest

from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.listing import find_dataset, find_images, list_cases
from tests.support.datasets import LABELS, decathlon, nnunet, pairs, refused, volume, write_json


def test_bids_names_give_the_subject(tmp_path):
    found = list_cases(nnunet(tmp_path, cases=("sub-01_ses-1", "sub-01_ses-2", "sub-02", "other_sub-01")))
    assert [case.subject for case in found.cases] == ["other_sub-01", "sub-01", "sub-01", "sub-02"]


def test_an_image_without_a_label_and_a_label_without_an_image_are_named(tmp_path):
    nnunet(tmp_path / "n")
    volume(tmp_path / "n/imagesTr/d_0000.nii.gz")
    refused(tmp_path / "n", "case d", "expected a label", "d_0000.nii.gz")
    pairs(tmp_path / "p")
    volume(tmp_path / "p/labels/z.nii.gz")
    refused(tmp_path / "p", "case z", "expected an image", "z.nii.gz")


@pytest.mark.parametrize("build", [nnunet, pairs, decathlon])
def test_labelled_images_of_which_no_case_is_are_a_warning(tmp_path, build):
    """As AMOS and WORD lay out those to validate on, where dataset.json does not list them or is not there."""
    build(tmp_path)
    for name in ("imagesVa/v", "labelsVa/v", "imagesXy/without_labels"):
        volume(tmp_path / f"{name}.nii.gz")
    (warning,) = list_cases(tmp_path).warnings
    assert (warning.kind, warning.found) == ("left_out", "none of imagesVa (1 file)")


def test_a_name_of_a_mac_hears_what_is_odd_about_it_since_nobody_can_see_it(tmp_path):
    pairs(tmp_path, cases=(unicodedata.normalize("NFC", "Müller"), "b"))
    assert [case.id for case in list_cases(tmp_path).cases] == ["Müller", "b"]
    pairs(tmp_path / "mac", cases=(unicodedata.normalize("NFD", "Müller"), "b"))
    refused(tmp_path / "mac", "accents as characters of their own (Unicode NFD, as macOS writes them)", "convmv --nfc")


@pytest.mark.parametrize("name", ["..", "a/b", ".hidden", "-rf", "a\nb", "x" * 200, "ends.", "a\\b", "nul\0"])
def test_ids_that_cannot_be_file_names_are_refused(tmp_path, name):
    image = volume(tmp_path / "a.nii.gz")
    entry = {"case": name, "image": str(image), "label": str(image)}
    listed = write_json(tmp_path / "cases.json", {"cases": [entry], "labels": LABELS})
    refused(listed, "case names that can be file names")


def test_contradictions_are_named(tmp_path):
    image = str(volume(tmp_path / "a.nii.gz"))
    entry = {"case": "one", "image": image, "label": image}

    def listed(*entries, **extra):
        return write_json(
            tmp_path / "cases.json", {"cases": [{**entry, **e} for e in entries], "labels": LABELS, **extra}
        )

    refused(listed({}, {}), "case one is listed 2 times")
    refused(listed({"label": "b.nii.gz"}), "case one", "b.nii.gz", "does not exist")
    refused(listed({"image": str(write_json(tmp_path / "x.txt", 1))}), "case one", "x.txt")
    refused(listed({"image": [image, image]}, {"case": "two"}), "case two", "expected 2 channels")
    refused(listed({"split": "val"}), "0 cases to train and 1 to validate")
    refused(listed({"split": "val"}, {"case": "two", "split": "train"}, {"case": "three"}), "none for case three")
    refused(
        listed({"split": "val", "subject": "p"}, {"case": "two", "split": "train", "subject": "p"}), "subject p", "two"
    )
    refused(listed({}), "differ", "'organ' against 'liver'", class_names=["background", "organ", "spleen"])


def test_cases_that_cannot_serve_are_left_out_with_the_reason(tmp_path):
    pairs(tmp_path)
    (tmp_path / "labels/x.nii").unlink()
    found = list_cases(tmp_path, strict=False)
    assert [case.id for case in found.cases] == ["y"]
    ((error),) = found.refused
    assert (error.case, error.kind, error.where) == ("x", "missing_label", str(tmp_path / "images/x.nii.gz"))


def test_images_are_found_without_labels_and_names(tmp_path):
    pairs(tmp_path, names=None)
    (tmp_path / "labels/x.nii").unlink()
    found = find_images(tmp_path)
    assert {case: [path.name for path in files] for case, files in found.images.items()} == {
        "x": ["x.nii.gz"],
        "y": ["y.nii.gz"],
    }
    assert found.refused == ()


def test_a_bare_folder_and_a_volume_are_not_data_sets(tmp_path):
    path = volume(tmp_path / "a.nii.gz")
    assert (find_dataset(tmp_path), find_dataset(path)) == (None, None)
    assert (find_images(tmp_path), find_images(path)) == (None, None)


def images_of(path, **options):
    """The file names of every case that is found."""
    found = find_images(path, **options)
    return None if found is None else {case: [file.name for file in files] for case, files in found.images.items()}


@pytest.mark.parametrize("described", ["above", "inside", "not at all"])
def test_a_folder_of_channels_has_a_case_for_every_name(tmp_path, described):
    nnunet(tmp_path, cases=("a", "b"), channels=2)
    folder = tmp_path / "imagesTr"
    if described == "inside":
        (tmp_path / "dataset.json").rename(folder / "dataset.json")
    if described == "not at all":
        (tmp_path / "dataset.json").unlink()
    (folder / "a_0000.json").write_text("{}")
    both = {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz", "b_0001.nii.gz"]}
    assert images_of(folder) == images_of(folder, n_channels=2) == both
    (folder / "b_0001.nii.gz").unlink()
    found = find_images(folder, n_channels=2)
    assert list(found.images) == ["a"]
    assert "case b: expected 2 channel files from _0000 on, found _0000" in str(found.refused[0])


def test_one_channel_is_not_part_of_the_name(tmp_path):
    nnunet(tmp_path)
    (tmp_path / "dataset.json").unlink()
    assert list(images_of(tmp_path / "imagesTr", n_channels=1)) == ["a", "b", "c"]


def test_numbered_scans_are_not_channels(tmp_path):
    for name in ("amos_0001", "amos_0004", "other"):
        volume(tmp_path / f"{name}.nii.gz")
    assert images_of(tmp_path, n_channels=1) is None
    for number in range(3):
        volume(tmp_path / f"more/scan_{number:04d}.nii.gz")
    assert images_of(tmp_path / "more", n_channels=1) is None
    assert images_of(tmp_path / "more", n_channels=3) == {"scan": [f"scan_{n:04d}.nii.gz" for n in range(3)]}


def test_test_images_without_training_images_are_found(tmp_path):
    nnunet(tmp_path, channels=2)
    (tmp_path / "imagesTr").rename(tmp_path / "imagesTs")
    (tmp_path / "labelsTr").rename(tmp_path / "labelsTs")
    assert list(images_of(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize("content", [[{"image": ["a.nii.gz", "b.nii.gz"]}], [["a.nii.gz", "b.nii.gz"]]])
def test_lists_need_no_labels_and_no_names(tmp_path, content):
    for name in "ab":
        volume(tmp_path / f"{name}.nii.gz")
    assert images_of(write_json(tmp_path / "mine.json", content)) == {"a": ["a.nii.gz", "b.nii.gz"]}
    (tmp_path / "mine.csv").write_text("case,image\none,a.nii.gz|b.nii.gz\n")
    assert images_of(tmp_path / "mine.csv") == {"one": ["a.nii.gz", "b.nii.gz"]}
    assert images_of(volume(tmp_path / "c.nii.gz")) is None


def test_a_list_with_a_split_and_a_case_without_a_label_is_found_by_who_scores(tmp_path):
    rows = ["case,image,label,split"]
    for case, split in (("a", "train"), ("b", "train"), ("c", "val")):
        image, label = volume(tmp_path / f"{case}.nii.gz"), volume(tmp_path / f"{case}_label.nii.gz")
        rows.append(f"{case},{image},{'' if case == 'b' else label},{split}")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    write_json(tmp_path / "labels.json", LABELS)
    found = list_cases(tmp_path / "cases.csv", fold=None, strict=False)
    assert ([case.id for case in found.cases], [error.case for error in found.refused]) == (["a", "c"], ["b"])


def test_a_published_layout_may_be_named_by_its_file(tmp_path):
    decathlon(tmp_path)
    assert [case.id for case in list_cases(tmp_path / "dataset.json", "msd").cases] == ["a", "b", "c"]


def test_other_spellings_are_found_by_looking_through_each_folder_once(tmp_path, monkeypatch):
    nnunet(tmp_path, cases=[f"c{n}" for n in range(40)])
    for path in (*(tmp_path / "imagesTr").iterdir(), *(tmp_path / "labelsTr").iterdir()):
        path.rename(path.with_name(path.name.removesuffix(".gz")))
    looked, volume_files = Counter(), FileIndex.volume_files
    monkeypatch.setattr(FileIndex, "volume_files", lambda self, at: looked.update([at]) or volume_files(self, at))
    assert len(list_cases(tmp_path).cases) == 40
    assert looked[tmp_path / "labelsTr"] <= 2


def test_a_file_is_taken_for_no_two_names(tmp_path):
    """Names that differ in the case of letters, and one file that may be either's."""
    volume(tmp_path / "a.nii")
    cases = [
        {"case": case, "image": f"{name}.nii.gz", "label": "l.nii.gz"} for case, name in (("one", "a"), ("two", "A"))
    ]
    volume(tmp_path / "l.nii.gz")
    listed = write_json(tmp_path / "cases.json", {"cases": cases, "labels": LABELS})
    refused(listed, "case one: ", "a.nii.gz: expected a file", "case two: ", "A.nii.gz: expected a file")
    write_json(listed, {"cases": [cases[0], {**cases[0], "case": "again"}], "labels": LABELS})
    assert [case.image[0].name for case in list_cases(listed).cases] == ["a.nii", "a.nii"]
