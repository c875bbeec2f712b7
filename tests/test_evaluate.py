"""Evaluation against MONAI, SimpleITK and closed forms, on files on disk and on real labels."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import warnings
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.metrics import DiceMetric, compute_hausdorff_distance, compute_surface_dice
from monai.networks import one_hot
from scipy import ndimage

from networks.body_net import BodyNet
from pipeline.cli.main import main
from pipeline.datasets.class_table import ClassTable
from pipeline.evaluate import evaluate, evaluate_run
from pipeline.evaluation import case_scores
from pipeline.evaluation.case_scores import SURFACE_METRICS, Pair
from pipeline.evaluation.class_matching import CommonClasses
from pipeline.evaluation.pairing import EvaluationError
from pipeline.evaluation.report import to_csv, to_text, write_files
from pipeline.evaluation.summary import CONVENTIONS, to_document
from pipeline.files.atomic import FileError
from pipeline.metrics.overlap import class_scores, joint_histogram
from pipeline.phantoms.balls import balls
from pipeline.runs.run_folder import RunFolder
from tests.support.paths import ROOT
from transforms.chains import preprocessing_arguments
from transforms.io.grid import VolumeError

SCHEMA = json.loads((ROOT / "docs" / "metrics.schema.json").read_text("utf-8"))
AFFINE = np.array([[-0.9, 0, 0, 30], [0, 1.1, 0, -40], [0, 0, 2.0, 5], [0, 0, 0, 1]])
TABLE = ClassTable(("background", "liver", "spleen", "left", "right"), (0, 1, 2, 3, 4))
SHAPE = (30, 28, 20)


def save(array, path, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def score_case(pair, table, **settings):
    """Score a case of which both files hold the same values."""
    return case_scores.score_case(pair, CommonClasses.same(table), **settings)


def blobs(seed, n_classes=5):
    noise = np.random.default_rng(seed).normal(size=(n_classes, *SHAPE))
    return ndimage.gaussian_filter(noise, (0, 2, 2, 2)).argmax(0).astype(np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Three cases with labels.json; the predictions are worse from case to case: a, b, c."""
    for shift, case in enumerate("abc", start=1):
        label = blobs(shift)
        save(label, tmp_path / "labels" / f"{case}.nii.gz")
        save(np.roll(label, shift, 1), tmp_path / "predictions" / f"{case}.nii.gz")
    names = dict(zip(TABLE.names, TABLE.values, strict=True))
    (tmp_path / "labels" / "labels.json").write_text(json.dumps(names))
    return tmp_path


