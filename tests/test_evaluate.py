"""The command "evaluate": folders and runs, what is refused before anything is scored, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch

from networks.body_net import BodyNet
from pipeline.cli.main import main
from pipeline.config.settings import ConfigError
from pipeline.datasets.errors import DatasetError
from pipeline.evaluate import default_output, evaluate, evaluate_run
from pipeline.evaluation import case_scores, scoring
from pipeline.evaluation.case_scores import SURFACE_METRICS
from pipeline.evaluation.metrics_file import to_document, write_files
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from pipeline.evaluation.report import evaluation_text
from pipeline.evaluation.summary import CONVENTIONS
from pipeline.files.atomic import FileError
from pipeline.phantoms.balls import balls
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.stored_scores import weights_id
from tests.support.datasets import write_json
from tests.support.evaluation import AFFINE, SCHEMA, blobs, save, save_seg_nrrd, sitk_dice, three_cases
from tests.support.tiny_prediction import checkpoint, scan, voxels
from transforms.chains import preprocessing_arguments

ORDER = ("T2", "FLAIR")


@pytest.fixture
def folders(tmp_path):
    return three_cases(tmp_path)


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
        assert "case ball: the axes of its voxels are 20° off right angles" in evaluation_text(result)
    else:
        assert scores.hd95_mm[1] == pytest.approx(2, abs=0.26)
        assert scores.surface_dice[1] > 0.5
    assert len(document["notes"]) == (1 if tilt_degrees > 1 else 0)
    assert document["summary"]["left_out"]["classes"]["ball"]["hd95_mm"]["n"] == (0 if tilt_degrees > 1 else 1)


def test_a_case_that_cannot_be_scored_is_refused_and_the_others_counted(folders):
    save(blobs(1) + 9, folders / "predictions" / "a.nii.gz")
    (folders / "predictions" / "b.nii.gz").write_bytes(b"no gzip at all")
    seen = []
    result = evaluate(folders / "predictions", folders / "labels", progress=lambda *step: seen.append(step))
    assert [case.case for case in result.cases] == ["c"]
    assert list(result.refused) == ["a", "b"]
    assert "expected the label values 0-4, found" in result.refused["a"]
    assert result.exit_code == 1
    assert [step[:3] for step in seen] == [(n, 3, "scoring") for n in (1, 2, 3)]
    assert {step[3] for step in seen} > {"a: refused", "b: refused"}
    assert "refused: case a" in evaluation_text(result)
    jsonschema.validate(json.loads(json.dumps(to_document(result), default=str).replace("NaN", "null")), SCHEMA)


def test_an_evaluation_without_any_score_is_refused(folders):
    for case in "abc":
        (folders / "predictions" / f"{case}.nii.gz").write_bytes(b"")
    with pytest.raises(EvaluationError, match="none of 3 cases can be scored; the first: case a"):
        evaluate(folders / "predictions", folders / "labels")


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
    assert "scoring: 3/3" in printed.err
    save(blobs(5), folders / "labels" / "a.nii.gz")
    assert main([*given, *compared]) == 2
    printed = capsys.readouterr()
    assert "case a: expected the same label in both" in printed.err
    assert "Mean over structures: Dice" in printed.out  # what was scored is not lost
    assert f"Scores: {folders / 'second' / 'metrics.json'}" in printed.out + printed.err


def scored_cases(monkeypatch):
    """The cases that were read to be scored."""
    seen, score = [], case_scores.score_case

    def noted(pair, *arguments, **options):
        seen.append(pair.case)
        return score(pair, *arguments, **options)

    monkeypatch.setattr(scoring, "score_case", noted)
    return seen


def test_a_baseline_is_read_before_anything_is_scored_and_is_never_overwritten(folders, capsys, monkeypatch):
    given = ["evaluate", "--predictions", str(folders / "predictions"), "--labels", str(folders / "labels")]
    given += ["--workers", "1"]
    assert main(given) == 0
    baseline = folders / "predictions" / "metrics.json"
    before, scored = baseline.read_bytes(), scored_cases(monkeypatch)
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
    scored = scored_cases(monkeypatch)
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
    result = evaluate_run(run_folder.path, "val", precision="32")
    assert default_output(run_folder.path, "val") == run_folder.path / "evaluation" / "val"
    assert result.cases[0].pair.prediction.parent == run_folder.path / "evaluation" / "val" / "predictions"
    assert {case.case for case in result.cases} == {"case_0", "case_1"}
    for case in result.cases:
        prediction = np.asarray(nib.load(case.pair.prediction).dataobj)
        label = np.asarray(nib.load(case.pair.label).dataobj) == 7
        assert set(np.unique(prediction)) <= {0, 7}
        overlap = 2 * np.count_nonzero(label & (prediction == 7)) / (label.sum() + (prediction == 7).sum())
        assert case.dice[1] == pytest.approx(overlap)
    (scored,) = to_document(result)["networks"]
    assert scored == {
        "run": "run", "epoch": None, "val_mIoU": None, "weights_id": weights_id(run_folder.best_checkpoint),
    }  # fmt: skip
    again = evaluate_run(run_folder.path, "val", precision="32")
    assert [c.mean_dice for c in again.cases] == [c.mean_dice for c in result.cases]


def test_scores_of_cases_that_chose_or_trained_the_network_say_so(run_folder, capsys):
    config = run_folder.read_config()
    config["data"]["split"] = {"train": ["case_0"], "val": ["case_1"], "test": ["case_2"]}
    run_folder.write_config(config)
    said = {}
    for split in ("train", "val", "test"):
        assert main(["evaluate", str(run_folder.path), "--split", split, "--workers", "1", "--surface", "none"]) == 0
        metrics = json.loads((run_folder.evaluation(split) / "metrics.json").read_text())
        said[split] = metrics["notes"]
        printed = " ".join(capsys.readouterr().out.split())
        assert all(note in printed for note in metrics["notes"])
    (trained,), (chosen,) = said["train"], said["val"]
    assert "was trained on these same cases" in trained
    assert "decided by val_mIoU on these same cases, so that scores on further scans may be somewhat lower" in chosen
    assert said["test"] == []
    config["training"]["started_from"] = {"run": "old", "trained_on": ["case_1", "case_2"]}
    run_folder.write_config(config)
    for split, part in (("val", "validation"), ("test", "test")):
        seen = evaluate_run(run_folder.path, split, ScoringOptions(surface=None)).notes[-1]
        assert seen.startswith(f"1 of 1 {part} cases bear names of cases that old was trained on (case_")
    assert [case.case for case in evaluate_run(run_folder.path).cases] == ["case_2"]  # held out


def test_labels_of_a_run_are_read_by_their_own_headers_where_these_differ(run_folder):
    """The labels were exported again after training, with another value for the ball; sitk_dice reads the numbers."""
    root = Path(run_folder.read_config()["data"]["dataset_root"])
    write_json(root / "labels.json", {"background": 0, "ball": 7, "bone": 3})
    checkpoint(
        run_folder.best_checkpoint, names=["background", "bone", "ball"], channels=("image",), label_values=[0, 3, 7]
    )
    label = np.random.default_rng(0).choice([0, 3, 7], (24, 24, 24)).astype(np.uint8)
    for case, values in (("case_0", {3: 7, 7: 3}), ("case_1", {3: 3, 7: 7})):
        save(np.zeros((24, 24, 24), np.int16) + label, root / "images" / f"{case}.nii.gz", AFFINE)
        (root / "labels" / f"{case}.nii.gz").unlink()
        array = np.vectorize({0: 0, **values}.get)(label).astype(np.uint8)
        save_seg_nrrd(array, root / "labels" / f"{case}.seg.nrrd", {"ball": values[7], "bone": values[3]})
    result = evaluate_run(run_folder.path, "val", precision="32")
    for case in result.cases:
        prediction = np.asarray(nib.load(case.pair.prediction).dataobj)
        expected = [sitk_dice(prediction, label, value, value) for value in (3, 7)]
        assert case.dice[1:].tolist() == pytest.approx(expected)
    assert [note.split(":")[0] for note in result.notes if "header" in note] == ["case case_0"]


@pytest.mark.parametrize("resample", [False, True])
def test_a_label_of_a_data_set_that_was_cropped_is_padded_to_its_image(tmp_path, resample):
    """As training does; what is predicted outside of it was left out of the scores with --resample."""
    label = blobs(1, n_classes=3)
    label[:6], label[20:], label[:, :5] = 0, 0, 0
    prediction = blobs(2, n_classes=3)
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ [4, 3, 0, 1])[:3]
    part = label[4:24, 3:]
    turned = np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = len(part) - 1
    save(label.astype(np.int16), tmp_path / "data" / "images" / "a.nii.gz")
    save(part[::-1], tmp_path / "data" / "labels" / "a.nii.gz", affine @ turned)
    save(prediction, tmp_path / "predictions" / "a.nii.gz")
    write_json(tmp_path / "data" / "labels.json", {"background": 0, "liver": 1, "spleen": 2})
    result = evaluate(tmp_path / "predictions", tmp_path / "data", ScoringOptions(resample=resample))
    expected = [sitk_dice(prediction, label, value, value) for value in (1, 2)]
    assert result.cases[0].dice[1:].tolist() == pytest.approx(expected)
    assert not result.cases[0].resampled


def test_a_split_without_cases_or_a_changed_data_set_is_refused(run_folder):
    there = r"found none; there are some for --split train \(1\), --split val \(2\)$"
    with pytest.raises(EvaluationError, match=r"data\.split\.test: expected cases, " + there):
        evaluate_run(run_folder.path, "test")
    (Path(run_folder.read_config()["data"]["dataset_root"]) / "images" / "case_1.nii.gz").unlink()
    (Path(run_folder.read_config()["data"]["dataset_root"]) / "labels" / "case_1.nii.gz").unlink()
    with pytest.raises(EvaluationError, match="case case_1: expected it in"):
        evaluate_run(run_folder.path, "val")


def test_a_run_is_scored_alike_when_its_data_set_names_its_channels_in_another_order(run_folder, tmp_path):
    root = Path(run_folder.read_config()["data"]["dataset_root"])
    checkpoint(run_folder.best_checkpoint, names=["background", "ball"], channels=("T2", "FLAIR"), label_values=[0, 7])
    files = {name: str(scan(tmp_path / f"{name}.nii.gz", (24, 24, 24), np.eye(4), seed=len(name))) for name in ORDER}
    found = []
    for order in (ORDER, ORDER[::-1], ("T1", "FLAIR")):
        cases = [
            {"case": f"case_{n}", "image": [files.get(name, files["T2"]) for name in order], "label": str(label)}
            for n, label in enumerate(sorted((root / "labels").iterdir()))
        ]
        write_json(
            root / "cases.json", {"channel_names": order, "labels": {"background": 0, "ball": 7}, "cases": cases}
        )
        if "T1" in order:
            with pytest.raises(DatasetError, match=r"the run's image channels, T2, FLAIR, found T1, FLAIR"):
                evaluate_run(run_folder.path, "val", precision="32", output=tmp_path / order[0])
        else:
            evaluate_run(run_folder.path, "val", precision="32", output=tmp_path / order[0])
            found.append(voxels(tmp_path / order[0] / "predictions" / "case_0.nii.gz"))
    assert np.array_equal(*found)


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


def test_a_precision_that_the_device_lacks_is_refused_before_a_scan_is_read(run_folder):
    with pytest.raises(ConfigError, match="precision"):
        evaluate_run(run_folder.path, "val", precision="fp16")
    assert not (run_folder.path / "evaluation").exists()


def test_a_case_that_cannot_be_segmented_is_named_with_its_reason(run_folder):
    root = Path(run_folder.read_config()["data"]["dataset_root"])
    save(np.full((24, 24, 24), np.nan, np.float32), root / "images" / "case_1.nii.gz", np.eye(4))
    result = evaluate_run(run_folder.path, "val", precision="32")
    assert result.refused["case_1"].startswith("case case_1: ")
    assert "refused: case case_1: " in evaluation_text(result)
