"""Paired comparison of two metrics.json against scipy's tests, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.comparison import check_baseline, compare_metrics, to_json
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from pipeline.evaluation.report import comparison_text
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.stored_scores import TrainedWeights
from tests.support.training_logs import a_log


def write(path, dice, *, label="0", tolerance_mm=2.0, surface="voxels", missed=(), subjects=None):
    """A metrics.json with the Dice of each class (rows) in each case (columns), and whose scan each case is."""
    names = [f"organ_{c}" for c in range(len(dice))]
    cases = [
        {
            "case": f"case_{n}",
            "label_sha256": label * 64,
            "subject": None if subjects is None else subjects[n],
            "classes": {
                name: {"dice": value, "surface_dice": value, "hd95_mm": None if (name, n) in missed else 1 / value}
                for name, value in zip(names, column, strict=True)
            },
        }
        for n, column in enumerate(np.transpose(dice).tolist())
    ]
    settings = {"tolerance_mm": tolerance_mm, "surface": surface and {"kind": surface}}
    document = {"format": 3, "class_names": ["background", *names], "settings": settings, "cases": cases}
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
    lines = comparison_text(result).splitlines()
    assert next(line for line in lines if line.startswith("organ_0")).endswith("*")
    assert json.loads(to_json(result))["n_cases"] == 20


def test_the_last_line_is_the_mean_over_structures(two, tmp_path):
    first = write(tmp_path / "f.json", two[2], missed={("organ_2", n) for n in range(20)})
    second = write(tmp_path / "s.json", two[3])
    result = compare_metrics(first, second)
    assert result.mean_first == pytest.approx(two[2].mean())
    assert result.mean_difference == pytest.approx(two[3].mean() - two[2].mean())
    line = next(line for line in comparison_text(result).splitlines() if line.startswith("mean over structures"))
    assert line.split()[3:] == [f"{two[2].mean():.4f}", f"{two[3].mean():.4f}", f"{result.mean_difference:+.4f}"]
    distances = compare_metrics(first, second, "hd95_mm")  # no distance of organ_2 in one of them: it is in no mean
    assert distances.mean_second == pytest.approx((1 / two[3][:2]).mean())
    assert json.loads(to_json(distances))["mean_second"] == distances.mean_second


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
    lines = comparison_text(result).splitlines()
    assert "Holm's correction over 2 structures" in lines[1]
    headings = ["structure", "cases", "subjects", "left", "out", "missed", "by", "first", "missed", "by", "second"]
    assert lines[4].split()[:11] == headings
    assert [line.split()[1:6] for line in lines if line.startswith("organ_1")] == [["18", "18", "2", "1", "2"]]
    assert [line.split() for line in lines if line.startswith("organ_2")] == [["organ_2", "0", "0", "20", "1", "20"]]
    assert "left out: the label holds the structure, and one of the two has no hd95_mm" in comparison_text(result)
    assert "left out" not in comparison_text(compare_metrics(first, second))
    by_second_alone = comparison_text(compare_metrics(two[0], second, "hd95_mm")).splitlines()[4].split()
    assert by_second_alone[:9] == ["structure", "cases", "subjects", "left", "out", *"missed by second first".split()]


def test_other_cases_labels_or_tolerances_are_refused(two, tmp_path):
    fewer = write(tmp_path / "c.json", two[3][:, :18])
    with pytest.raises(EvaluationError, match=r"2 cases appear in only one of .* the first is case_18 in .*a\.json"):
        compare_metrics(two[0], fewer)
    relabelled = write(tmp_path / "d.json", two[3], label="1")
    with pytest.raises(EvaluationError, match=r"case case_0: expected the same label.*20 cases differ"):
        compare_metrics(two[0], relabelled)
    with_fewer_masks = write(tmp_path / "f.json", two[3][:2], label="1")
    with pytest.raises(EvaluationError, match=r"where masks overlap, also of the same structures, without organ_2$"):
        compare_metrics(two[0], with_fewer_masks)
    wider = write(tmp_path / "e.json", two[3], tolerance_mm=3.0)
    with pytest.raises(EvaluationError, match=r"surface Dice at 2.0 mm in .* and at 3.0 mm"):
        compare_metrics(two[0], wider, "surface_dice")
    assert compare_metrics(two[0], wider).n_cases == 20
    by_area, without = (write(tmp_path / f"{kind}.json", two[3], surface=kind) for kind in ("area", None))
    for metric in ("hd95_mm", "surface_dice"):
        with pytest.raises(EvaluationError, match=rf"{metric} with surface voxels in .* and area in .*--surface"):
            compare_metrics(two[0], by_area, metric)
        with pytest.raises(EvaluationError, match=f"{metric} with surface none in .* and none"):
            compare_metrics(without, without, metric)
    assert compare_metrics(two[0], by_area).n_cases == 20


@pytest.mark.parametrize(
    ("tolerance_mm", "found"),
    [(None, "nothing"), (10**400, "the number 1000"), (-1, "the number -1"), ("2", "a text")],
    ids=["none", "400 digits", "negative", "text"],
)
def test_a_baseline_without_a_tolerance_is_refused_before_anything_is_computed(two, tmp_path, tolerance_mm, found):
    baseline = write(tmp_path / "c.json", two[3], tolerance_mm=tolerance_mm)
    with pytest.raises(EvaluationError, match=rf"c\.json: expected tolerance_mm, .*, found {found}"):
        check_baseline(baseline, tmp_path / "metrics.json", "surface_dice", ScoringOptions())
    assert check_baseline(baseline, tmp_path / "metrics.json", "hd95_mm", ScoringOptions()) == ScoringOptions()


def test_other_files_and_metrics_are_refused(two, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"expected a metrics\.json of format 2 or 3"):
        compare_metrics(two[0], tmp_path / "x.json")
    with pytest.raises(EvaluationError, match="metric is 'accuracy', expected one of dice"):
        compare_metrics(two[0], two[1], "accuracy")


def test_a_class_that_only_one_run_knows_is_named(two, tmp_path):
    fewer = write(tmp_path / "c.json", two[3][:2])
    result = compare_metrics(two[0], fewer)
    assert [row.name for row in result.classes] == ["organ_0", "organ_1"]
    assert result.only_in_one == ("organ_2",)


def test_five_scans_of_a_patient_are_one_witness(two, tmp_path):
    subjects = [f"p{n // 5}" for n in range(20)]
    first, second = (write(tmp_path / f"{n}.json", two[2 + n], subjects=subjects) for n in (0, 1))
    result = compare_metrics(first, second)
    assert (result.n_cases, result.n_subjects, result.subjects_are_known) == (20, 4, True)
    assert [(row.n, row.n_subjects) for row in result.classes] == [(20, 4)] * 3
    means = (two[3] - two[2]).reshape(3, 4, 5).mean(2)
    assert [row.p for row in result.classes] == pytest.approx([stats.wilcoxon(m).pvalue for m in means])
    by_scan = compare_metrics(two[0], two[1])
    assert [row.mean_difference for row in result.classes] == [row.mean_difference for row in by_scan.classes]
    assert result.classes[0].p == 0.125 > by_scan.classes[0].p  # 2 of 2**4 sign patterns at the least
    assert "20 cases of 4 subjects" in comparison_text(result)
    assert "mean over cases, with its bootstrap interval; none for fewer than 6" in comparison_text(result)
    assert "taken for a subject" not in comparison_text(result)
    assert "each case is taken for a subject of its own" in comparison_text(by_scan)
    # One of the two files is enough to know whose scans these are.
    by_one = [json.loads(to_json(compare_metrics(*paths))) for paths in ((first, two[1]), (two[0], second))]
    assert by_one[0]["classes"] == by_one[1]["classes"] == json.loads(to_json(result))["classes"]
    assert by_one[0]["classes"][0]["ci95"] == [None, None]  # four subjects are too few for an interval
    assert "…" not in comparison_text(result)
    assert json.loads(to_json(result))["classes"][0]["n_subjects"] == 4


def test_files_that_disagree_on_a_subject_are_refused(two, tmp_path):
    first = write(tmp_path / "1.json", two[2], subjects=["p"] * 20)
    second = write(tmp_path / "2.json", two[3], subjects=["p"] * 19 + ["q"])
    with pytest.raises(
        EvaluationError, match=r"case case_19: expected one subject in both, found p in .*1\.json and q"
    ):
        compare_metrics(first, second)


def test_a_file_of_the_format_before_is_compared_scan_by_scan(two, tmp_path):
    old = json.loads(two[0].read_text()) | {"format": 2}
    for case in old["cases"]:
        del case["subject"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert compare_metrics(tmp_path / "old.json", two[1]).classes == compare_metrics(*two[:2]).classes


def test_a_baseline_of_replaced_weights_or_of_some_of_the_cases_is_warned_of(two, tmp_path, caplog):
    run = RunFolder(tmp_path, "run")
    run.make_ready(keep=False)
    run.write_log(a_log(2))
    baseline, document = run.evaluation("val") / "metrics.json", json.loads(two[0].read_text())
    baseline.parent.mkdir(parents=True)

    def warned(**more) -> list[str]:
        baseline.write_text(json.dumps(document | more))
        caplog.clear()
        check_baseline(baseline, tmp_path / "metrics.json", "dice", ScoringOptions())
        return [record.getMessage() for record in caplog.records]

    networks = [TrainedWeights("run", 1, a_log(2).best_val_miou, "0").to_document()]
    assert warned(networks=networks) == []
    (line,) = warned(networks=networks, n_cases=20, refused=[{"case": "x", "reason": "gone"}])
    assert line.startswith("run: val Dice is the mean of 20 of 21 cases alone: x could not be scored")
    run.write_log(a_log(3))
    assert warned(networks=networks) == [
        f"{baseline}: its scores are compared although run no longer has the weights that were scored; when there are "
        f"others, score these by bodyseg evaluate {run.path} --split val --overwrite"
    ]