def monai_surfaces(reference, prediction, n_classes, spacing_mm, tolerance_mm):
    maps = [one_hot(torch.from_numpy(v.astype(np.int64))[None, None], n_classes) for v in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6.1 calls itself with an argument it deprecates
        distance = compute_hausdorff_distance(*maps, percentile=95, spacing=spacing_mm)
        dice = compute_surface_dice(*maps, [tolerance_mm] * (n_classes - 1), spacing=spacing_mm)
    return distance[0].numpy(), dice[0].numpy()


def test_a_real_label_against_its_shifted_and_eroded_copy_agrees_with_simpleitk_and_monai(shared_data, tmp_path):
    path = shared_data / "abdomen_ct" / "example_seg_fast_force_split.nii.gz"
    source = nib.load(path)
    label = np.asarray(source.dataobj).astype(np.uint8)
    moved = np.roll(label, (1, -1, 1), (0, 1, 2))
    moved[ndimage.grey_erosion(moved, size=3) != moved] = 0
    prediction = save(moved, tmp_path / "abdomen.nii.gz", source.affine)
    values = tuple(int(v) for v in np.unique(label))
    table = ClassTable(tuple(f"class_{v}" for v in values), values)
    ours = score_case(Pair("abdomen", prediction, path), table, tolerance_mm=3.0)

    images = [sitk.Cast(sitk.ReadImage(str(p)), sitk.sitkUInt16) for p in (path, prediction)]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(images[0])
    for c, value in enumerate(values[1:], start=1):
        assert ours.dice[c] == pytest.approx(overlap.GetDiceCoefficient(value), abs=1e-6)
        assert ours.iou[c] == pytest.approx(overlap.GetJaccardCoefficient(value), abs=1e-6)
        assert ours.reference_ml[c] == pytest.approx(shape.GetPhysicalSize(value) / 1000, rel=1e-5)
    chosen = [values.index(v) for v in (1, 5, 10)]  # MONAI takes a second a class
    small = [np.zeros_like(label), np.zeros_like(label)]
    for n, c in enumerate(chosen, start=1):
        for out, full in zip(small, (label, moved), strict=True):
            out[full == values[c]] = n
    distance, dice = monai_surfaces(*small, len(chosen) + 1, ours.spacing_mm, 3.0)
    assert ours.hd95_mm[chosen] == pytest.approx(distance, rel=1e-5)
    assert ours.surface_dice[chosen] == pytest.approx(dice, rel=1e-5)


def test_a_ball_has_its_volume_and_a_larger_one_its_distance(tmp_path):
    affine = np.diag([0.5, 0.5, 0.5, 1])
    label = balls((60, 60, 60), affine, [(15, 15, 15)], [10])
    grown = balls((60, 60, 60), affine, [(15, 15, 15)], [12])
    pair = Pair("ball", save(grown, tmp_path / "p.nii", affine), save(label, tmp_path / "l.nii", affine))
    scores = score_case(pair, ClassTable(("background", "ball"), (0, 1)))
    small, large = (4 / 3 * np.pi * r**3 / 1000 for r in (10, 12))
    assert scores.reference_ml[1] == pytest.approx(small, rel=0.005)
    assert scores.volume_difference_ml[1] == pytest.approx(large - small, rel=0.01)
    assert scores.dice[1] == pytest.approx(2 * small / (small + large), abs=0.003)
    assert scores.hd95_mm[1] == pytest.approx(2, abs=0.26)
    assert (scores.true_positives[1], scores.false_negatives[1]) == (np.count_nonzero(label), 0)
    assert scores.false_positives[1] == np.count_nonzero(grown) - np.count_nonzero(label)


@pytest.mark.parametrize("tilt_degrees", [0.01, 20])
def test_a_sheared_grid_has_true_volumes_and_no_distances_that_would_be_wrong(tmp_path, tilt_degrees):
    affine = np.diag([0.5, 0.5, 0.5, 1])
    affine[1, 2] = 0.5 * np.tan(np.radians(tilt_degrees))  # as a CT with its gantry tilted
    affine[1, 3] = -60 * affine[1, 2] / 2
    label, grown = (balls((60, 80, 60), affine, [(15, 20, 15)], [radius]) for radius in (10, 12))
    save(label, tmp_path / "labels" / "ball.nii", affine)
    save(grown, tmp_path / "predictions" / "ball.nii", affine)
    result = evaluate(tmp_path / "predictions", tmp_path / "labels", class_names=["background", "ball", "none"])
    (scores,) = result.cases
    small, large = (4 / 3 * np.pi * r**3 / 1000 for r in (10, 12))
    assert (scores.reference_ml[1], scores.prediction_ml[1]) == pytest.approx((small, large), rel=0.005)
    assert scores.volume_difference_ml[1] == pytest.approx(large - small, rel=0.01)
    document = to_document(result)
    if tilt_degrees > 1:
        assert np.isnan(
            [scores.score(metric, absent)[1:] for metric in SURFACE_METRICS for absent in CONVENTIONS]
        ).all()
        assert "case ball: the axes of its voxels are 20° off right angles" in to_text(result)
    else:
        assert scores.hd95_mm[1] == pytest.approx(2, abs=0.26)
        assert scores.surface_dice[1] > 0.5
    assert len(document["notes"]) == (1 if tilt_degrees > 1 else 0)
    assert document["summary"]["left_out"]["classes"]["ball"]["hd95_mm"]["n"] == (0 if tilt_degrees > 1 else 1)


def test_the_labels_hash_tells_grids_apart_and_not_the_files_rounding(tmp_path):
    label = blobs(1)
    prediction = save(label, tmp_path / "prediction.nii")

    def hashed(name, affine):
        path = save(label, tmp_path / name, affine)
        return score_case(Pair("x", prediction, path), TABLE, resample=True, surface=None).label_sha256

    wider, moved = AFFINE @ np.diag([1, 1, 1.01, 1]), AFFINE.copy()
    moved[0, 3] += 1
    grids = {"a.nii": AFFINE, "wider.nii": wider, "moved.nii": moved}
    hashes = {name: hashed(name, affine) for name, affine in grids.items()}
    assert len(set(hashes.values())) == 3
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / "a.mha"))
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / "a.nrrd"))
    for name in ("a.mha", "a.nrrd"):
        again = score_case(Pair("x", prediction, tmp_path / name), TABLE, resample=True, surface=None)
        assert again.label_sha256 == hashes["a.nii"]


