"""Which prediction belongs to which label, and what is left over."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.case_files import CaseFiles
from pipeline.evaluation.case_scores import METRICS
from pipeline.evaluation.metrics_file import to_document
from pipeline.evaluation.options import EvaluationError
from pipeline.evaluation.pairing import match
from tests.support.evaluation import TABLE, blobs, save_masks, three_cases

NAMES = ("background", "liver", "spleen", "aorta")


def map_of(seed):
    return blobs(seed, len(NAMES), (24, 22, 16))


def test_a_missing_mask_is_nothing_predicted_but_not_annotated_in_a_label(tmp_path):
    """The label of s3 says nothing of the spleen: what is predicted of it is neither right nor wrong."""
    for case in ("s1", "s2", "s3"):
        for kind in ("predictions", "labels"):
            save_masks(map_of(1), tmp_path / kind / case, NAMES)
    (tmp_path / "predictions" / "s2" / "liver.nii.gz").unlink()
    (tmp_path / "labels" / "s3" / "spleen.nii.gz").unlink()
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    liver, spleen = (result.class_names.index(name) for name in ("liver", "spleen"))
    scores = {case.case: case for case in result.cases}
    assert (scores["s2"].dice[liver], scores["s2"].dice[spleen]) == (0, 1)
    assert "case s2: no predicted mask of liver; counted as nothing predicted" in result.notes
    assert scores["s3"].mean_dice == 1
    for absent in ("left_out", "scored"):
        assert all(np.isnan(scores["s3"].score(metric, absent)[spleen]) for metric in METRICS)
        assert result.summaries[absent]["spleen"]["dice"].n == 2
    assert (scores["s3"].false_positives[spleen], scores["s3"].prediction_ml[spleen]) == (0, 0)
    assert "not annotated, so not scored, in some of 3 cases: spleen in 1" in result.notes
    document = {case["case"]: case for case in to_document(result)["cases"]}
    assert document["s3"]["not_annotated"] == ["spleen"]
    assert ("spleen" in document["s3"]["classes"], "not_annotated" in document["s1"]) == (False, False)
    assert result.exit_code == 0


def files(root, kind, *cases):
    return CaseFiles(kind, root, {case: root / f"{case}.nii.gz" for case in cases}, TABLE)


def test_what_has_no_counterpart_is_left_over(tmp_path):
    matching = match(files(tmp_path, "prediction", "a", "b", "x"), files(tmp_path, "label", "a", "b", "c"))
    assert [pair.case for pair in matching.pairs] == ["a", "b"]
    assert matching.predictions_without_label == ("x",)
    assert matching.labels_without_prediction == ("c",)


def test_results_named_after_nnunets_first_channel_are_of_the_case(tmp_path):
    predictions = files(tmp_path, "prediction", "a_0000", "b_0000", "c", "c_0000", "d_0001")
    matching = match(predictions, files(tmp_path, "label", "a", "b_0000", "c", "d"))
    found = [(pair.case, pair.prediction.name, pair.label.name) for pair in matching.pairs]
    assert found == [
        ("a", "a_0000.nii.gz", "a.nii.gz"),
        ("b_0000", "b_0000.nii.gz", "b_0000.nii.gz"),
        ("c", "c.nii.gz", "c.nii.gz"),
    ]
    assert matching.predictions_without_label == ("c_0000", "d_0001")
    assert matching.labels_without_prediction == ("d",)


def test_labels_may_be_called_as_beside_their_images(tmp_path):
    predictions = files(tmp_path, "prediction", "a", "b_0000", "c", "d-mask", "d_seg")
    matching = match(predictions, files(tmp_path, "label", "a-label", "b_seg", "c", "c_gt", "d"))
    found = [(pair.case, pair.prediction.name, pair.label.name) for pair in matching.pairs]
    assert found == [
        ("a", "a.nii.gz", "a-label.nii.gz"),
        ("b", "b_0000.nii.gz", "b_seg.nii.gz"),
        ("c", "c.nii.gz", "c.nii.gz"),
    ]
    assert matching.predictions_without_label == ("d-mask", "d_seg")  # which of the two is meant, nobody can know
    assert matching.labels_without_prediction == ("c_gt", "d")


def test_nothing_in_common_names_both(tmp_path):
    with pytest.raises(
        EvaluationError, match=r"no prediction in .* has a label of its name in .*: .* of x, .* of a, c;"
    ):
        match(files(tmp_path, "prediction", "x"), files(tmp_path, "label", "a", "c"))


def test_subjects_of_the_labels_travel_with_the_pairs(tmp_path):
    labels = CaseFiles("label", tmp_path, {"a": tmp_path / "a.nii"}, TABLE, subjects={"a": "p7"})
    assert match(files(tmp_path, "prediction", "a"), labels).pairs[0].subject == "p7"
    assert match(files(tmp_path, "prediction", "a"), files(tmp_path, "label", "a")).pairs[0].subject is None


def test_one_file_and_a_folder_are_paired_by_name(tmp_path):
    folders = three_cases(tmp_path)
    (case,) = evaluate(folders / "predictions" / "b.nii.gz", folders / "labels").cases
    assert case.case == "b"


def test_pairing_takes_as_many_calls_a_case_among_many_as_among_few(tmp_path):
    def calls_a_case(n):
        listed = [files(tmp_path, kind, *map(str, range(n))) for kind in ("prediction", "label")]
        calls = []
        before = sys.getprofile()
        sys.setprofile(lambda frame, event, argument: calls.append(event) if "call" in event else None)
        try:
            assert len(match(*listed).pairs) == n
        finally:
            sys.setprofile(before)
        return len(calls) / n

    assert calls_a_case(3000) < 1.2 * calls_a_case(300)
