"""How predictions and labels lie on disk: label maps, masks, data sets, single cases, records."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import PurePath

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.errors import DatasetError
from pipeline.evaluate import evaluate
from pipeline.evaluation.case_files import list_case_files
from pipeline.evaluation.metrics_file import to_document
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from pipeline.evaluation.scored_case import read_scored_case
from pipeline.writers.dicom_seg import write_dicom_seg
from tests.support.evaluation import TABLE, blobs, save, save_masks, sitk_dice, three_cases, write_names
from tests.support.segmentations import segmentation_of
from tests.support.volumes import write_series
from transforms.io.errors import VolumeError

NAMES = ("background", "liver", "spleen", "aorta")


def map_of(seed):
    return blobs(seed, len(NAMES), (24, 22, 16))


@pytest.fixture
def folders(tmp_path):
    return three_cases(tmp_path)


@pytest.mark.parametrize("inner", ["", "segmentations"])
def test_folders_of_masks_score_as_label_maps_do(tmp_path, inner):
    for seed, case in enumerate(("s1", "s2")):
        label, prediction = map_of(seed), np.roll(map_of(seed), 1, 0)
        save(label, tmp_path / "label_maps" / f"{case}.nii.gz")
        save(prediction, tmp_path / "prediction_maps" / f"{case}.nii.gz")
        save_masks(label, tmp_path / "label_masks" / case / inner, NAMES)
        save_masks(prediction, tmp_path / "prediction_masks" / case / inner, NAMES)
        image = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
        save(image, tmp_path / "prediction_masks" / case / "CT.nii.gz")  # no structure
    for kind in ("label_maps", "prediction_maps"):
        write_names(tmp_path / kind, dict(zip(NAMES, range(4), strict=True)))
    maps = evaluate(tmp_path / "prediction_maps", tmp_path / "label_maps")
    for predictions in ("prediction_maps", "prediction_masks"):
        for labels in ("label_maps", "label_masks"):
            result = evaluate(tmp_path / predictions, tmp_path / labels)
            assert set(result.class_names) == set(NAMES)
            order = [result.class_names.index(name) for name in NAMES]
            assert [case.case for case in result.cases] == [case.case for case in maps.cases]
            for one, other in zip(result.cases, maps.cases, strict=True):
                assert np.array_equal(one.dice[order], other.dice)
                assert np.array_equal(one.hd95_mm[order], other.hd95_mm, equal_nan=True)


def test_one_case_of_masks_or_one_file_is_paired_whatever_it_is_called(tmp_path):
    save_masks(map_of(1), tmp_path / "tool" / "patient" / "segmentations", NAMES)
    save_masks(map_of(1), tmp_path / "truth" / "s0001", NAMES)
    (tmp_path / "truth" / "s0001").rename(tmp_path / "truth" / "segmentations")
    for path in ("patient", "patient/segmentations"):
        (case,) = evaluate(tmp_path / "tool" / path, tmp_path / "truth" / "segmentations").cases
        assert (case.case, case.mean_dice) == ("patient", 1.0)
    files = [save(map_of(1), tmp_path / name) for name in ("mine.nii.gz", "theirs.nii")]
    (case,) = evaluate(*files, class_names=NAMES).cases
    assert (case.case, case.mean_dice) == ("mine", 1.0)


def test_folders_without_anything_to_score_are_refused(tmp_path):
    (tmp_path / "empty" / "case").mkdir(parents=True)
    save(map_of(1), tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(VolumeError, match=r"empty: expected label maps .* or folders of masks .*, found none"):
        evaluate(tmp_path / "empty", tmp_path / "labels")
    with pytest.raises(VolumeError, match="nowhere: expected predictions, found no such file or folder"):
        evaluate(tmp_path / "nowhere", tmp_path / "labels")


def test_predictions_of_two_runs_in_one_folder_are_refused(folders):
    for case, name in (("a", "liver"), ("b", "stomach")):
        classes = [{"name": "background", "value": 0}, {"name": name, "value": 7}]
        (folders / "predictions" / f"{case}.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(EvaluationError, match=r"b\.json: its classes differ from those in .*a\.json"):
        evaluate(folders / "predictions", folders / "labels")


def test_masks_of_a_real_scan_score_as_simpleitk_has_them(shared_data, tmp_path):
    source = nib.load(shared_data / "abdomen_ct" / "example_seg_fast_force_split.nii.gz")
    label = np.asarray(source.dataobj).astype(np.uint8)
    chosen = {1: "spleen", 5: "liver", 10: "lung_upper_lobe_left"}
    moved = np.roll(label, (1, 0, 1), (0, 1, 2))
    for value, name in chosen.items():
        save((moved == value).astype(np.uint8), tmp_path / "masks" / "scan" / f"{name}.nii.gz", source.affine)
    save(label, tmp_path / "labels" / "scan.nii.gz", source.affine)
    every = {f"class_{value}": int(value) for value in np.unique(label) if value and value not in chosen}
    values = every | {name: value for value, name in chosen.items()}
    result = evaluate(tmp_path / "masks", tmp_path / "labels", ScoringOptions(surface="area"), class_names=values)
    assert set(result.class_names[1:]) == set(chosen.values())
    assert len(result.classes.only_in_labels) == len(every)
    for value, name in chosen.items():
        c = result.class_names.index(name)
        assert result.cases[0].dice[c] == pytest.approx(sitk_dice(moved, label, value, value), abs=1e-6)


def test_predictions_with_a_record_are_matched_to_the_labels_by_name(folders):
    plain = evaluate(folders / "predictions", folders / "labels").cases
    shuffled = {"background": 0, "right": 1, "left": 2, "spleen": 3, "liver": 4}
    for case in "abc":
        path = folders / "predictions" / f"{case}.nii.gz"
        array = np.asarray(nib.load(path).dataobj)
        save(np.array([0, 4, 3, 2, 1], np.uint8)[array], path)
    classes = [{"name": name, "value": value} for name, value in shuffled.items()]
    (folders / "predictions" / "a.json").write_text(json.dumps({"classes": classes}))
    result = evaluate(folders / "predictions", folders / "labels")
    assert result.class_names == TABLE.names
    assert [case.dice.tolist() for case in result.cases] == [case.dice.tolist() for case in plain]
    assert [case.label_sha256 for case in result.cases] == [case.label_sha256 for case in plain]
    classes[1]["name"] = "kidney"
    (folders / "predictions" / "a.json").write_text(json.dumps({"classes": classes}))
    partly = evaluate(folders / "predictions", folders / "labels")
    assert partly.classes.only_in_predictions == ("kidney",)
    assert partly.classes.only_in_labels == ("right",)


def test_labels_are_found_in_a_data_set_of_masks(tmp_path):
    label = blobs(4, n_classes=3)
    save(label.astype(np.int16), tmp_path / "data" / "s1" / "ct.nii.gz")
    for value, name in enumerate(("background", "liver", "spleen")):
        if value:
            save((label == value).astype(np.uint8), tmp_path / "data" / "s1" / "segmentations" / f"{name}.nii.gz")
    save(label, tmp_path / "predictions" / "s1.nii.gz")
    # TotalSegmentator's numbers are not in the order of its names.
    with pytest.raises(EvaluationError, match="nothing says which value of the predictions is which structure"):
        evaluate(tmp_path / "predictions", tmp_path / "data")
    write_names(tmp_path / "predictions", {"background": 0, "liver": 1, "spleen": 2})
    result = evaluate(tmp_path / "predictions", tmp_path / "data")
    assert result.class_names == ("background", "liver", "spleen")
    assert result.cases[0].dice.tolist() == [1, 1, 1]


def test_a_result_in_two_formats_is_one_and_two_files_of_a_case_are_refused(folders):
    for name in ("a.seg.nrrd", "b.mha"):
        (folders / "predictions" / name).write_bytes(b"")
    with pytest.raises(EvaluationError, match=r"b\.mha and .*b\.nii\.gz are both of case b; keep one of them"):
        list_case_files(folders / "predictions", "prediction")
    (folders / "predictions" / "b.mha").unlink()
    listed = list_case_files(folders / "predictions", "prediction")
    assert [path.name for path in listed.files.values()] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_listing_takes_as_many_steps_a_file_in_a_large_folder_as_in_a_small_one(tmp_path, monkeypatch):
    steps = {"compared": 0, "stat": 0}
    equal, stat = PurePath.__eq__, os.stat

    def counted_equal(one, other):
        steps["compared"] += 1
        return equal(one, other)

    def counted_stat(*arguments, **options):
        steps["stat"] += 1
        return stat(*arguments, **options)

    def of(n):
        folder = tmp_path / str(n)
        folder.mkdir()
        for case in range(n):
            for suffix in (".nii.gz", ".seg.nrrd"):
                (folder / f"case_{case}{suffix}").touch()
        steps.update(compared=0, stat=0)
        assert len(list_case_files(folder, "prediction").files) == n
        return dict(steps)

    monkeypatch.setattr(PurePath, "__eq__", counted_equal)
    monkeypatch.setattr(os, "stat", counted_stat)
    few, many = of(50), of(400)
    for what, count in many.items():
        assert count <= 8 * max(few[what], 1) + 50, (what, few, many)


def test_a_label_without_its_image_is_left_out_and_named(tmp_path):
    for case in ("s1", "s2"):
        save_masks(blobs(4, n_classes=3), tmp_path / "data" / case / "segmentations", ("background", "liver", "spleen"))
        save(blobs(4, n_classes=3), tmp_path / "predictions" / f"{case}.nii.gz")
    save(blobs(4, n_classes=3).astype(np.int16), tmp_path / "data" / "s1" / "ct.nii.gz")
    write_names(tmp_path / "predictions", {"background": 0, "liver": 1, "spleen": 2})
    result = evaluate(tmp_path / "predictions", tmp_path / "data")
    assert [(case.case, case.mean_dice) for case in result.cases] == [("s1", 1)]
    assert any("no image of it: case s2" in note for note in result.notes)


def test_masks_that_overlap_are_scored_with_a_note(tmp_path):
    liver, lesion = np.zeros((2, 12, 12, 12), np.uint8)
    liver[2:10, 2:10, 2:10], lesion[4:6, 4:6, 4:6] = 1, 1
    for kind in ("labels", "predictions"):
        for name, mask in (("lesion", lesion), ("liver", liver)):
            save(mask, tmp_path / kind / "a" / f"{name}.nii.gz")
    (note, *_) = evaluate(tmp_path / "predictions", tmp_path / "labels").notes
    assert "(label and prediction together): lesion loses 16 voxels to liver in 1 case" in note
    save(lesion, tmp_path / "labels" / "a" / "biopsy.nii.gz")  # not predicted, so not scored
    assert note in evaluate(tmp_path / "predictions", tmp_path / "labels").notes
    (tmp_path / "labels" / "a" / "biopsy.nii.gz").unlink()
    for kind in ("labels", "predictions"):
        save(liver - lesion, tmp_path / kind / "a" / "liver.nii.gz")
    assert evaluate(tmp_path / "predictions", tmp_path / "labels").notes == ()


def test_of_masks_that_overlap_the_same_structure_counts_in_predictions_and_labels(tmp_path):
    """A cyst in its kidney, and the whole trunk, which no label knows: none of these is lost for its name's letters."""
    kidney, cyst = np.zeros((2, 12, 12, 12), np.uint8)
    kidney[2:10, 2:10, 2:10], cyst[4:6, 4:6, 4:6] = 1, 1
    save(kidney.astype(np.int16), tmp_path / "data" / "s1" / "ct.nii.gz")
    (tmp_path / "data" / "labels.json").write_text(json.dumps(["background", "kidney", "cyst"]))
    for name, mask in (("kidney", kidney), ("cyst", cyst)):
        save(mask, tmp_path / "data" / "s1" / "segmentations" / f"{name}.nii.gz")
        save(mask, tmp_path / "predictions" / "s1" / f"{name}.nii.gz")
    save(np.ones_like(kidney), tmp_path / "predictions" / "s1" / "trunk.nii.gz")
    result = evaluate(tmp_path / "predictions", tmp_path / "data")
    assert (result.class_names, result.cases[0].dice.tolist()) == (("background", "kidney", "cyst"), [1, 1, 1])
    again = read_scored_case(to_document(result)["cases"][0], to_document(result))
    assert np.array_equal(again.prediction, kidney + cyst)