def test_both_conventions_for_absent_classes_are_monais(tmp_path):
    label, prediction = np.zeros((2, *SHAPE), np.uint8)
    label[2:8, 2:8, 2:8], prediction[3:9, 2:8, 2:8] = 1, 1
    label[20:25, 20:25, 10:15] = 2  # missed
    prediction[20:25, 2:8, 2:8] = 3  # wrongly predicted; 4 is in neither
    scores = score_case(Pair("x", save(prediction, tmp_path / "p.nii"), save(label, tmp_path / "l.nii")), TABLE)
    maps = [torch.from_numpy(v)[None, None] for v in (prediction, label)]
    for absent in CONVENTIONS:
        theirs = DiceMetric(reduction="none", num_classes=5, ignore_empty=absent == "left_out")(*maps)[0]
        np.testing.assert_allclose(scores.score("dice", absent)[1:], theirs[1:], rtol=1e-6)
        np.testing.assert_allclose(scores.score("iou", absent)[1:], theirs[1:] / (2 - theirs[1:]), rtol=1e-6)
    for metric, wrong, right in (("hd95_mm", np.inf, 0), ("surface_dice", 0, 1)):
        missed = 0 if metric == "surface_dice" else np.inf
        assert scores.score(metric, "left_out")[2:] == pytest.approx([missed, np.nan, np.nan], nan_ok=True)
        assert scores.score(metric, "scored")[2:].tolist() == [missed, wrong, right]
        assert scores.score(metric, "left_out")[1] == scores.score(metric, "scored")[1]
    ml = np.prod(scores.spacing_mm) / 1000
    assert np.isnan(scores.score("volume_difference_ml", "left_out")[3:]).all()
    assert scores.score("volume_difference_ml", "scored")[1:] == pytest.approx([0, -125 * ml, 180 * ml, 0])
    assert scores.score("prediction_ml", "scored")[1:] == pytest.approx([216 * ml, 0, 180 * ml, 0])
    assert scores.score("prediction_ml", "left_out")[1:] == pytest.approx([216 * ml, 0, np.nan, np.nan], nan_ok=True)


def test_a_prediction_stored_along_other_axes_scores_the_same(tmp_path):
    label, prediction = blobs(1), blobs(2)
    paths = [save(v, tmp_path / f"{n}.nii.gz") for n, v in enumerate((label, prediction))]
    image = nib.load(paths[1])
    ornt = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt("SPL")
    )
    nib.save(image.as_reoriented(ornt), tmp_path / "turned.nii.gz")
    plain = score_case(Pair("x", paths[1], paths[0]), TABLE)
    other = score_case(Pair("x", tmp_path / "turned.nii.gz", paths[0]), TABLE)
    assert not other.resampled
    assert np.array_equal(plain.dice, other.dice, equal_nan=True)
    assert np.array_equal(plain.hd95_mm, other.hd95_mm, equal_nan=True)


