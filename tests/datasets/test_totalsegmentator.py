"""The TotalSegmentator and AbdomenAtlas layout."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.check import check
from pipeline.datasets.listing import find_images, list_cases
from pipeline.datasets.rows import LabelReading
from tests.support.datasets import refused, totalsegmentator, volume, write_json
from tests.support.volume_files import save
from transforms.io.load import LoadVolumed


def test_masks_become_classes_by_name(tmp_path):
    totalsegmentator(tmp_path)
    (tmp_path / "meta.csv").write_text("image_id;age;split;subject\ns1;50;train;p1\ns2;60;val;p2\ns3;70;test;p3\n")
    found = list_cases(tmp_path)
    assert found.layout == "totalsegmentator"
    assert found.classes.names == ("background", "liver", "spleen")
    assert (found.classes.values, found.channel_names) == ((0, 1, 2), ("CT",))
    folder = tmp_path / "s1/segmentations"
    assert found.cases[0].label == ((1, folder / "liver.nii.gz"), (2, folder / "spleen.nii.gz"))
    assert [case.subject for case in found.cases] == ["p1", "p2"]
    assert (found.split.train, found.split.val) == (("s1",), ("s2",))
    chosen = list_cases(tmp_path, class_names=["background", "spleen"])
    assert chosen.cases[0].label == ((1, folder / "spleen.nii.gz"),)


def test_a_mask_that_is_missing_means_not_annotated_unless_it_is_said_to_mean_absent(tmp_path):
    """TotalSegmentator writes empty masks for what is not in the body."""
    totalsegmentator(tmp_path)
    (tmp_path / "s2/segmentations/liver.nii.gz").unlink()
    found = list_cases(tmp_path)
    assert [case.annotated for case in found.cases] == [None, (2,)]
    assert found.cases[1].label == ((2, tmp_path / "s2/segmentations/spleen.nii.gz"),)
    assert found.n_annotated(["s1", "s2"]) == {"liver": 1, "spleen": 2}
    (warning,) = found.warnings
    assert "no mask, which means not annotated" in warning.found
    assert "liver in 1 of 2 cases (s2)" in warning.found
    absent = list_cases(tmp_path, labels=LabelReading(missing_masks="absent"))
    assert [case.annotated for case in absent.cases] == [None, None]
    assert (absent.cases[1].label, absent.is_partly_labelled) == (found.cases[1].label, False)
    assert "absent from the body" in absent.warnings[0].found
    assert not list_cases(tmp_path, class_names=["background", "spleen"]).warnings
    refused(tmp_path, "case s2", "a mask of one of the classes", "spleen", class_names=["background", "liver"])


def test_combined_labels_are_used_where_their_values_are_known(tmp_path):
    totalsegmentator(tmp_path, image="mri")
    for case in ("s1", "s2"):
        volume(tmp_path / case / "combined_labels.nii.gz")
    assert isinstance(list_cases(tmp_path).cases[0].label, tuple)
    write_json(tmp_path / "labels.json", {"liver": 4, "spleen": 9})
    found = list_cases(tmp_path)
    assert found.cases[0].label == tmp_path / "s1/combined_labels.nii.gz"
    assert (found.classes.values, found.channel_names) == ((0, 4, 9), ("MR",))


def test_a_bare_list_orders_the_masks_and_says_nothing_of_combined_labels(tmp_path):
    totalsegmentator(tmp_path)
    liver, spleen = np.zeros((2, 2, 2, 2), np.uint8)
    liver[0], spleen[1] = 1, 1
    for case in ("s1", "s2"):
        for name, array in (("liver", liver), ("spleen", spleen)):
            save(tmp_path / f"{case}/segmentations/{name}.nii.gz", array, np.eye(4))
        save(tmp_path / f"{case}/combined_labels.nii.gz", liver + 2 * spleen, np.eye(4))
    for names, masks in ((["background", "spleen", "liver"], True), ({"liver": 1, "spleen": 2}, False)):
        write_json(tmp_path / "labels.json", names)
        found = list_cases(tmp_path)
        label = found.cases[0].label
        assert isinstance(label, tuple) == masks
        loaded = LoadVolumed(label_values=found.classes.values)({"image": found.cases[0].image[0], "label": label})
        classes = loaded["label"].numpy()[0]
        for name, mask in (("liver", liver), ("spleen", spleen)):
            assert np.array_equal(classes == found.classes.names.index(name), mask == 1)
    write_json(tmp_path / "labels.json", ["background", "spleen", "liver"])
    (tmp_path / "s2/segmentations/spleen.nii.gz").unlink()
    assert list_cases(tmp_path).cases[1].annotated == (2,)
    (tmp_path / "s2/segmentations/liver.nii.gz").unlink()
    refused(tmp_path, "case s2", "combined_labels.nii.gz", "masks, as other cases have", "labels.json")


def test_two_files_of_one_name_are_not_chosen_between(tmp_path):
    totalsegmentator(tmp_path)
    extra = volume(tmp_path / "s2/segmentations/liver.nii")
    refused(tmp_path, "case s2: expected one file", "liver.nii and ", "liver.nii.gz; remove one")
    extra.unlink()
    volume(tmp_path / "s1/mri.nii.gz")
    refused(tmp_path, "case s1: expected one file", "ct.nii.gz and ", "mri.nii.gz; remove one")
    assert list(find_images(tmp_path).images) == ["s2"]


def test_class_names_without_a_background_do_not_swallow_the_first_structure(tmp_path):
    totalsegmentator(tmp_path)
    write_json(tmp_path / "class_names.json", ["liver", "spleen"])
    refused(tmp_path, "class_names.json", "begins with the background")
    write_json(tmp_path / "class_names.json", {"liver": 0, "spleen": 1})
    refused(tmp_path, "class 0 to be the background", "'liver', of which case s1 has a mask")
    (tmp_path / "class_names.json").unlink()
    refused(tmp_path, "begins with the background", class_names=["liver", "spleen"])


def test_a_case_without_masks_is_named(tmp_path):
    totalsegmentator(tmp_path)
    volume(tmp_path / "s3/ct.nii.gz")
    refused(tmp_path, "case s3", "expected a label")


def test_a_folder_with_masks_and_without_an_image_is_named(tmp_path):
    totalsegmentator(tmp_path)
    volume(tmp_path / "s3/segmentations/liver.nii.gz")
    volume(tmp_path / "s3/segmentations/spleen.nii.gz")
    (tmp_path / "notes").mkdir()
    refused(tmp_path, "case s3", "s3/segmentations", "expected an image beside the label, found none")


def test_cases_of_meta_csv_without_a_folder_are_named(tmp_path):
    totalsegmentator(tmp_path)
    (tmp_path / "meta.csv").write_text("image_id;split\ns1;train\ns2;val\ns3;test\ns4;test\n")
    found = list_cases(tmp_path)
    ((warning),) = found.warnings
    assert (warning.kind, warning.found) == ("missing_case", "none for 2 of 4: s3, s4")
    report = check(tmp_path, workers=1)
    assert [f.severity for f in report.findings if f.kind == "missing_case"] == ["warning"]


def test_a_case_that_meta_csv_holds_twice_is_refused(tmp_path):
    totalsegmentator(tmp_path)
    (tmp_path / "meta.csv").write_text("image_id;split\ns1;train\n\ns2;val\ns1;val\n")
    refused(tmp_path, "case s1", "meta.csv: expected one line for every image_id, found lines 2 and 5")


def test_combined_labels_alone_need_names_for_their_values(tmp_path):
    for case in ("s1", "s2"):
        volume(tmp_path / case / "ct.nii.gz")
        volume(tmp_path / case / "combined_labels.nii.gz")
    refused(tmp_path, "names of the classes, found none", "labels.json")
    for options in ({"class_names": ["background", "liver"]}, {}):
        found = list_cases(tmp_path, **options)
        assert found.cases[0].label == tmp_path / "s1/combined_labels.nii.gz"
        assert found.classes.names == ("background", "liver")
        write_json(tmp_path / "labels.json", {"liver": 1})


@pytest.mark.parametrize(("image", "channel"), [("CT", "CT"), ("MRI", "MR"), ("image", "image")])
def test_the_image_may_have_another_name(tmp_path, image, channel):
    found = list_cases(totalsegmentator(tmp_path, image=image))
    assert (found.layout, found.channel_names) == ("totalsegmentator", (channel,))
    assert [case.image[0].name for case in found.cases] == [f"{image}.nii.gz"] * 2


def test_combined_labels_may_have_another_suffix(tmp_path):
    for case in ("s1", "s2"):
        volume(tmp_path / case / "ct.nii.gz")
        volume(tmp_path / case / "combined_labels.nii")
    write_json(tmp_path / "labels.json", {"liver": 4})
    assert list_cases(tmp_path).cases[0].label == tmp_path / "s1/combined_labels.nii"


@pytest.mark.parametrize("table", [None, ["background", "liver", "spleen", "ignore"]])
def test_a_mask_of_voxels_to_be_ignored_is_refused(tmp_path, table):
    """It would be a class of its own, or count as background."""
    totalsegmentator(tmp_path)
    volume(tmp_path / "s1/segmentations/ignore.nii.gz")
    if table:
        write_json(tmp_path / "labels.json", table)
    refused(tmp_path, "case s1", "ignore.nii.gz", "masks of structures", "only a value of label maps can say")
    (tmp_path / "s1/segmentations/ignore.nii.gz").unlink()
    assert list_cases(tmp_path).classes.names == ("background", "liver", "spleen")