def test_a_mask_of_a_structure_that_the_predictions_do_not_know_takes_no_voxels_from_those_that_are_scored(tmp_path):
    """The trunk, which only the labels have, holds the liver, and its name comes later in the alphabet."""
    liver = np.zeros((12, 12, 12), np.uint8)
    liver[2:10, 2:10, 2:10] = 1
    for kind in ("labels", "predictions"):
        save(liver, tmp_path / kind / "s1" / "liver.nii.gz")
    save(np.ones_like(liver), tmp_path / "labels" / "s1" / "trunk.nii.gz")
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert (result.cases[0].dice.tolist(), result.cases[0].overlapping) == ([1, 1], {})
    assert np.array_equal(read_scored_case(to_document(result)["cases"][0], to_document(result)).label, liver)


def test_a_mask_of_voxels_to_be_ignored_is_no_structure(tmp_path):
    for kind in ("labels", "predictions"):
        save_masks(map_of(1), tmp_path / kind / "a", NAMES)
    save((map_of(1) == 0).astype(np.uint8), tmp_path / "predictions" / "a" / "ignore.nii.gz")
    assert set(evaluate(tmp_path / "predictions", tmp_path / "labels").class_names) == set(NAMES)
    save((map_of(1) == 0).astype(np.uint8), tmp_path / "labels" / "a" / "ignore.nii.gz")
    with pytest.raises(DatasetError, match=r"case a: .*ignore\.nii\.gz.*only a value of label maps can say"):
        evaluate(tmp_path / "predictions", tmp_path / "labels")


