"""The data of runs: facts, structures and findings as the run folder records them, foreign text as text."""

from __future__ import annotations

import re

import pytest

from pipeline.report_page.data_sections import data_section
from tests.support.finished_run import documented_config

FINDING = {
    "severity": "warning", "kind": "odd_spacing", "n_findings": 3, "n_cases": 3, "cases": ["a", "<b>"],
    "file": "/data/a.nii", "expected": "about 1 mm", "found": "9 mm", "numbers_differ": True, "remedy": "look at it",
}  # fmt: skip


def checked(**changes) -> dict:
    return {
        "n_subjects": 3,
        "layout": "pairs",
        "size_voxels": {"min": [10, 20, 30], "median": [11, 20, 30], "max": [12, 20, 30]},
        "spacing_mm": {name: [0.15, 0.15, 0.3] for name in ("min", "median", "max")},
        "orientations": {"RAS": 2, "LPS": 1},
        "formats": {"nifti": 3},
        "dtypes": {"int16": 3},
        "classes": [
            {"name": "background", "n_cases": 3, "n_train": 2, "n_val": 1, "median_ml": 9.0},
            {"name": "<liver>", "n_cases": 3, "n_train": 2, "n_val": 1, "median_ml": 0.012},
            {"name": "spleen", "n_cases": 0, "n_train": 0, "n_val": 0, "median_ml": None},
        ],
        "findings": [],
    } | changes


def config(**changes) -> dict:
    return documented_config(**{"data.check": checked()} | {f"data.{key}": value for key, value in changes.items()})


def test_sizes_spacings_and_structures_are_shown_with_volumes_that_have_digits():
    content = data_section({"run": config()})
    assert "<dt>size of the scans, voxels</dt><dd>10 × 20 × 30 to 12 × 20 × 30, median 11 × 20 × 30</dd>" in content
    assert "<dt>size of their voxels, mm</dt><dd>0.15 × 0.15 × 0.3</dd>" in content
    assert "<dt>orientations</dt><dd>RAS: 2, LPS: 1</dd>" in content
    assert "median volume, µl</button>" in content
    rows = [re.findall("<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr>(<td.*?)</tr>", content)]
    assert rows == [["&lt;liver&gt;", "3", "2", "1", "12"], ["spleen", "0", "0", "0", "–"]]
    assert "Nothing that is unusual." in content


def test_a_window_is_shown_where_a_channel_is_scaled_as_ct_whatever_the_reason_names():
    def shown(intensity, because: str) -> bool:
        found = {"intensity": intensity, "because": because}
        return "<dt>window</dt>" in data_section({"run": config(intensity_found=found, window=[-100, 200])})

    assert shown("ct", "all values are HU")
    assert shown(["zscore", "ct"], "the data set's channels are named PET, CT")
    assert not shown("zscore", "the data set's channels are named contact, T1_corrected")
    assert not shown(["zscore", "unit"], "the data set's channels are named contact, ct")


def test_findings_say_what_where_and_what_to_do_and_many_are_folded():
    content = data_section({"run": config(check=checked(findings=[FINDING]))})
    assert "<b>Unusual voxel sizes</b>: cases a, &lt;b&gt; and 1 more<br>/data/a.nii: expected about 1 mm" in content
    assert content.count("look at it (others: other numbers)") == 1
    assert "<details>" not in content
    of_the_set = FINDING | {"cases": [], "n_findings": 1, "n_cases": 0}
    content = data_section({"run": config(check=checked(findings=[of_the_set] * 4))})
    assert content.count("<details><summary>4 warnings of 4 kinds</summary>") == 1
    assert content.count("</b>: the data set<br>") == 4
    content = data_section({"run": config(skipped_cases={f"<{n}>": "no label" for n in range(5)})})
    assert "<summary>5 cases</summary>" in content
    assert "<li>&lt;4&gt;: no label</li>" in content


def test_a_case_with_several_findings_of_one_cause_is_counted_once():
    masks = FINDING | {"n_findings": 93, "n_cases": 4}
    content = data_section({"run": config(check=checked(findings=[masks, FINDING]))})
    assert "<b>Unusual voxel sizes</b>: 93 in cases a, &lt;b&gt; and 2 more<br>" in content
    alone = FINDING | {"n_findings": 2, "n_cases": 1, "cases": ["a"]}
    assert "</b>: 2 in case a<br>" in data_section({"run": config(check=checked(findings=[alone]))})
    earlier = {key: value for key, value in FINDING.items() if key != "n_cases"}
    assert ": cases a, &lt;b&gt; and 1 more<br>" in data_section({"run": config(check=checked(findings=[earlier]))})


def test_findings_of_earlier_versions_do_not_say_whether_their_numbers_differ():
    earlier = {key: value for key, value in FINDING.items() if key != "numbers_differ"}
    content = data_section({"run": config(check=checked(findings=[earlier]))})
    assert "look at it (others: perhaps other numbers)" in content
    alone = earlier | {"n_findings": 1, "n_cases": 1, "cases": ["a"]}
    assert "others:" not in data_section({"run": config(check=checked(findings=[alone]))})


def test_what_runs_agree_in_is_said_once_and_folds_share_one_table():
    """Folds differ in who trains and who validates alone."""
    folds = {}
    for fold in (0, 1):
        classes = [one | {"n_train": fold} for one in checked()["classes"]]
        found = checked(classes=classes, findings=[FINDING] * fold)
        folds[f"fold_{fold}"] = config(check=found, cross_validation={"fold": fold})
    content = data_section(folds)
    assert content.count("<h3>Structures in the labels</h3>") == 1
    assert "<p>fold_0:</p><h3>What the check of the data found</h3><p>Nothing" in content
    assert "<p>fold_1:</p><h3>What the check of the data found</h3><ul" in content


def test_runs_of_earlier_versions_have_no_such_facts():
    content = data_section({"run": documented_config()})
    assert "<h3>What the check" not in content
    assert "160 × 160 × 256 voxels" in content
    assert data_section({}) == ""


@pytest.mark.parametrize("check", [5, {"classes": [{}, 3]}, {"findings": {"a": 1}}, {"size_voxels": [1]}])
def test_a_record_of_another_kind_raises_what_the_page_words(check):
    with pytest.raises((AttributeError, LookupError, TypeError, ValueError)):
        data_section({"run": config(check=check)})
