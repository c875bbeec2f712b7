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
from tests.support.evaluation import AFFINE, TABLE, save, three_cases

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
        read = read_scored_case(case, scored["class_names"])
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
    read = read_scored_case(case, scored["class_names"])
    assert np.array_equal(read.image, image)


def test_a_label_that_has_changed_is_refused(scored):
    case = scored["cases"][0]
    label = nib.load(case["label"])
    array = np.asarray(label.dataobj).copy()
    array[array == TABLE.values[1]] = TABLE.values[2]
    save(array, Path(case["label"]), label.affine)
    with pytest.raises(EvaluationError, match=r"the label .* no longer holds what was scored; evaluate again"):
        read_scored_case(case, scored["class_names"])
    Path(case["label"]).unlink()
    with pytest.raises(EvaluationError, match="no such file"):
        read_scored_case(case, scored["class_names"])
