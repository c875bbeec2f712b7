"""Data sets of every layout are listed as they were written; contradictions are named; splits keep subjects apart."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.dataset import Case, Split
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.listing import list_cases
from pipeline.datasets.splits import split_by_subject


def volume(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), path)
    return path


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


LABELS = {"background": 0, "liver": 1, "spleen": 2}


def nnunet(root: Path, cases=("a", "b", "c"), channels=1, **extra) -> Path:
    for case in cases:
        for channel in range(channels):
            volume(root / f"imagesTr/{case}_{channel:04d}.nii.gz")
        volume(root / f"labelsTr/{case}.nii.gz")
    names = {str(channel): name for channel, name in zip(range(channels), ("CT", "PET"), strict=False)}
    write_json(root / "dataset.json", {"channel_names": names, "labels": LABELS, "file_ending": ".nii.gz", **extra})
    return root


def totalsegmentator(root: Path, cases=("s1", "s2"), structures=("spleen", "liver"), image="ct") -> Path:
    for case in cases:
        volume(root / f"{case}/{image}.nii.gz")
        for structure in structures:
            volume(root / f"{case}/segmentations/{structure}.nii.gz")
    return root


def pairs(root: Path, cases=("x", "y"), names=LABELS) -> Path:
    for case in cases:
        volume(root / f"images/{case}.nii.gz")
        volume(root / f"labels/{case}.nii")
    if names:
        write_json(root / "labels.json", names)
    return root


def refused(root, *words, **options):
    with pytest.raises(DatasetError) as error:
        list_cases(root, **options)
    assert not any("\n" in line for line in error.value.lines)
    for word in words:
        assert word in str(error.value)


# --- layouts


def test_the_hippocampus_data_set_lists_its_120_cases(shared_data):
    found = list_cases(shared_data / "hippocampus")
    assert found.layout == "nnunet"
    assert len(found.cases) == 120
    assert found.classes.names == ("background", "Anterior", "Posterior")
    assert found.classes.values == (0, 1, 2)
    assert found.channel_names == ("MRI",)
    assert found.split is None
    assert all(case.image[0].is_file() and case.label.is_file() for case in found.cases)


def test_nnunet_channels_stand_in_their_order(tmp_path):
    found = list_cases(nnunet(tmp_path, channels=2))
    assert found.channel_names == ("CT", "PET")
    assert [path.name for path in found.cases[1].image] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert found.cases[1].label == tmp_path / "labelsTr/b.nii.gz"
    (tmp_path / "imagesTr/b_0001.nii.gz").unlink()
    refused(tmp_path, "case b", "2 channel files", "_0000")


def test_nnunet_folds_choose_the_validation_cases(tmp_path):
    nnunet(tmp_path)
    write_json(
        tmp_path / "splits_final.json", [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "b"], "val": ["a"]}]
    )
    assert list_cases(tmp_path).split.val == ("c",)
    second = list_cases(tmp_path, fold=1).split
    assert (second.train, second.val, second.test) == (("b", "c"), ("a",), ())
    refused(tmp_path, "fold 2", "found 2 folds", fold=2)
    write_json(tmp_path / "splits_final.json", [{"train": ["a", "c"], "val": ["c"]}])
    refused(tmp_path, "case c is in train and in val")
    write_json(tmp_path / "splits_final.json", [{"train": ["a", "zz"], "val": ["c"]}])
    refused(tmp_path, "case zz", "no image")


def test_nnunet_test_images_are_kept_apart(tmp_path):
    nnunet(tmp_path)
    volume(tmp_path / "imagesTs/t_0000.nii.gz")
    found = list_cases(tmp_path)
    assert ([case.id for case in found.cases], [case.id for case in found.unlabelled]) == (["a", "b", "c"], ["t"])
    volume(tmp_path / "labelsTs/t.nii.gz")
    found = list_cases(tmp_path)
    assert [case.id for case in found.cases if case.held_out] == ["t"]
    assert split_by_subject(found.cases, seed=0).test == ("t",)


def test_the_ignore_label_is_no_class(tmp_path):
    nnunet(tmp_path, labels={"background": 0, "liver": 1, "spleen": 3, "ignore": 4})
    found = list_cases(tmp_path)
    assert (found.classes.names, found.classes.values) == (("background", "liver", "spleen"), (0, 1, 3))
    assert found.classes.ignore_value == 4


def test_decathlon_lists_and_their_reversed_labels(tmp_path):
    for case in "abc":
        volume(tmp_path / f"imagesTr/{case}.nii.gz")
        volume(tmp_path / f"labelsTr/{case}.nii.gz")
    volume(tmp_path / "imagesTs/t.nii.gz")
    volume(tmp_path / "imagesTr/._a.nii.gz")
    description = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "2": "tumour", "1": "liver"},
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "abc"],
        "test": ["./imagesTs/t.nii.gz"],
    }
    write_json(tmp_path / "dataset.json", description)
    found = list_cases(tmp_path)
    assert found.layout == "msd"
    assert (found.classes.names, found.channel_names) == (("background", "liver", "tumour"), ("CT",))
    assert [case.id for case in found.cases] == ["a", "b", "c"]
    assert [case.id for case in found.unlabelled] == ["t"]
    assert found.split is None
    for fold, entry in enumerate(description["training"]):
        entry["fold"] = fold
    write_json(tmp_path / "dataset.json", description)
    split = list_cases(tmp_path, fold=1).split
    assert (split.train, split.val) == (("a", "c"), ("b",))
    refused(tmp_path, "fold 7", fold=7)
    write_json(tmp_path / "dataset.json", {**description, "modality": {"0": "T1", "1": "T2"}})
    refused(tmp_path, "case a", "expected 2 channels", "4-D")


def test_totalsegmentator_masks_become_classes_by_name(tmp_path):
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
    (tmp_path / "s2/segmentations/liver.nii.gz").unlink()
    refused(tmp_path, "case s2", "liver", "empty mask")


def test_combined_labels_are_used_where_their_values_are_known(tmp_path):
    totalsegmentator(tmp_path, image="mri")
    for case in ("s1", "s2"):
        volume(tmp_path / case / "combined_labels.nii.gz")
    assert isinstance(list_cases(tmp_path).cases[0].label, tuple)
    write_json(tmp_path / "labels.json", {"liver": 4, "spleen": 9})
    found = list_cases(tmp_path)
    assert found.cases[0].label == tmp_path / "s1/combined_labels.nii.gz"
    assert (found.classes.values, found.channel_names) == ((0, 4, 9), ("MR",))


def test_pairs_may_differ_in_suffix_and_take_their_names_from_a_table_or_the_settings(tmp_path):
    found = list_cases(pairs(tmp_path / "a"))
    assert (found.layout, found.classes.names) == ("pairs", ("background", "liver", "spleen"))
    assert [(case.image[0].name, case.label.name) for case in found.cases] == [
        ("x.nii.gz", "x.nii"),
        ("y.nii.gz", "y.nii"),
    ]
    unnamed = pairs(tmp_path / "b", names=None)
    refused(unnamed, "class names are unknown", "labels.json", "data.class_names")
    assert list_cases(unnamed, class_names=["background", "organ"]).classes.names == ("background", "organ")


def test_an_image_may_be_a_dicom_folder(tmp_path, shared_data):
    pairs(tmp_path)
    (tmp_path / "images/ct").symlink_to(shared_data / "dicom_seg/ct-3slice")
    (tmp_path / "labels/ct.nrrd").symlink_to(shared_data / "dicom_seg/liver_seg.nrrd")
    refused(tmp_path, "case ct: ", "leads out of the data set", "--follow_links")
    assert [case.id for case in list_cases(tmp_path, follow_links=True).cases] == ["ct", "x", "y"]


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


def test_bids_names_tell_the_subject(tmp_path):
    found = list_cases(nnunet(tmp_path, cases=("sub-01_ses-1", "sub-01_ses-2", "sub-02", "other_sub-01")))
    assert [case.subject for case in found.cases] == ["other_sub-01", "sub-01", "sub-01", "sub-02"]


# --- contradictions


def test_a_folder_that_is_no_data_set_hears_what_was_looked_for(tmp_path):
    refused(tmp_path, str(tmp_path), "dataset.json", "segmentations", "images/", "cases.csv")
    refused(tmp_path / "absent", "no such file")
    refused(tmp_path, "nnunet, msd, totalsegmentator, pairs, list", layout="bids")
    for layout in ("nnunet", "msd", "totalsegmentator", "list"):
        refused(tmp_path, str(tmp_path), layout=layout)
    refused(tmp_path, "expected cases in the pairs layout", layout="pairs", class_names=["background", "organ"])


def test_an_image_without_a_label_and_a_label_without_an_image_are_named(tmp_path):
    nnunet(tmp_path / "n")
    volume(tmp_path / "n/imagesTr/d_0000.nii.gz")
    refused(tmp_path / "n", "case d", "expected a label", "d_0000.nii.gz")
    pairs(tmp_path / "p")
    volume(tmp_path / "p/labels/z.nii.gz")
    refused(tmp_path / "p", "case z", "expected an image", "z.nii.gz")
    totalsegmentator(tmp_path / "t")
    volume(tmp_path / "t/s3/ct.nii.gz")
    refused(tmp_path / "t", "case s3", "expected a label")


def test_names_in_a_data_sets_own_file_stay_inside_it(tmp_path):
    for name in ("../secret.nii.gz", "/etc/passwd", "a/../../secret.nii.gz", "C:\\secret.nii.gz", "", 7):
        entry = {"image": name, "label": "b.nii.gz"}
        write_json(tmp_path / "dataset.json", {"labels": LABELS, "training": [entry]})
        refused(tmp_path, "dataset.json", repr(name))


@pytest.mark.parametrize("name", ["..", "a/b", ".hidden", "-rf", "a\nb", "x" * 200, "ends.", "a\\b", "nul\0"])
def test_ids_that_cannot_be_file_names_are_refused(tmp_path, name):
    image = volume(tmp_path / "a.nii.gz")
    entry = {"case": name, "image": str(image), "label": str(image)}
    refused(write_json(tmp_path / "cases.json", {"cases": [entry], "labels": LABELS}), "cannot be a file name")


def test_other_contradictions_are_named(tmp_path):
    image = str(volume(tmp_path / "a.nii.gz"))
    entry = {"case": "one", "image": image, "label": image}

    def listed(*entries, **extra):
        return write_json(
            tmp_path / "cases.json", {"cases": [{**entry, **e} for e in entries], "labels": LABELS, **extra}
        )

    refused(listed({}, {}), "case one stands 2 times")
    refused(listed({"label": "b.nii.gz"}), "case one", "b.nii.gz does not exist")
    refused(listed({"image": str(write_json(tmp_path / "x.txt", 1))}), "case one", "x.txt")
    refused(listed({"image": ""}), "case number 1")
    refused(listed({"split": "tuning"}), "case one", "'tuning'")
    refused(listed({"image": [image, image]}, {"case": "two"}), "case two", "expected 2 channels")
    refused(listed({"split": "val"}), "1 cases to validate and none to train")
    refused(listed({"split": "val"}, {"case": "two", "split": "train"}, {"case": "three"}), "none for case three")
    refused(
        listed({"split": "val", "subject": "p"}, {"case": "two", "split": "train", "subject": "p"}), "subject p", "two"
    )
    refused(listed({}), "they differ", "'organ' against 'liver'", class_names=["background", "organ", "spleen"])
    refused(listed({}, labels={"liver": 1, "spleen": 1}), "label value 1 stands 2 times")
    refused(listed({}, labels={"0": "background", "1": "liver", "2": "liver"}), "class name 'liver' stands 2 times")
    refused(listed({}, labels={"background": 0, "whole": [1, 2]}), "'whole' is a region")
    refused(listed({}, labels={"background": 0, "liver": "one"}), "whole number", "'liver'")
    (tmp_path / "cases.json").write_text("[")
    refused(tmp_path / "cases.json", "cannot be read as JSON")
    (tmp_path / "cases.csv").write_text("case,image\none\n")
    refused(tmp_path / "cases.csv", "2 columns in row 2, found 1")


# --- splits


def cases_of(subjects) -> list[Case]:
    return [Case(f"case{i}", str(subject), (Path("x"),), Path("y")) for i, subject in enumerate(subjects)]


@settings(deadline=None, max_examples=60, database=None)
@given(
    subjects=st.lists(st.integers(0, 12), min_size=2, max_size=60),
    seed=st.integers(0, 5),
    held=st.sets(st.integers(0, 12), max_size=1),
)
def test_no_subject_is_on_both_sides(subjects, seed, held):
    cases = [Case(c.id, c.subject, c.image, c.label, int(c.subject) in held) for c in cases_of(subjects)]
    if len({c.subject for c in cases if not c.held_out}) < 2:
        with pytest.raises(DatasetError, match="at least two subjects"):
            split_by_subject(cases, seed=seed)
        return
    split = split_by_subject(cases, seed=seed)
    subject_of = {case.id: case.subject for case in cases}
    sides = [{subject_of[i] for i in side} for side in (split.train, split.val, split.test)]
    assert sides[0]
    assert sides[1]
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert Counter(split.train + split.val + split.test) == Counter(list(subject_of))
    assert {c.id for c in cases if c.held_out} <= set(split.test)


@pytest.mark.parametrize(
    ("n", "sizes"), [(2, (1, 1, 0)), (3, (2, 1, 0)), (10, (8, 1, 1)), (120, (96, 12, 12)), (4028, (3222, 403, 403))]
)
def test_sizes_are_80_10_10(n, sizes):
    split = split_by_subject(cases_of(range(n)), seed=1)
    assert (len(split.train), len(split.val), len(split.test)) == sizes


def test_a_single_case_cannot_be_divided():
    with pytest.raises(DatasetError, match="found 1"):
        split_by_subject(cases_of([0]), seed=0)
    with pytest.raises(ValueError, match="fractions"):
        split_by_subject(cases_of(range(9)), seed=0, fractions=(0.9, 0.0, 0.1))


def test_the_seed_decides_and_the_order_of_cases_does_not():
    cases = cases_of(range(50))
    first, again = split_by_subject(cases, seed=7), split_by_subject(cases[::-1], seed=7)
    assert first == again
    assert first.hash == again.hash != split_by_subject(cases, seed=8).hash


def test_the_hash_is_the_same_on_every_machine():
    split = Split(("a", "b"), ("c",), (), "anywhere")
    text = '{"test": [], "train": ["a", "b"], "val": ["c"]}'
    assert split.hash == hashlib.sha256(text.encode()).hexdigest()
    assert split.hash == Split(("b", "a"), ("c",), (), "elsewhere").hash


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_reach_train_and_validation(seed):
    """40 cases, 4 to validate: classes of 2 to 4 subjects must be on both sides; chance seldom does that."""
    cases = cases_of(range(40))
    rare = {20: (3, 17), 21: (8, 30), 22: (1, 12, 33), 23: (5, 6, 7, 39)}
    classes_of = {case.id: {0, 1, *(c for c, at in rare.items() if i in at)} for i, case in enumerate(cases)}
    split = split_by_subject(cases, seed=seed, classes_of=classes_of)
    assert (len(split.train), len(split.val), len(split.test)) == (32, 4, 4)
    for rare_class in rare:
        for side in (split.train, split.val):
            assert any(rare_class in classes_of[case] for case in side), rare_class


def test_common_classes_keep_their_share_on_every_side():
    rng = np.random.default_rng(0)
    cases = cases_of(range(400))
    classes_of = {case.id: set(np.flatnonzero(rng.random(10) < np.linspace(0.1, 0.9, 10))) for case in cases}
    whole = np.array([sum(c in held for held in classes_of.values()) for c in range(10)]) / 400

    def distance(split):
        """How far the validation side's class shares are from the data set's, on average."""
        return np.mean([abs(sum(c in classes_of[case] for case in split.val) / 40 - whole[c]) for c in range(10)])

    drawn = np.mean([distance(split_by_subject(cases, seed=seed)) for seed in range(20)])
    dealt = [distance(split_by_subject(cases, seed=seed, classes_of=classes_of)) for seed in range(5)]
    assert max(dealt) < 0.75 * drawn
    assert np.mean(dealt) < 0.6 * drawn