def test_another_grid_is_refused_by_name_or_resampled_as_simpleitk_does(tmp_path):
    label = save(blobs(1), tmp_path / "label.nii.gz")
    coarse = AFFINE @ np.diag([1.7, 1.6, 1.3, 1])
    coarse[:3, 3] += 0.3
    prediction = save(blobs(1)[::2, ::2, :15], tmp_path / "prediction.nii.gz", coarse)
    pair = Pair("liver_07", prediction, label)
    with pytest.raises(VolumeError, match=r"case liver_07: prediction .*prediction\.nii\.gz is not on the grid.*shape"):
        score_case(pair, TABLE)
    scores = score_case(pair, TABLE, resample=True)
    assert scores.resampled
    moved = sitk.Resample(
        sitk.ReadImage(str(prediction)), sitk.ReadImage(str(label)), sitk.Transform(), sitk.sitkNearestNeighbor
    )
    theirs = sitk.GetArrayFromImage(moved).transpose(2, 1, 0)
    histogram = joint_histogram(torch.from_numpy(blobs(1)), torch.from_numpy(theirs.copy()), 5)
    assert scores.true_positives == pytest.approx(class_scores(histogram, 1.0).true_positives, abs=3)


def test_the_mismatched_real_pair_is_refused_by_name(shared_data):
    folder = shared_data / "mismatched_pair"
    table = ClassTable(tuple(f"c{n}" for n in range(255)), tuple(range(255)))
    with pytest.raises(VolumeError, match="case heart"):
        score_case(Pair("heart", folder / "ct_cropped.nii.gz", folder / "heart.nii.gz"), table)


def test_ignored_voxels_count_for_nothing(tmp_path):
    label, prediction = blobs(1), blobs(2)
    marked = label.copy()
    marked[:10] = 200
    cut = score_case(Pair("x", save(prediction[10:], tmp_path / "a.nii"), save(label[10:], tmp_path / "b.nii")), TABLE)
    table = ClassTable(TABLE.names, TABLE.values, 200)
    ours = score_case(Pair("x", save(prediction, tmp_path / "c.nii"), save(marked, tmp_path / "d.nii")), table)
    assert np.array_equal(ours.dice, cut.dice)
    assert np.array_equal(ours.false_positives, cut.false_positives)


def test_the_worst_case_comes_first_and_classes_have_their_names(folders):
    result = evaluate(folders / "predictions", folders / "labels")
    assert [case.case for case in result.cases] == ["c", "b", "a"]
    assert result.class_names == TABLE.names
    dice = result.summaries("left_out")["liver"]["dice"]
    values = [case.dice[1] for case in result.cases]
    assert (dice.mean, dice.median, dice.n) == (pytest.approx(np.mean(values)), np.median(values), 3)
    assert dice.ci95[0] <= dice.mean <= dice.ci95[1]
    text = to_text(result)
    assert "liver" in text
    assert text.index("  c ") < text.index("  b ") < text.index("  a ")


