"""Paired comparison of two metrics.json against scipy's tests, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.comparison import ComparisonError, compare_metrics, to_json, to_text


def write(path, dice, *, label="0", tolerance_mm=2.0, surface="voxels", missed=()):
    """A metrics.json with the Dice of each class (rows) in each case (columns)."""
    names = [f"organ_{c}" for c in range(len(dice))]
    cases = [
        {
            "case": f"case_{n}",
            "label_sha256": label * 64,
            "classes": {
                name: {"dice": value, "surface_dice": value, "hd95_mm": None if (name, n) in missed else 1 / value}
                for name, value in zip(names, column, strict=True)
            },
        }
        for n, column in enumerate(np.transpose(dice).tolist())
    ]
    settings = {"tolerance_mm": tolerance_mm, "surface": surface and {"kind": surface}}
    document = {"format": 2, "class_names": ["background", *names], "settings": settings, "cases": cases}
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def two(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.uniform(0.6, 0.9, size=(3, 20))
    second = first + np.array([[0.05], [0.0], [-0.02]]) + rng.normal(0, 0.02, size=(3, 20))
    return write(tmp_path / "a.json", first), write(tmp_path / "b.json", second), first, second


def test_p_values_are_scipys_and_corrected_by_holm(two):
    a, b, first, second = two
    result = compare_metrics(a, b)
    raw = [stats.wilcoxon(second[c], first[c]).pvalue for c in range(3)]
    assert [row.p for row in result.classes] == pytest.approx(raw)
    order = np.argsort(raw)
    wanted = np.maximum.accumulate(np.sort(raw) * [3, 2, 1]).clip(max=1)
    assert [result.classes[c].p_holm for c in order] == pytest.approx(wanted)
    assert result.classes[0].mean_difference == pytest.approx((second[0] - first[0]).mean())
    assert result.classes[0].ci95[0] > 0
    lines = to_text(result).splitlines()
    assert next(line for line in lines if line.startswith("organ_0")).endswith("*")
    assert json.loads(to_json(result))["n_cases"] == 20


def test_a_run_equals_itself(two):
    result = compare_metrics(two[0], two[0])
    assert {(row.mean_difference, row.p, row.p_holm) for row in result.classes} == {(0.0, 1.0, 1.0)}


def test_missed_structures_are_left_out_of_distances_and_counted(two, tmp_path):
    first = write(tmp_path / "f.json", two[2], missed={("organ_1", 4), ("organ_2", 0)})
    missed = {("organ_1", 3), ("organ_1", 4), *(("organ_2", n) for n in range(20))}
    second = write(tmp_path / "c.json", two[3], missed=missed)
    result = compare_metrics(first, second, "hd95_mm")
    rows = [(row.n, row.n_left_out, row.n_missed_first, row.n_missed_second) for row in result.classes]
    assert rows == [(20, 0, 0, 0), (18, 2, 1, 2), (0, 20, 1, 20)]
    lines = to_text(result).splitlines()
    assert "Holm's correction over 2 structures" in lines[1]
    assert lines[3].split()[:9] == ["structure", "n", "left", "out", "missed", "by", "first", "by", "second"]
    assert [line.split()[1:5] for line in lines if line.startswith("organ_1")] == [["18", "2", "1", "2"]]
    assert [line.split() for line in lines if line.startswith("organ_2")] == [["organ_2", "0", "20", "1", "20"]]
    assert "left out: the label holds the structure, and one of the two has no hd95_mm" in to_text(result)
    assert "left out" not in to_text(compare_metrics(first, second))


def test_other_cases_labels_or_tolerances_are_refused(two, tmp_path):
    fewer = write(tmp_path / "c.json", two[3][:, :18])
    with pytest.raises(ComparisonError, match=r"2 cases stand in only one of .* the first is case_18 in .*a\.json"):
        compare_metrics(two[0], fewer)
    relabelled = write(tmp_path / "d.json", two[3], label="1")
    with pytest.raises(ComparisonError, match=r"case case_0: expected the same label.*20 cases differ"):
        compare_metrics(two[0], relabelled)
    wider = write(tmp_path / "e.json", two[3], tolerance_mm=3.0)
    with pytest.raises(ComparisonError, match=r"surface Dice at 2.0 mm in .* and at 3.0 mm"):
        compare_metrics(two[0], wider, "surface_dice")
    assert compare_metrics(two[0], wider).n_cases == 20
    by_area, without = (write(tmp_path / f"{kind}.json", two[3], surface=kind) for kind in ("area", None))
    for metric in ("hd95_mm", "surface_dice"):
        with pytest.raises(ComparisonError, match=rf"{metric} with surface voxels in .* and area in .*--surface"):
            compare_metrics(two[0], by_area, metric)
        with pytest.raises(ComparisonError, match=f"{metric} with surface none in .* and none"):
            compare_metrics(without, without, metric)
    assert compare_metrics(two[0], by_area).n_cases == 20


def test_other_files_and_metrics_are_refused(two, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ComparisonError, match=r"expected a metrics\.json of format 2"):
        compare_metrics(two[0], tmp_path / "x.json")
    with pytest.raises(ComparisonError, match="metric is 'accuracy', expected one of dice"):
        compare_metrics(two[0], two[1], "accuracy")


def test_a_class_that_only_one_run_knows_is_named(two, tmp_path):
    fewer = write(tmp_path / "c.json", two[3][:2])
    result = compare_metrics(two[0], fewer)
    assert [row.name for row in result.classes] == ["organ_0", "organ_1"]
    assert result.only_in_one == ("organ_2",)
