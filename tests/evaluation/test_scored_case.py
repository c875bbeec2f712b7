"""A case is shown as it was scored, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics_file import to_document
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from pipeline.evaluation.scored_case import read_scored_case
from tests.support.evaluation import AFFINE, TABLE, blobs, save, save_masks, save_seg_nrrd, three_cases, write_names

OPTIONS = ScoringOptions(surface=None, workers=1)


@pytest.fixture
def scored(tmp_path):
    three_cases(tmp_path)
    return to_document(evaluate(tmp_path / "predictions", tmp_path / "labels", OPTIONS))


def dice(label, prediction, index):
    both = ((label == index) & (prediction == index)).sum()
    return 2 * both / ((label == index).sum() + (prediction == index).sum())


def test_label_and_prediction_are_those_that_were_scored(scored):
    for case in scored["cases"]:
        read = read_scored_case(case, scored)
        assert read.image is None
        assert np.allclose(read.affine, AFFINE)
        for name, one in case["classes"].items():
            if one["dice"] is not None:
                index = scored["class_names"].index(name)
                assert dice(read.label, read.prediction, index) == pytest.approx(one["dice"])


def test_the_image_is_the_one_of_the_record_on_the_labels_axes(scored, tmp_path):
    case = scored["cases"][0]
    label = nib.load(case["label"])
    image = np.arange(np.prod(label.shape), dtype=np.int16).reshape(label.shape)
    flipped = label.affine @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] = (label.affine @ [label.shape[0] - 1, 0, 0, 1])[:3]
    save(image[::-1], tmp_path / "image.nii.gz", flipped)
    classes = [{"value": v, "name": n} for v, n in zip(TABLE.values, TABLE.names, strict=True)]
    record = {"case": case["case"], "source": [str(tmp_path / "image.nii.gz")], "classes": classes, "files": []}
    (tmp_path / "predictions" / f"{case['case']}.json").write_text(json.dumps(record))
    read = read_scored_case(case, scored)
    assert np.array_equal(read.image, image)


def test_relative_paths_are_found_above_the_metrics_file(tmp_path, monkeypatch):
    """Scored in one folder, shown in another; the image of two channels is that of the record, its first one."""
    root = three_cases(tmp_path / "project")
    monkeypatch.chdir(root)
    save(np.stack([blobs(7), blobs(8)], axis=-1), Path("image.nii.gz"))
    classes = [{"value": v, "name": n} for v, n in zip(TABLE.values, TABLE.names, strict=True)]
    record = {"case": "a", "source": ["image.nii.gz"], "classes": classes, "files": []}
    Path("predictions/a.json").write_text(json.dumps(record))
    document = to_document(evaluate(Path("predictions"), Path("labels"), OPTIONS))
    (case,) = [one for one in document["cases"] if one["case"] == "a"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvaluationError, match="start this where bodyseg evaluate was started"):
        read_scored_case(case, document)
    read = read_scored_case(case, document, root / "predictions" / "metrics.json")
    assert np.array_equal(read.label, blobs(1))
    assert np.array_equal(read.image, blobs(7))


def test_a_label_that_has_changed_is_refused(scored):
    case = scored["cases"][0]
    label = nib.load(case["label"])
    array = np.asarray(label.dataobj).copy()
    array[array == TABLE.values[1]] = TABLE.values[2]
    save(array, Path(case["label"]), label.affine)
    with pytest.raises(EvaluationError, match=r"the label .* no longer holds what was scored; evaluate again"):
        read_scored_case(case, scored)
    Path(case["label"]).unlink()
    with pytest.raises(EvaluationError, match="no such file"):
        read_scored_case(case, scored)


def scored_and_read(root, class_names=None, *, also_by_guessing=True, **options):
    """The first case, and by structure its Dice in metrics.json and in what is read again.

    also_by_guessing: read it, too, as if the file did not say which value is which class, as those of earlier versions.
    """
    options = ScoringOptions(surface=None, workers=1, **options)
    document = to_document(evaluate(root / "predictions", root / "labels", options, class_names=class_names))
    case, names = document["cases"][0], document["class_names"]
    readings = [read_scored_case(case, document)]
    if also_by_guessing:
        assert document.keys() >= {"label_values", "prediction_values"}
        readings.append(read_scored_case(case, earlier_version(document)))
        assert np.array_equal(readings[0].label, readings[1].label)
        assert np.array_equal(readings[0].prediction, readings[1].prediction)
    return {
        name: (one["dice"], dice(readings[0].label, readings[0].prediction, names.index(name)))
        for name, one in case["classes"].items()
        if one["dice"] is not None
    }


def earlier_version(document):
    return {key: value for key, value in document.items() if not key.endswith(("_values", "_remap"))}


def two_boxes():
    label = np.zeros((16, 16, 16), np.uint8)
    label[2:6, 2:14, 2:14], label[10:14, 2:6, 2:14] = 1, 2
    return label


def test_a_resampled_prediction_is_read_by_its_own_names_of_values(tmp_path):
    label = two_boxes()
    save(label, tmp_path / "labels" / "a.nii.gz", np.eye(4))
    write_names(tmp_path / "labels", {"background": 0, "liver": 1, "spleen": 2})
    coarse = np.array([0, 2, 1], np.uint8)[label[::2, ::2, ::2]]
    save(coarse, tmp_path / "predictions" / "a.nii.gz", np.diag([2.0, 2, 2, 1]))
    write_names(tmp_path / "predictions", {"background": 0, "spleen": 1, "liver": 2})
    for scored, shown in scored_and_read(tmp_path, resample=True).values():
        assert shown == pytest.approx(scored)


@pytest.mark.parametrize("class_names", [None, {"liver": 5, "spleen": 7}])
def test_values_that_no_table_names_are_read_as_they_were_scored(tmp_path, class_names):
    values = np.array([0, 5, 7], np.uint8)
    save(values[two_boxes()], tmp_path / "labels" / "a.nii.gz")
    save(values[np.roll(two_boxes(), 1, 0)], tmp_path / "predictions" / "a.nii.gz")
    found = scored_and_read(tmp_path, class_names, also_by_guessing=False)
    assert set(found) == set(class_names or ("class_5", "class_7"))
    for scored, shown in found.values():
        assert shown == pytest.approx(scored) == pytest.approx(0.75)


def test_names_that_are_spelt_otherwise_are_read_as_they_were_scored(tmp_path):
    label = two_boxes()
    save_masks(label, tmp_path / "labels" / "a", ("", "kidney_left", "spleen"))
    save(np.array([0, 20, 30], np.uint8)[np.roll(label, 1, 0)], tmp_path / "predictions" / "a.nii.gz")
    write_names(tmp_path / "predictions", {"background": 0, "Kidney left": 20, "Spleen": 30})
    found = scored_and_read(tmp_path)
    assert found.keys() == {"kidney_left", "spleen"}
    for scored, shown in found.values():
        assert shown == pytest.approx(scored) == pytest.approx(0.75)


def test_what_is_predicted_outside_of_a_cropped_label_is_shown(tmp_path):
    cropped = np.eye(4)
    cropped[:3, 3] = 2
    predicted = np.pad(two_boxes(), 2)
    predicted[18:] = 1
    save(np.zeros((20, 20, 20), np.uint8), tmp_path / "labels" / "images" / "a.nii.gz", np.eye(4))
    save(two_boxes(), tmp_path / "labels" / "labels" / "a.nii.gz", cropped)
    save(predicted, tmp_path / "predictions" / "a.nii.gz", np.eye(4))
    write_names(tmp_path / "labels", {"background": 0, "liver": 1, "spleen": 2})
    write_names(tmp_path / "predictions", {"background": 0, "liver": 1, "spleen": 2})
    scored, shown = scored_and_read(tmp_path)["liver"]
    assert shown == pytest.approx(scored) == pytest.approx(2 * 576 / (576 + 576 + 2 * 20 * 20))


def test_ignored_voxels_and_structures_that_are_not_annotated_do_not_make_a_case_another(tmp_path):
    label = two_boxes()
    label[:, :, 8:10] = 9
    for folder, array in (("labels", label), ("predictions", two_boxes())):
        save(array, tmp_path / "ignored" / folder / "a.nii.gz", np.eye(4))
    write_names(tmp_path / "ignored" / "labels", {"background": 0, "liver": 1, "spleen": 2, "ignore": 9})
    assert scored_and_read(tmp_path / "ignored") == {"liver": (1, 1), "spleen": (1, 1)}
    masks = tmp_path / "masks"
    save_masks(two_boxes(), masks / "labels" / "a", ("background", "liver"))
    save_masks(two_boxes(), masks / "labels" / "b", ("background", "liver", "spleen"))
    for case in "ab":
        save(two_boxes(), masks / "predictions" / f"{case}.nii.gz")
    write_names(masks / "predictions", {"background": 0, "liver": 1, "spleen": 2})
    assert scored_and_read(masks) == {"liver": (1, 1)}


def test_masks_are_found_by_names_as_they_were_scored(tmp_path):
    label = two_boxes()
    for folder, names in (
        ("labels", ("background", "Left_kidney", "liver")),
        ("predictions", ("", "left kidney", "liver")),
    ):
        save_masks(label, tmp_path / folder / "a", names)
    for scored, shown in scored_and_read(tmp_path).values():
        assert shown == pytest.approx(scored)


def test_a_label_is_read_by_the_names_in_its_own_header(tmp_path):
    label = two_boxes()
    save_seg_nrrd(np.array([0, 2, 1], np.uint8)[label], tmp_path / "labels" / "a.seg.nrrd", {"spleen": 1, "liver": 2})
    save(label, tmp_path / "predictions" / "a.nii.gz")
    write_names(tmp_path / "predictions", {"background": 0, "liver": 1, "spleen": 2})
    for scored, shown in scored_and_read(tmp_path).values():
        assert shown == pytest.approx(scored)


def test_a_prediction_is_read_by_its_own_table_before_the_labels(tmp_path):
    """The tables differ in classes that the label does not annotate, so that counts cannot tell them apart."""
    label = two_boxes()
    save_masks(label, tmp_path / "labels" / "a" / "segmentations", ("", "liver", "spleen"))
    save(label.astype(np.int16), tmp_path / "labels" / "a" / "ct.nii.gz")
    for name in ("liver", "spleen", "kidney", "zebra"):
        save(np.zeros_like(label), tmp_path / "labels" / "b" / "segmentations" / f"{name}.nii.gz")
    save(label.astype(np.int16), tmp_path / "labels" / "b" / "ct.nii.gz")
    predicted = label.copy()
    predicted[14:, :4, :4], predicted[:1, :2, :2] = 3, 4
    for case in "ab":
        save(predicted, tmp_path / "predictions" / f"{case}.nii.gz")
    write_names(tmp_path / "labels", {"background": 0, "liver": 1, "spleen": 2, "kidney": 3, "zebra": 4})
    write_names(tmp_path / "predictions", {"background": 0, "liver": 1, "spleen": 2, "kidney": 4, "zebra": 3})
    document = to_document(evaluate(tmp_path / "predictions", tmp_path / "labels", OPTIONS))
    (case,) = [case for case in document["cases"] if case["case"] == "a"]
    read = read_scored_case(case, earlier_version(document))
    found = {name: int((read.prediction == index).sum()) for index, name in enumerate(document["class_names"])}
    assert (found["kidney"], found["zebra"]) == (np.sum(predicted == 4), np.sum(predicted == 3))