def test_metrics_json_fits_its_schema_and_repeats_bit_for_bit(folders):
    missed = blobs(1)
    missed[missed == 2] = 0
    save(missed, folders / "predictions" / "a.nii.gz")
    paths = []
    for workers in (1, 2):
        result = evaluate(folders / "predictions", folders / "labels", workers=workers)
        paths.append(write_files(result, folders)[0].read_text("utf-8"))
    documents = [json.loads(text) for text in paths]
    jsonschema.validate(documents[0], SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for document in documents:
        document.pop("created")
    assert documents[0] == documents[1]
    spleen = documents[0]["summary"]["left_out"]["classes"]["spleen"]["hd95_mm"]
    assert (spleen["n"], spleen["n_infinite"]) == (2, 1)
    rows = list(csv.DictReader(io.StringIO((folders / "metrics.csv").read_text("utf-8"))))
    assert rows[0]["case"] == "c"
    assert [row["hd95_mm"] for row in rows if (row["case"], row["class"]) == ("a", "spleen")] == ["inf"]


def test_a_case_that_cannot_be_scored_is_refused_and_the_others_counted(folders):
    save(blobs(1) + 9, folders / "predictions" / "a.nii.gz")
    (folders / "predictions" / "b.nii.gz").write_bytes(b"no gzip at all")
    seen = []
    result = evaluate(folders / "predictions", folders / "labels", progress=lambda *step: seen.append(step))
    assert [case.case for case in result.cases] == ["c"]
    assert list(result.refused) == ["a", "b"]
    assert "expected the label values 0-4, found" in result.refused["a"]
    assert result.exit_code == 1
    assert [step[:3] for step in seen] == [("scoring", n, 3) for n in (1, 2, 3)]
    assert {step[3] for step in seen} > {"a: refused", "b: refused"}
    assert "refused: case a" in to_text(result)
    jsonschema.validate(json.loads(json.dumps(to_document(result), default=str).replace("NaN", "null")), SCHEMA)


def test_predictions_and_labels_that_do_not_belong_together_are_named(folders):
    save(blobs(1), folders / "predictions" / "d.nii.gz")
    with pytest.raises(EvaluationError, match=r"case d: expected a label of this name in .*labels, found a, b, c"):
        evaluate(folders / "predictions", folders / "labels")
    with pytest.raises(EvaluationError, match="case e: expected a prediction of this name"):
        evaluate(folders / "predictions", folders / "labels", cases=["a", "e"])
    (folders / "predictions" / "a.nii.gz").write_bytes(b"")
    with pytest.raises(EvaluationError, match="none of 1 cases can be scored"):
        evaluate(folders / "predictions", folders / "labels", cases=["a"])
    with pytest.raises(EvaluationError, match="tolerance_mm is -1"):
        evaluate(folders / "predictions", folders / "labels", cases=["b"], tolerance_mm=-1)


def test_labels_without_a_prediction_are_counted(folders):
    (folders / "predictions" / "b.nii.gz").unlink()
    result = evaluate(folders / "predictions", folders / "labels")
    assert result.labels_without_prediction == ("b",)
    assert "labels without a prediction: 1 (b)" in to_text(result)
    assert "b" not in {row["case"] for row in csv.DictReader(io.StringIO(to_csv(result)))}


def test_classes_without_names_are_called_by_their_value(folders):
    (folders / "labels" / "labels.json").unlink()
    assert evaluate(folders / "predictions", folders / "labels").class_names[:3] == ("background", "class_1", "class_2")
    named = evaluate(folders / "predictions", folders / "labels", class_names=TABLE.names)
    assert named.class_names == TABLE.names


def test_predictions_with_a_record_are_matched_to_the_labels_by_name(folders):
    plain = evaluate(folders / "predictions", folders / "labels").cases
    shuffled = {"background": 0, "right": 1, "left": 2, "spleen": 3, "liver": 4}
    for case in "abc":
        path = folders / "predictions" / f"{case}.nii.gz"
        array = np.asarray(nib.load(path).dataobj)
        save(np.array([0, 4, 3, 2, 1], np.uint8)[array], path)
    classes = [{"name": name, "value": value} for name, value in shuffled.items()]
    (folders / "predictions" / "a.json").write_text(json.dumps({"classes": classes}))
    result = evaluate(folders / "predictions", folders / "labels")
    assert result.class_names == TABLE.names
    assert [case.dice.tolist() for case in result.cases] == [case.dice.tolist() for case in plain]
    assert [case.label_sha256 for case in result.cases] == [case.label_sha256 for case in plain]
    classes[1]["name"] = "kidney"
    (folders / "predictions" / "a.json").write_text(json.dumps({"classes": classes}))
    partly = evaluate(folders / "predictions", folders / "labels")
    assert partly.classes.only_in_predictions == ("kidney",)
    assert partly.classes.only_in_labels == ("right",)


def test_labels_are_found_in_a_data_set_of_masks(tmp_path):
    label = blobs(4, n_classes=3)
    save(label.astype(np.int16), tmp_path / "data" / "s1" / "ct.nii.gz")
    for value, name in enumerate(("background", "liver", "spleen")):
        if value:
            save((label == value).astype(np.uint8), tmp_path / "data" / "s1" / "segmentations" / f"{name}.nii.gz")
    save(label, tmp_path / "predictions" / "s1.nii.gz")
    result = evaluate(tmp_path / "predictions", tmp_path / "data")
    assert result.class_names == ("background", "liver", "spleen")
    assert result.cases[0].dice.tolist() == [1, 1, 1]


@pytest.mark.parametrize("surface", ["area", None])
def test_the_definition_of_surfaces_stands_in_the_file_and_none_leaves_them_out(folders, surface):
    by_voxels, result = (evaluate(folders / "predictions", folders / "labels", surface=s) for s in ("voxels", surface))
    path, csv_path = write_files(result, folders)
    document = json.loads(path.read_text("utf-8"))
    jsonschema.validate(document, SCHEMA)
    scores = document["cases"][0]["classes"]["liver"]
    assert scores["dice"] == by_voxels.cases[0].dice[1]
    if surface is None:
        assert document["settings"]["surface"] is scores["hd95_mm"] is scores["surface_dice"] is None
        assert document["summary"]["scored"]["classes"]["liver"]["hd95_mm"]["mean"] is None
        assert "left out (--surface none)" in to_text(result)
    else:
        assert document["settings"]["surface"]["kind"] == "area"
        assert "Nikolov" in document["settings"]["surface"]["definition"]
        assert scores["surface_dice"] != by_voxels.cases[0].surface_dice[1]
        assert "weighted by area" in to_text(result)
    assert csv_path.read_text("utf-8").count("\n") == 1 + sum(len(case["classes"]) for case in document["cases"])


def test_totals_are_the_sums_over_cases(folders):
    document = to_document(evaluate(folders / "predictions", folders / "labels"))
    pairs = [
        [np.asarray(nib.load(folders / side / f"{case}.nii.gz").dataobj) for side in ("labels", "predictions")]
        for case in "abc"
    ]
    spleen = document["totals"]["spleen"]
    assert spleen["true_positives"] == sum(np.sum((label == 2) & (pred == 2)) for label, pred in pairs)
    assert spleen["false_positives"] == sum(np.sum((label != 2) & (pred == 2)) for label, pred in pairs)
    assert spleen["false_negatives"] == sum(np.sum((label == 2) & (pred != 2)) for label, pred in pairs)
    ml = 0.9 * 1.1 * 2 / 1000
    assert spleen["reference_ml"] == pytest.approx(ml * sum(np.sum(label == 2) for label, _ in pairs))


def killed(pair, **settings):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_reported_and_ends_the_evaluation(folders, monkeypatch):
    monkeypatch.setattr("pipeline.evaluation.scoring.score_case", killed)
    with pytest.raises(EvaluationError, match=r"one of 2 processes that score was killed.*fewer --workers"):
        evaluate(folders / "predictions", folders / "labels", workers=2)


def test_the_share_of_a_case_that_is_done_grows_to_one(folders):
    seen = []
    evaluate(folders / "predictions", folders / "labels", case_progress=lambda *step: seen.append(step))
    for case in "abc":
        shares = [share for name, share in seen if name == case]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1], len(shares)) == (0.0, 1.0, 4)


