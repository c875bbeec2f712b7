"""Scores of many cases: their order, means over cases, and intervals over subjects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.case_scores import METRICS
from pipeline.evaluation.comparison import compare_metrics
from pipeline.evaluation.metrics_file import write_files
from pipeline.evaluation.report import evaluation_text
from pipeline.evaluation.summary import mean_over_classes
from tests.support.evaluation import TABLE, blobs, save, three_cases


@pytest.fixture
def folders(tmp_path):
    return three_cases(tmp_path)


def test_the_worst_case_comes_first_and_classes_have_their_names(folders):
    result = evaluate(folders / "predictions", folders / "labels")
    assert [case.case for case in result.cases] == ["c", "b", "a"]
    assert result.class_names == TABLE.names
    dice = result.summaries["left_out"]["liver"]["dice"]
    values = [case.dice[1] for case in result.cases]
    assert (dice.mean, dice.median, dice.n) == (pytest.approx(np.mean(values)), np.median(values), 3)
    text = evaluation_text(result)
    assert "liver" in text
    assert text.index("  c ") < text.index("  b ") < text.index("  a ")


def with_subjects(evaluation, subjects):
    cases = tuple(replace(case, pair=replace(case.pair, subject=subjects[case.case])) for case in evaluation.cases)
    return replace(evaluation, cases=cases)


def of_six(evaluation):
    """Every case twice, under two names."""
    named = ((case, replace(case.pair, case=f"{case.case}{n}")) for case in evaluation.cases for n in range(2))
    return replace(evaluation, cases=tuple(replace(case, pair=pair) for case, pair in named))


def test_fewer_than_six_subjects_have_no_interval(folders):
    three = evaluate(folders / "predictions", folders / "labels")
    six = of_six(three)
    five = replace(six, cases=six.cases[:5])
    for evaluation in (three, five):
        assert np.isnan(evaluation.summaries["left_out"]["liver"]["dice"].ci95).all()
        assert "–" not in evaluation_text(evaluation)
    dice = six.summaries["left_out"]["liver"]["dice"]
    assert dice.ci95[0] < dice.mean < dice.ci95[1]
    assert f"{dice.ci95[0]:.4f}–{dice.ci95[1]:.4f}" in evaluation_text(six)
    assert "by bootstrap; whole subjects are drawn, there are none for fewer than 6" in evaluation_text(three)


def test_intervals_are_drawn_from_subjects_and_both_numbers_are_shown(folders):
    result = evaluate(folders / "predictions", folders / "labels")
    assert (result.n_subjects, result.subjects_are_known) == (3, False)
    assert "3 cases, each taken for a subject of its own" in evaluation_text(result)
    two = with_subjects(result, {"a": "p1", "b": "p1", "c": "p2"})
    dice = two.summaries["left_out"]["liver"]["dice"]
    assert (dice.n, dice.n_subjects) == (3, 2)
    assert dice.mean == result.summaries["left_out"]["liver"]["dice"].mean
    assert "3 cases of 2 subjects" in evaluation_text(two)
    one = with_subjects(result, dict.fromkeys("abc", "p1"))
    assert np.isnan(one.summaries["left_out"]["liver"]["dice"].ci95).all()
    # A subject that has the id of another one's case is not that case's.
    mixed = with_subjects(result, {"a": None, "b": "a", "c": "a"})
    assert mixed.subject_numbers[[case.case for case in mixed.cases].index("a")] not in mixed.subject_numbers[:2]
    assert mixed.n_subjects == 2


def test_missed_structures_are_counted_beside_the_mean_that_leaves_them_out(folders):
    missed = blobs(1)
    missed[missed == 2] = 0
    save(missed, folders / "predictions" / "a.nii.gz")
    result = evaluate(folders / "predictions", folders / "labels")
    by_class = result.summaries["left_out"]
    assert result.n_missed == {"liver": 0, "spleen": 1, "left": 0, "right": 0}
    assert by_class["spleen"]["hd95_mm"].n_infinite == 1
    means = [by_class[name]["hd95_mm"].mean for name in TABLE.names[1:]]
    assert mean_over_classes(by_class, "hd95_mm") == pytest.approx(np.mean(means))


def test_subjects_are_drawn_once_a_metric_whatever_the_number_of_classes(folders, monkeypatch):
    """Drawing takes longer than all else: an evaluation that is written, printed and compared does it 15 times."""
    drawn = []
    default_rng = np.random.default_rng

    def counted(seed):
        drawn.append(seed)
        return default_rng(seed)

    result = of_six(evaluate(folders / "predictions", folders / "labels"))
    monkeypatch.setattr(np.random, "default_rng", counted)
    path, _ = write_files(result, folders)
    evaluation_text(result)
    assert len(drawn) == 2 * len(METRICS) == 14
    compare_metrics(path, path)
    assert len(drawn) == 15
