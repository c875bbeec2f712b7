"""Scores by structure, with what their columns mean, and the worst cases with a reason where one cannot be shown."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics_file import to_document
from pipeline.evaluation.options import ScoringOptions
from pipeline.report_page.score_sections import CaseView, Scores, score_sections, scored_structures, volumes_by_id
from pipeline.runs.stored_scores import TrainedWeights
from tests.support.evaluation import blobs, save, three_cases


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    root = three_cases(tmp_path_factory.mktemp("scored"))
    return to_document(evaluate(root / "predictions", root / "labels", ScoringOptions(surface=None, workers=1)))


def test_the_table_has_the_numbers_of_the_file(document):
    content = score_sections(0, Scores("val", document))
    for name, one in document["summary"]["left_out"]["classes"].items():
        (row,) = re.findall(rf"<tr><td [^>]*>{name}</td>(.*?)</tr>", content)
        assert f">{one['dice']['mean']:.4f}</td>" in row
        assert cells_of(content, name, "std") == f"{one['dice']['std']:.4f}"
    assert re.search('title="predicted minus reference">difference (ml|µl)</button>', content)
    assert "none below 6 subjects" in content
    assert "<dd>3, each taken for a subject of its own</dd>" in content
    known = document | {"cases": [case | {"subject": "p"} for case in document["cases"]], "n_subjects": 1}
    assert "<dd>3 of 1 subject</dd>" in score_sections(0, Scores("val", known))
    networks = [TrainedWeights(f"fold_{n}", epoch, 0.5, "").to_document() for n, epoch in enumerate((7, None))]
    scored = score_sections(0, Scores("val", document | {"networks": networks}))
    assert "<dt>weights</dt><dd>fold_0 after epoch 7 (from 0), fold_1</dd>" in scored
    assert "<dt>weights</dt>" not in content


def cells_of(content, name, heading):
    """The cell of a structure's row below a heading."""
    headings = re.findall(r"<button [^>]*>(.*?)</button>", content)
    (row,) = re.findall(rf"<tr>(<td [^>]*>{name}</td>.*?)</tr>", content)
    return re.findall(r"<td [^>]*>(.*?)</td>", row)[headings.index(heading)]


def test_missed_structures_are_counted_by_their_voxels_and_small_distances_have_digits(tmp_path):
    root, affine = three_cases(tmp_path), np.diag([0.001, 0.001, 0.001, 1])
    for case, shift in zip("abc", (1, 2, 3), strict=True):
        label = blobs(shift)
        save(label, root / "labels" / f"{case}.nii.gz", affine)
        predicted = np.roll(label, 1, 1)
        predicted[predicted == 2] *= case != "a"
        save(predicted, root / "predictions" / f"{case}.nii.gz", affine)
    for surface in (None, "voxels"):
        options = ScoringOptions(surface=surface, workers=1)
        document = to_document(evaluate(root / "predictions", root / "labels", options))
        content = score_sections(0, Scores("val", document))
        assert [cells_of(content, name, "missed") for name in ("liver", "spleen")] == ["0", "1"]
    found = document["summary"]["left_out"]["classes"]["liver"]["hd95_mm"]["mean"]
    assert float(cells_of(content, "liver", "HD95 mm")) == pytest.approx(found, rel=0.01)


def test_the_worst_structure_of_a_case_comes_first(document):
    for case in document["cases"]:
        found = scored_structures(case)
        assert list(found.values()) == sorted(found.values())


def test_a_case_is_shown_by_its_own_button_or_with_the_reason_why_not(document):
    views = (CaseView("a", "liver", 0.5, {"shape": []}), CaseView("b<1>", "spleen", None, None, "gone & lost"))
    scores = [Scores("val", document), Scores("test", document, views)]
    assert list(volumes_by_id(scores)) == ["volumes-1-0"]
    content = score_sections(1, scores[1])
    assert content.count('data-volumes="volumes-1-0"') == 1
    assert "<h3>b&lt;1&gt;: spleen</h3>" in content
    assert "Not shown: gone &amp; lost" in content