def test_the_command_prints_a_table_or_json_and_compares(folders, capsys):
    given = ["evaluate", "--predictions", str(folders / "predictions"), "--labels", str(folders / "labels")]
    assert main([*given, "--output", str(folders / "first"), "--workers", "1"]) == 0
    assert "Mean over structures: Dice" in capsys.readouterr().out
    for case in "abc":
        save(np.roll(np.asarray(nib.load(folders / "labels" / f"{case}.nii.gz").dataobj), 1, 0),
             folders / "predictions" / f"{case}.nii.gz")  # fmt: skip
    compared = ["--output", str(folders / "second"), "--compare", str(folders / "first" / "metrics.json")]
    assert main([*given, *compared, "--compare_by", "iou", "--json", "--workers", "1"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    comparison = document.pop("comparison")
    jsonschema.validate(document, SCHEMA)
    assert document == json.loads((folders / "second" / "metrics.json").read_text("utf-8"))
    assert (comparison["metric"], comparison["n_cases"]) == ("iou", 3)
    assert "Scoring: 3/3" in printed.err
    save(blobs(5), folders / "labels" / "a.nii.gz")
    assert main([*given, *compared]) == 2
    assert "case a: expected the same label in both" in capsys.readouterr().err


def scoring(monkeypatch):
    """The cases that were read to be scored."""
    seen, score = [], case_scores.score_case

    def noted(pair, **settings):
        seen.append(pair.case)
        return score(pair, **settings)

    monkeypatch.setattr("pipeline.evaluation.scoring.score_case", noted)
    return seen


def test_a_baseline_is_read_before_anything_is_scored_and_is_never_overwritten(folders, capsys, monkeypatch):
    given = ["evaluate", "--predictions", str(folders / "predictions"), "--labels", str(folders / "labels")]
    given += ["--workers", "1"]
    assert main(given) == 0
    baseline = folders / "predictions" / "metrics.json"
    before, scored = baseline.read_bytes(), scoring(monkeypatch)
    capsys.readouterr()
    (folders / "link").symlink_to(folders / "predictions", target_is_directory=True)
    damaged = folders / "damaged.json"
    damaged.write_text("{}")
    for compared, words in (
        ([str(baseline)], "the file that this one writes and would be compared with itself"),
        ([str(folders / "link" / "metrics.json")], "give this one a folder of its own with --output DIR"),
        ([str(damaged)], "expected a metrics.json of format"),
        ([str(folders / "nowhere.json")], "nowhere.json"),
        ([str(baseline), "--compare_by", "hd95_mm", "--surface", "area", "--output", str(folders / "x")], "--surface"),
        ([str(baseline), "--compare_by", "surface_dice", "--tolerance_mm", "3", "--output", str(folders / "x")], "3.0"),
    ):
        assert main([*given, "--compare", *compared]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
    assert (scored, baseline.read_bytes(), (folders / "x").exists()) == ([], before, False)
    assert main([*given, "--compare", str(baseline), "--output", str(folders / "x")]) == 0
    assert baseline.read_bytes() == before


def test_an_output_folder_that_cannot_be_made_is_refused_before_anything_is_scored(folders, capsys, monkeypatch):
    given = ["evaluate", "--predictions", str(folders / "predictions"), "--labels", str(folders / "labels")]
    scored = scoring(monkeypatch)
    (folders / "file").write_text("")
    assert main([*given, "--workers", "1", "--output", str(folders / "file" / "x")]) == 2
    error = capsys.readouterr().err
    assert f"{folders / 'file' / 'x'}: cannot be written" in error
    assert (len(error.splitlines()), scored) == (1, [])
    (folders / "dangling").symlink_to(folders / "nowhere" / "else")  # only making it shows that it cannot be made
    with pytest.raises(FileError, match="dangling: cannot be written"):
        write_files(evaluate(folders / "predictions", folders / "labels"), folders / "dangling")


@pytest.mark.parametrize(
    "arguments", [["RUN", "--predictions", "P", "--labels", "L"], ["--predictions", "P"], ["RUN", "--labels", "L"]]
)
def test_a_command_that_names_half_is_refused(arguments, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert "name a RUN, or both --predictions DIR and --labels DIR" in capsys.readouterr().err
    assert main(["evaluate", "RUN", "--class_names", "liver=1"]) == 2
    assert "a RUN and its data name their classes" in capsys.readouterr().err


@pytest.fixture
def run_folder(tmp_path):
    """A run with an untrained network, and its data set, in whose label files the ball has the value 7."""
    root = tmp_path / "data"
    for n in range(3):
        label = balls((24, 24, 24), np.eye(4), [(11.5, 11.5, 11.5)], [6 + n])
        save(np.where(label, 500, -500).astype(np.int16), root / "images" / f"case_{n}.nii.gz", np.eye(4))
        save(label * 7, root / "labels" / f"case_{n}.nii.gz", np.eye(4))
    (root / "labels.json").write_text(json.dumps({"background": 0, "ball": 7}))
    network = BodyNet(in_channels=1, n_classes=2, base_channels=4, light=True)
    network.eval()
    folder = RunFolder(tmp_path, "run")
    folder.make_ready(keep=False)
    checkpoint = {
        "format": 1, "state_dict": network.state_dict(), "run": "run", "class_names": ["background", "ball"],
        "network": {"_target_": "BodyNet", "in_channels": 1, "n_classes": 2, "base_channels": 4, "light": True},
        "preprocessing": preprocessing_arguments((24, 24, 24), label_values=[0, 7]),
    }  # fmt: skip
    torch.save(checkpoint, folder.best_checkpoint)
    groups = {name: {} for name in ("experiment", "model", "training", "loss", "system")}
    split = {"train": ["case_2"], "val": ["case_0", "case_1"], "test": []}
    folder.write_config(groups | {"data": {"dataset_root": str(root), "split": split}})
    return folder


def test_a_run_is_predicted_and_scored_on_its_own_validation_cases(run_folder):
    result, output = evaluate_run(run_folder.path, "val", precision="32")
    assert output == run_folder.path / "evaluation" / "val"
    assert {case.case for case in result.cases} == {"case_0", "case_1"}
    for case in result.cases:
        prediction = np.asarray(nib.load(case.pair.prediction).dataobj)
        label = np.asarray(nib.load(case.pair.label).dataobj) == 7
        overlap = 2 * np.count_nonzero(label & (prediction == 1)) / (label.sum() + (prediction == 1).sum())
        assert case.dice[1] == pytest.approx(overlap)
    again, _ = evaluate_run(run_folder.path, "val", precision="32")
    assert [c.mean_dice for c in again.cases] == [c.mean_dice for c in result.cases]


def test_a_split_without_cases_or_a_changed_data_set_is_refused(run_folder):
    there = r"found none; there are some for --split val \(2\), --split train \(1\)$"
    with pytest.raises(EvaluationError, match=r"data\.split\.test: expected cases, " + there):
        evaluate_run(run_folder.path, "test")
    (Path(run_folder.read_config()["data"]["dataset_root"]) / "images" / "case_1.nii.gz").unlink()
    (Path(run_folder.read_config()["data"]["dataset_root"]) / "labels" / "case_1.nii.gz").unlink()
    with pytest.raises(EvaluationError, match="case case_1: expected it in"):
        evaluate_run(run_folder.path, "val")


def test_the_command_reuses_finished_predictions_unless_told_to_overwrite(run_folder, capsys):
    given = [
        "evaluate",
        str(run_folder.path),
        "--split",
        "val",
        "--device",
        "cpu",
        "--precision",
        "32",
        "--surface",
        "none",
    ]
    files = [run_folder.path / "evaluation" / "val" / "predictions" / f"case_{n}.json" for n in range(2)]

    def times():
        assert main(given) == 0
        return [file.stat().st_mtime_ns for file in files]

    first = times()
    assert times() == first
    given.append("--overwrite")
    assert all(after > before for after, before in zip(times(), first, strict=True))
    assert (run_folder.path / "evaluation" / "val" / "metrics.csv").is_file()