def test_a_json_file_above_the_labels_that_is_no_table_is_passed_over(tmp_path):
    for kind in ("labels", "predictions"):
        save(blobs(1), tmp_path / kind / "a.nii.gz")
    (tmp_path / "class_names.json").write_text('{"task one": {"background": 0, "liver": 1}}')
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert result.cases[0].mean_dice == 1
    assert any("passed over" in note and "class_names.json" in note for note in result.notes)


def test_labels_beside_images_need_no_names_to_be_scored(tmp_path):
    for case in "ab":
        save(blobs(1).astype(np.int16), tmp_path / "data" / "images" / f"{case}.nii.gz")
        save(blobs(1), tmp_path / "data" / "labels" / f"{case}.nii.gz")
        save(blobs(1), tmp_path / "predictions" / f"{case}.nii.gz")
    result = evaluate(tmp_path / "predictions", tmp_path / "data", class_names={"liver": 1, "spleen": 2})
    assert (result.class_names, [case.mean_dice for case in result.cases]) == (
        ("background", "liver", "spleen"),
        [1, 1],
    )
    rows = "case,image,label\na,data/images/a.nii.gz,data/labels/a.nii.gz\n"
    (tmp_path / "cases.csv").write_text(rows)
    with pytest.raises(DatasetError) as refused:
        evaluate(tmp_path / "predictions", tmp_path / "cases.csv")
    assert "write labels.json beside the data" in str(refused.value)
    assert "data.class_names" not in str(refused.value)  # no setting of this command


