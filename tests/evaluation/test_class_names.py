"""What classes are called: names beside the files, names that were given, bare numbers; against SimpleITK."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.errors import DatasetError
from pipeline.evaluate import evaluate
from pipeline.evaluation.class_names import parse_class_names
from pipeline.evaluation.metrics_file import to_document
from pipeline.evaluation.options import EvaluationError
from pipeline.evaluation.report import evaluation_text
from tests.support.evaluation import TABLE, blobs, save, save_masks, sitk_dice, three_cases, write_names

NAMES = ("background", "liver", "spleen", "aorta")


def map_of(seed):
    return blobs(seed, len(NAMES), (24, 22, 16))


@pytest.fixture
def folders(tmp_path):
    """Two cases of label maps; values differ between labels and predictions, and classes are common in part."""
    for seed, case in enumerate("ab", start=1):
        save(map_of(seed), tmp_path / "labels" / f"{case}.nii.gz")
        predicted = np.roll(np.array([0, 7, 5, 9], np.uint8)[map_of(seed)], 1, 0)
        save(predicted, tmp_path / "predictions" / f"{case}.nii.gz")
    write_names(tmp_path / "labels", {"background": 0, "liver": 1, "spleen": 2, "aorta": 3})
    write_names(tmp_path / "predictions", {"background": 0, "liver": 7, "stomach": 5, "aorta": 9})
    return tmp_path


def test_classes_in_common_score_as_simpleitk_has_it_and_the_others_are_named(folders):
    result = evaluate(folders / "predictions", folders / "labels")
    assert result.class_names == ("background", "liver", "aorta")
    assert {case.case for case in result.cases} == {"a", "b"}
    for case in result.cases:
        prediction, label = (np.asarray(nib.load(p).dataobj) for p in (case.pair.prediction, case.pair.label))
        assert case.dice[1:] == pytest.approx([sitk_dice(prediction, label, 7, 1), sitk_dice(prediction, label, 9, 3)])
    document = to_document(result)
    assert document["left_out"] == {"only_in_labels": ["spleen"], "only_in_predictions": ["stomach"]}
    text = evaluation_text(result)
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


def test_bare_numbers_are_taken_for_the_other_files_and_that_is_said(folders):
    (folders / "predictions" / "labels.json").unlink()
    for case in "ab":
        save(map_of(1), folders / "predictions" / f"{case}.nii.gz")
    result = evaluate(folders / "predictions", folders / "labels")
    assert result.class_names == NAMES
    (note,) = to_document(result)["notes"]
    assert note.startswith(
        "nothing names the classes of the predictions: their values are taken for those of the labels"
    )
    assert "liver=1, spleen=2, aorta=3" in note
    assert "--class_names" in note
    assert note in evaluation_text(result)
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
    (folders / "predictions" / "labels.json").write_bytes((folders / "labels" / "labels.json").read_bytes())
    save(map_of(1), folders / "predictions" / "a.nii.gz")
    same = evaluate(folders / "predictions", folders / "labels", class_names=NAMES)  # what the files say themselves
    assert same.cases[0].dice.tolist() == [1, 1, 1, 1]
    (folders / "predictions" / "labels.json").unlink()
    with pytest.raises(EvaluationError, match="expected the background first, found 'liver'; write background,liver"):
        evaluate(folders / "predictions", folders / "labels", class_names=["liver", "spleen"])
    with pytest.raises(EvaluationError, match="each with its value like liver=1, found 'spleen'"):
        parse_class_names("liver=1,spleen")
    with pytest.raises(EvaluationError, match="found 'liver=2'"):
        parse_class_names("liver=1,liver=2")
    assert parse_class_names("") is None


def test_of_classes_with_names_some_may_be_chosen(folders):
    every = evaluate(folders / "predictions", folders / "labels")
    for given in (["aorta"], {"background": 0, "aorta": 3}):
        result = evaluate(folders / "predictions", folders / "labels", class_names=given)
        assert result.class_names == ("background", "aorta")
        assert [case.dice[1] for case in result.cases] == [case.dice[2] for case in every.cases]
    with pytest.raises(EvaluationError, match=r"\(liver, aorta\), of which some can be chosen .* found aorta=9"):
        evaluate(folders / "predictions", folders / "labels", class_names={"aorta": 9})
    with pytest.raises(EvaluationError, match=r"structures to score \(liver, aorta\), found the background alone"):
        evaluate(folders / "predictions", folders / "labels", class_names=["background"])


def test_the_order_of_chosen_masks_says_which_counts_where_they_overlap(tmp_path):
    liver = (map_of(1) > 0).astype(np.uint8)
    for kind in ("predictions", "labels"):
        for name, mask in (("liver", liver), ("lesion", liver * (map_of(1) == 2))):
            save(mask, tmp_path / kind / "s1" / f"{name}.nii.gz")
    results = {
        names: evaluate(tmp_path / "predictions", tmp_path / "labels", class_names=names)
        for names in (("lesion", "liver"), ("liver", "lesion"), ("lesion",))
    }
    held = {names: (result.cases[0].reference_ml[1:] > 0).tolist() for names, result in results.items()}
    assert held == {("lesion", "liver"): [False, True], ("liver", "lesion"): [True, True], ("lesion",): [True]}
    assert [any("overlap" in note for note in result.notes) for result in results.values()] == [True, True, False]


def test_masks_say_nothing_about_bare_numbers(tmp_path):
    save_masks(map_of(1), tmp_path / "predictions" / "s1", NAMES)
    save(np.array([0, 30, 10, 20], np.uint8)[map_of(1)], tmp_path / "labels" / "s1.nii.gz")
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
    label = np.resize(np.array(values, np.int32), map_of(1).shape)
    save(map_of(1), tmp_path / "predictions" / "s1.nii.gz")
    save(label, tmp_path / "labels" / "s1.nii.gz")
    with pytest.raises(EvaluationError) as refused:
        evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert str(refused.value).startswith(f"case s1: {tmp_path / 'labels' / 's1.nii.gz'}: ")
    assert words in str(refused.value)
    named = {"liver": 1, "stray": values[-1]}
    with pytest.raises((EvaluationError, DatasetError), match=r"value"):
        evaluate(tmp_path / "predictions", tmp_path / "labels", class_names=named)


def test_classes_without_names_are_called_by_their_value(tmp_path):
    folders = three_cases(tmp_path)
    (folders / "labels" / "labels.json").unlink()
    assert evaluate(folders / "predictions", folders / "labels").class_names[:3] == ("background", "class_1", "class_2")
    named = evaluate(folders / "predictions", folders / "labels", class_names=TABLE.names)
    assert named.class_names == TABLE.names


def test_given_names_may_be_a_part_of_a_label_map_and_the_rest_is_background(folders):
    named = evaluate(folders / "predictions", folders / "labels")
    for kind in ("predictions", "labels"):
        (folders / kind / "labels.json").unlink()
    for case in "ab":  # both as the labels have them
        predicted = np.asarray(nib.load(folders / "predictions" / f"{case}.nii.gz").dataobj)
        as_labels = np.array([0, 0, 0, 0, 0, 8, 0, 1, 0, 3], np.uint8)  # stomach, which the labels lack, becomes 8
        save(as_labels[predicted], folders / "predictions" / f"{case}.nii.gz")
    result = evaluate(folders / "predictions", folders / "labels", class_names={"liver": 1, "aorta": 3})
    assert result.class_names == named.class_names == ("background", "liver", "aorta")
    assert [case.dice.tolist() for case in result.cases] == [case.dice.tolist() for case in named.cases]
    assert [case.label_sha256 for case in result.cases] == [case.label_sha256 for case in named.cases]
    assert result.classes.only_in_labels == ("class_2",)
    assert result.classes.only_in_predictions == ("class_8",)
    assert result.notes == ("values without a name count as background: 2, 8",)
    assert result.notes[0] in evaluation_text(result)
    left_out = evaluate(folders / "labels", folders / "labels", class_names={"liver": 1})
    assert (left_out.class_names, left_out.classes.only_in_labels) == (("background", "liver"), ())
    assert left_out.notes == ("values without a name count as background: 2, 3",)
