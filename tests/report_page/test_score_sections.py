"""Scores by structure, with what their columns mean, and the worst cases with a reason where one cannot be shown."""

from __future__ import annotations

import re

import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics_file import to_document
from pipeline.evaluation.options import ScoringOptions
from pipeline.report_page.score_sections import CaseView, Scores, score_sections, scored_structures, volumes_by_id
from tests.support.evaluation import three_cases


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    root = three_cases(tmp_path_factory.mktemp("scored"))
    return to_document(evaluate(root / "predictions", root / "labels", ScoringOptions(surface=None, workers=1)))


def test_the_table_has_the_numbers_of_the_file(document):
    content = score_sections(0, Scores("val", document))
    for name, one in document["summary"]["left_out"]["classes"].items():
        (row,) = re.findall(rf"<tr><td [^>]*>{name}</td>(.*?)</tr>", content)
        assert f">{one['dice']['mean']:.4f}</td>" in row
    assert re.search('title="predicted minus reference">difference (ml|µl)</button>', content)
    assert "none below 6 subjects" in content


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