def test_a_case_of_a_data_set_that_cannot_serve_is_refused_alone(tmp_path):
    names = ("background", "liver", "spleen")
    for case in ("s1", "s2", "s3"):
        save(blobs(1).astype(np.int16), tmp_path / "data" / case / "ct.nii.gz")
        save_masks(blobs(1), tmp_path / "data" / case / "segmentations", names)
        save_masks(blobs(1), tmp_path / "predictions" / case, names)
    save(blobs(1).astype(np.int16), tmp_path / "data" / "s2" / "mri.nii.gz")
    result = evaluate(tmp_path / "predictions", tmp_path / "data")
    assert {case.case: case.mean_dice for case in result.cases} == {"s1": 1, "s3": 1}
    assert result.refused["s2"].startswith("case s2: expected one file, found ")
    assert result.exit_code == 1
    assert not any("without a label" in note for note in result.notes)
    (tmp_path / "one").mkdir()
    (tmp_path / "predictions" / "s2").rename(tmp_path / "one" / "s2")
    with pytest.raises(EvaluationError, match="case s2: expected one file"):
        evaluate(tmp_path / "one", tmp_path / "data")


def test_a_folder_of_one_result_and_one_label_file_are_a_pair(tmp_path):
    save(blobs(1), tmp_path / "out" / "series.nii.gz")
    save(blobs(1), tmp_path / "label.nii.gz")
    (case,) = evaluate(tmp_path / "out", tmp_path / "label.nii.gz").cases
    assert (case.case, case.mean_dice) == ("series", 1)


