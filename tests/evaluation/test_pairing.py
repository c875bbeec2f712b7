"""Which prediction belongs to which label: folders of masks, bare numbers, parts in common; against SimpleITK."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from pipeline.datasets.errors import DatasetError
from pipeline.evaluate import evaluate
from pipeline.evaluation.pairing import EvaluationError, parse_class_names
from pipeline.evaluation.report import to_text
from pipeline.evaluation.summary import to_document
from transforms.io.grid import VolumeError

AFFINE = np.diag([-0.9, 1.1, 2.0, 1])
NAMES = ("background", "liver", "spleen", "aorta")


def save(array, path, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def blobs(seed, n_classes=4, shape=(24, 22, 16)):
    noise = np.random.default_rng(seed).normal(size=(n_classes, *shape))
    return ndimage.gaussian_filter(noise, (0, 2, 2, 2)).argmax(0).astype(np.uint8)


def save_masks(array, folder, names=NAMES):
    for value, name in enumerate(names):
        if value:
            save((array == value).astype(np.uint8), folder / f"{name}.nii.gz")


def write_names(folder, values):
    (folder / "labels.json").write_text(json.dumps(values))


def dice_of(prediction, label, p, c):
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*[sitk.GetImageFromArray((a == v).astype(np.uint8)) for a, v in ((prediction, p), (label, c))])
    return overlap.GetDiceCoefficient(1)


@pytest.fixture
def folders(tmp_path):
    """Two cases of label maps whose values differ from side to side and whose classes are common in part."""
    for seed, case in enumerate("ab", start=1):
        save(blobs(seed), tmp_path / "labels" / f"{case}.nii.gz")
        save(np.roll(np.array([0, 7, 5, 9], np.uint8)[blobs(seed)], 1, 0), tmp_path / "predictions" / f"{case}.nii.gz")
    write_names(tmp_path / "labels", {"background": 0, "liver": 1, "spleen": 2, "aorta": 3})
    write_names(tmp_path / "predictions", {"background": 0, "liver": 7, "stomach": 5, "aorta": 9})
    return tmp_path


def test_classes_in_common_score_as_simpleitk_has_it_and_the_others_are_named(folders):
    result = evaluate(folders / "predictions", folders / "labels")
    assert result.class_names == ("background", "liver", "aorta")
    assert {case.case for case in result.cases} == {"a", "b"}
    for case in result.cases:
        prediction, label = (np.asarray(nib.load(p).dataobj) for p in (case.pair.prediction, case.pair.label))
        assert case.dice[1:] == pytest.approx([dice_of(prediction, label, 7, 1), dice_of(prediction, label, 9, 3)])
    document = to_document(result)
    assert document["left_out"] == {"only_in_labels": ("spleen",), "only_in_predictions": ("stomach",)}
    text = to_text(result)
    assert "only the labels know them: spleen" in text
    assert "only the predictions know them: stomach" in text


def test_the_labels_hash_does_not_depend_on_what_the_predictions_know(folders):
    partly = evaluate(folders / "predictions", folders / "labels")
    fully = evaluate(folders / "labels", folders / "labels")
    hashes = [{case.case: case.label_sha256 for case in result.cases} for result in (partly, fully)]
    assert hashes[0] == hashes[1]


def test_nothing_in_common_is_refused(folders):
    write_names(folders / "predictions", {"background": 0, "stomach": 7, "bladder": 5, "colon": 9})
    with pytest.raises(DatasetError, match="no class in common: the predictions hold bladder, stomach, colon"):
        evaluate(folders / "predictions", folders / "labels")


def test_bare_numbers_are_taken_for_the_other_sides_and_that_is_said(folders):
    (folders / "predictions" / "labels.json").unlink()
    for case in "ab":
        save(blobs(1), folders / "predictions" / f"{case}.nii.gz")
    result = evaluate(folders / "predictions", folders / "labels")
    assert result.class_names == NAMES
    (note,) = to_document(result)["notes"]
    assert note.startswith(
        "nothing names the classes of the predictions: their values are taken for those of the labels"
    )
    assert "liver=1, spleen=2, aorta=3" in note
    assert "--class_names" in note
    assert note in to_text(result)
    (folders / "labels" / "labels.json").unlink()
    result = evaluate(folders / "predictions", folders / "labels")
    assert result.class_names[1] == "class_1"
    assert "nothing names the classes: each is called by its value" in result.notes[0]


def test_given_names_say_what_bare_numbers_mean(folders):
    named = evaluate(folders / "predictions", folders / "labels")
    (folders / "predictions" / "labels.json").unlink()
    given = parse_class_names("liver=7, stomach=5,aorta=9")
    result = evaluate(folders / "predictions", folders / "labels", class_names=given)
    assert [case.dice.tolist() for case in result.cases] == [case.dice.tolist() for case in named.cases]
    assert not result.notes
    # In order: 0 background, 1 liver, …; the values 5 to 9 are then no class of the predictions.
    with pytest.raises(EvaluationError, match=r"none of 2 cases .*expected the label values 0-3, found 5"):
        evaluate(folders / "predictions", folders / "labels", class_names=NAMES)


def test_names_that_help_nobody_are_refused(folders):
    with pytest.raises(EvaluationError, match="name their classes themselves"):
        evaluate(folders / "predictions", folders / "labels", class_names=NAMES)
    (folders / "predictions" / "labels.json").unlink()
    with pytest.raises(EvaluationError, match="expected the background first, found 'liver'; write background,liver"):
        evaluate(folders / "predictions", folders / "labels", class_names=["liver", "spleen"])
    with pytest.raises(EvaluationError, match="each with its value like liver=1, found 'spleen'"):
        parse_class_names("liver=1,spleen")
    with pytest.raises(EvaluationError, match="found 'liver=2'"):
        parse_class_names("liver=1,liver=2")
    assert parse_class_names("") is None


@pytest.mark.parametrize("inner", ["", "segmentations"])
def test_folders_of_masks_score_as_label_maps_do(tmp_path, inner):
    for seed, case in enumerate(("s1", "s2")):
        label, prediction = blobs(seed), np.roll(blobs(seed), 1, 0)
        save(label, tmp_path / "label_maps" / f"{case}.nii.gz")
        save(prediction, tmp_path / "prediction_maps" / f"{case}.nii.gz")
        save_masks(label, tmp_path / "label_masks" / case / inner)
        save_masks(prediction, tmp_path / "prediction_masks" / case / inner)
        save(np.zeros((4, 4, 4), np.int16), tmp_path / "prediction_masks" / case / "ct.nii.gz")  # no structure
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
    save_masks(blobs(1), tmp_path / "tool" / "patient" / "segmentations")
    save_masks(blobs(1), tmp_path / "truth" / "s0001")
    (tmp_path / "truth" / "s0001").rename(tmp_path / "truth" / "segmentations")
    for path in ("patient", "patient/segmentations"):
        (case,) = evaluate(tmp_path / "tool" / path, tmp_path / "truth" / "segmentations").cases
        assert (case.case, case.mean_dice) == ("patient", 1.0)
    files = [save(blobs(1), tmp_path / name) for name in ("mine.nii.gz", "theirs.nii")]
    (case,) = evaluate(*files, class_names=NAMES).cases
    assert (case.case, case.mean_dice) == ("mine", 1.0)


def test_a_missing_mask_is_nothing_predicted_but_no_label(tmp_path):
    for case in ("s1", "s2", "s3"):
        for side in ("predictions", "labels"):
            save_masks(blobs(1), tmp_path / side / case)
    (tmp_path / "predictions" / "s2" / "liver.nii.gz").unlink()
    (tmp_path / "labels" / "s3" / "spleen.nii.gz").unlink()
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert [case.case for case in result.cases] == ["s2", "s1"]
    worst = result.cases[0]
    assert worst.dice[result.class_names.index("liver")] == 0
    assert worst.dice[result.class_names.index("spleen")] == 1
    assert "case s2: no predicted mask of liver; counted as nothing predicted" in result.notes
    assert (
        "case s3: expected a mask for each structure that other cases have, found none for spleen"
        in (result.refused["s3"])
    )
    assert result.exit_code == 1


def test_masks_say_nothing_about_bare_numbers(tmp_path):
    save_masks(blobs(1), tmp_path / "predictions" / "s1")
    save(np.array([0, 30, 10, 20], np.uint8)[blobs(1)], tmp_path / "labels" / "s1.nii.gz")
    with pytest.raises(EvaluationError, match=r"nothing says which value of the labels is which structure.*liver=1"):
        evaluate(tmp_path / "predictions", tmp_path / "labels")
    values = {"liver": 30, "spleen": 10, "aorta": 20}
    result = evaluate(tmp_path / "predictions", tmp_path / "labels", class_names=values)
    assert result.cases[0].dice[1:].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1, 3_000_000], "found 0-1, 3000000"),
        ([0, -7], "found the label value -7, expected 0 for the background and positive classes"),
    ],
)
def test_values_of_no_label_map_are_refused_with_case_and_file(tmp_path, values, words):
    label = np.resize(np.array(values, np.int32), blobs(1).shape)
    save(blobs(1), tmp_path / "predictions" / "s1.nii.gz")
    save(label, tmp_path / "labels" / "s1.nii.gz")
    with pytest.raises(EvaluationError) as refused:
        evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert str(refused.value).startswith(f"case s1: {tmp_path / 'labels' / 's1.nii.gz'}: ")
    assert words in str(refused.value)
    named = {"liver": 1, "stray": values[-1]}
    with pytest.raises((EvaluationError, DatasetError), match=r"value"):
        evaluate(tmp_path / "predictions", tmp_path / "labels", class_names=named)


def test_folders_without_anything_to_score_are_refused(tmp_path):
    (tmp_path / "empty" / "case").mkdir(parents=True)
    save(blobs(1), tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(VolumeError, match=r"empty: expected label maps .* or folders of masks .*, found none"):
        evaluate(tmp_path / "empty", tmp_path / "labels")
    with pytest.raises(VolumeError, match="nowhere: expected predictions, found no such file or folder"):
        evaluate(tmp_path / "nowhere", tmp_path / "labels")


def test_predictions_of_two_runs_in_one_folder_are_refused(folders):
    (folders / "predictions" / "labels.json").unlink()
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
    result = evaluate(tmp_path / "masks", tmp_path / "labels", class_names=values, surface="area")
    assert set(result.class_names[1:]) == set(chosen.values())
    assert len(result.classes.only_in_labels) == len(every)
    for value, name in chosen.items():
        c = result.class_names.index(name)
        assert result.cases[0].dice[c] == pytest.approx(dice_of(moved, label, value, value), abs=1e-6)