def test_a_value_of_no_class_names_the_flag_that_this_command_has(folders):
    for case in "abc":
        path = folders / "predictions" / f"{case}.nii.gz"
        save(np.asarray(nib.load(path).dataobj) * np.uint8(9), path)
    with pytest.raises(EvaluationError, match=r"expected the label values 0-4, found 9 .*--class_names NAME=VALUE"):
        evaluate(folders / "predictions", folders / "labels")


def test_a_published_dicom_seg_scores_as_its_nrrd_does(shared_data, tmp_path):
    for kind, name in (("predictions", "liver.dcm"), ("labels", "liver_seg.nrrd")):
        (tmp_path / kind).mkdir()
        target = tmp_path / kind / f"scan{''.join((shared_data / 'dicom_seg' / name).suffixes)}"
        target.write_bytes((shared_data / "dicom_seg" / name).read_bytes())
    write_names(tmp_path / "labels", {"background": 0, "liver": 1})
    for pair in (("predictions", "labels"), ("labels", "predictions"), ("predictions", "predictions")):
        (case,) = evaluate(*(tmp_path / kind for kind in pair)).cases
        assert (case.case, case.mean_dice, case.hd95_mm[1], case.resampled) == ("scan", 1.0, 0.0, False)
    (case,) = evaluate(tmp_path / "labels" / "scan.nrrd", tmp_path / "predictions" / "scan.dcm").cases
    assert (case.mean_dice, case.hd95_mm[1]) == (1.0, 0.0)


def test_a_dicom_seg_that_leaves_empty_slices_out_is_scored_on_the_whole_grid(tmp_path):
    write_series(tmp_path / "series", [0, 3, 6, 9, 12, 15])
    whole = segmentation_of(tmp_path / "series")
    held = np.zeros_like(whole.array)
    held[2:9, 3:8, 2:4] = 1  # no voxel in the first and last slices
    write_dicom_seg(replace(whole, array=held), _made(tmp_path / "predictions") / "a.dcm")
    truth = held.copy()
    truth[2:9, 3:8, 5] = 1  # one slice more, outside of what the DICOM SEG holds
    save(truth.astype(np.uint8), tmp_path / "labels" / "a.nii.gz", whole.affine)
    write_names(tmp_path / "labels", {"background": 0, "liver": 1})
    for predictions, labels in (("predictions", "labels"), ("labels", "predictions")):
        (case,) = evaluate(tmp_path / predictions, tmp_path / labels).cases
        assert case.dice[1] == pytest.approx(2 * 70 / (70 + 105))
        assert {case.false_negatives[1], case.false_positives[1]} == {0, 35}


def _made(folder):
    folder.mkdir(parents=True)
    return folder
