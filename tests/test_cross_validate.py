"""Cross-validation: every case is scored once by a network that has not seen it, whatever happened on the way."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import cross_validate as command
from pipeline.checks import case_check
from pipeline.cli.main import main
from pipeline.config.settings import ConfigError
from pipeline.evaluate import evaluate_run, evaluate_study
from pipeline.evaluation.options import EvaluationError
from pipeline.files.atomic import FileError
from pipeline.predict import PredictionOptions, predict
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.stored_scores import scores_of_study
from pipeline.runs.study import StudyFolder, runs_at
from tests.support.paths import ROOT
from tests.support.settings import settings
from tests.support.tiny_prediction import voxels
from tests.support.tiny_study import study_command, study_data
from tests.support.tiny_training import LIMIT_S, differences, start, strict_json


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study_data(folder)
    return folder


@pytest.fixture(scope="module")
def calls(work):
    """A study that two tasks of a job array trained, one after the other: what each printed, and opened for checks."""
    patch = pytest.MonkeyPatch()
    opened: list[str] = []
    real = case_check.read_volume
    patch.setattr(case_check, "read_volume", lambda path: (opened.append(Path(path).name), real(path))[1])
    found = []
    for task in ("0", "1"):
        patch.setenv("SLURM_ARRAY_TASK_ID", task)
        before = len(opened)
        said: list[str] = []
        report = command.cross_validate(settings(*study_command(work)[1:]), say=said.append)
        entries = {path.name: path.stat().st_ino for path in (work / "cache").glob("*.bodycase")}
        found.append((said, opened[before:], entries, report))
    patch.undo()
    return found


@pytest.fixture
def study(work, calls, tmp_path):
    """A finished study of its own, which a test may spoil."""
    shutil.copytree(work / "logs" / "study", tmp_path / "study")
    return tmp_path / "study"


def fold_of(study, number):
    (run,) = study.glob(f"fold_{number}_*")
    return run


def test_each_fold_is_a_run_as_the_contract_of_run_folders_has_it(work, calls, shared_spec):
    faults = runpy.run_path(str(shared_spec / "check_run.py"))["faults"]
    for number in (0, 1):
        assert faults(fold_of(work / "logs" / "study", number), True)[0] == []


def test_every_case_is_scored_once_by_a_network_that_has_not_seen_it(work, calls):
    """By what the files say: whose weights made a prediction, and on which cases these were trained."""
    study = work / "logs" / "study"
    trained_on = {}
    for run in sorted(study.glob("fold_*")):
        weights = hashlib.sha256((run / "checkpoints" / "best_model.ckpt").read_bytes()).hexdigest()
        trained_on[weights] = strict_json(run / "training_config.json")["data"]["split"]["train"]
    assert len(trained_on) == 2
    metrics = strict_json(study / "metrics.json")
    cases = [case["case"] for case in metrics["cases"]]
    assert sorted(cases) == [path.name.removesuffix(".nii.gz") for path in sorted((work / "data/labelsTr").iterdir())]
    for case in metrics["cases"]:
        record = strict_json(study / "predictions" / f"{case['case']}.json")
        (network,) = record["made_by"]["runs"]
        assert case["case"] not in trained_on[network["checkpoint_sha256"]]
        assert Path(case["prediction"]) == study / "predictions" / f"{case['case']}.nii.gz"
    assert [one["run"] for one in metrics["networks"]] == [fold_of(study, number).name for number in (0, 1)]
    assert scores_of_study(StudyFolder.at(study)).left_out == ""
    assert "not trained on it" in metrics["notes"][0]
    assert metrics["summary"]["left_out"]["classes"]["liver"]["dice"]["n"] == 4


def test_a_task_of_a_job_array_trains_its_fold_and_the_last_one_scores(calls):
    (first, _, _, one), (last, _, _, both) = calls
    assert "Job array of SLURM: this task trains fold 0 (SLURM_ARRAY_TASK_ID); --folds all trains all of them" in first
    assert (one.unfinished, one.evaluation) == ((1,), None)
    assert (both.unfinished, len(both.evaluation.cases)) == ((), 4)
    assert "Folds: 2 folds by subject, seed 42; cases that are scored: 2, 2" in last


def test_what_folds_share_is_done_once(work, calls):
    """The other fold opens no scan for its checks and prepares none: one window for all folds, from all their cases."""
    (_, opened, entries, _), (_, again, still, _) = calls
    assert len(opened) == 8  # four cases, image and label
    assert again == []
    assert entries == still
    assert len(entries) == 4
    data = [strict_json(fold_of(work / "logs/study", k) / "training_config.json")["data"] for k in (0, 1)]
    assert data[0]["window"] == data[1]["window"] == strict_json(work / "logs/study/study.json")["shared"]["window"]
    assert data[0]["cross_validation"]["hash"] == data[1]["cross_validation"]["hash"]
    assert (data[0]["split"]["val"], data[1]["split"]["val"]) == (data[1]["split"]["train"], data[0]["split"]["train"])


def test_a_study_predicts_with_the_networks_of_all_its_folds(work, calls, tmp_path):
    study, scan = work / "logs" / "study", next((work / "data" / "imagesTr").iterdir())
    by_name = predict([study], [scan], tmp_path / "one", PredictionOptions(probabilities=("liver",)))
    assert by_name.is_complete
    runs = [fold_of(study, 0), fold_of(study, 1)]
    by_hand = predict(runs, [scan], tmp_path / "two", PredictionOptions(probabilities=("liver",)))
    networks = [record.made_by["runs"] for report in (by_name, by_hand) for record in report.cases]
    assert networks[0] == networks[1]
    assert len(networks[0]) == 2
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.nii.gz")]
    assert len(files) == 2
    for file in files:
        np.testing.assert_array_equal(voxels(tmp_path / "one" / file), voxels(tmp_path / "two" / file))
    shutil.copytree(study, tmp_path / "begun")
    (fold_of(tmp_path / "begun", 1) / "training_summary.json").unlink()
    with pytest.raises(FileError, match="expected 2 trained folds, found that fold 1 is not finished"):
        predict([tmp_path / "begun"], [scan], tmp_path / "three")


@pytest.fixture(scope="module")
def killed_study(work, calls, tmp_path_factory):
    """A study of the same settings that was killed after the first epoch of fold 1, for copies of it."""
    folder = tmp_path_factory.mktemp("killed")
    process = start(study_command(work, "killed", log_dir=str(folder)), folder / "out.txt", _die_in_fold_1)
    process.join(LIMIT_S)
    assert process.exitcode == -signal.SIGKILL, (folder / "out.txt").read_text()
    return folder / "killed"


@pytest.fixture
def killed(killed_study, tmp_path):
    """The study that was killed, in a log folder of its own."""
    return Path(shutil.copytree(killed_study, tmp_path / "logs" / "killed"))


@pytest.mark.fault(
    "SIGKILL of a cross-validation in the middle of a fold",
    "the same command keeps the finished folds and ends bit for bit as one that was never killed",
)
def test_a_killed_study_goes_on_where_it_stood(work, killed, capsys):
    kept = (fold_of(killed, 0) / "training_log.json").stat().st_mtime_ns
    assert (fold_of(killed, 1) / "resume" / "last.ckpt").exists()
    assert not (killed / "metrics.json").exists()
    assert main([*study_command(work, "killed", log_dir=str(killed.parent)), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["is_finished"]
    assert [fold["status"] for fold in report["folds"]] == ["finished", "finished"]
    assert (fold_of(killed, 0) / "training_log.json").stat().st_mtime_ns == kept
    for number in (0, 1):
        assert differences(fold_of(work / "logs" / "study", number), fold_of(killed, number)) == []
    # Equal networks make equal scores, which comparing the two studies finds; each stands for its metrics.json.
    assert main(["evaluate", str(killed), "--compare", str(work / "logs" / "study"), "--json", "--workers", "1"]) == 0
    compared = json.loads(capsys.readouterr().out)["comparison"]
    assert (compared["n_cases"], compared["mean_difference"]) == (4, 0.0)


def test_a_fold_is_a_run_of_its_own_that_its_settings_resume(work, killed, capsys):
    fold = fold_of(killed, 1)
    again = ["--config", str(fold / "training_config.json"), "--log_dir", str(killed)]
    assert main(["cross-validate", *again]) == 2
    assert f"experiment.log_dir {killed} is a cross-validation" in capsys.readouterr().err
    assert main(["train", "--resume", *again]) == 0
    assert differences(fold_of(work / "logs" / "study", 1), fold) == []
    assert len([path for path in killed.iterdir() if path.is_dir()]) == 2


def test_a_study_of_an_earlier_version_goes_on_in_its_folders(work, killed, capsys, monkeypatch):
    """They were called fold_0 and fold_1, and each fold's settings had the name and log folder of the study."""
    record = strict_json(killed / "study.json")
    record["format"], record["settings"]["data"]["augment_on_device"] = 1, False  # the default of then
    del record["runs"]
    (killed / "study.json").write_text(json.dumps(record))
    for number in (0, 1):
        fold = fold_of(killed, number).rename(killed / f"fold_{number}")
        document = strict_json(fold / "training_config.json")
        document["experiment"] |= record["settings"]["experiment"] | {"log_dir": str(killed.parent)}
        (fold / "training_config.json").write_text(json.dumps(document))
    assert main(["train", "--resume", "--config", str(killed / "fold_1" / "training_config.json")]) == 2
    assert f"but a cross-validation in {killed}: go on with its folds by bodyseg cross-vali" in capsys.readouterr().err
    scored = []
    monkeypatch.setattr(command, "_score", lambda study, *_, **__: scored.extend(runs_at(study.path)))
    assert main([*study_command(work, "killed", "--folds", "1", log_dir=str(killed.parent))]) == 0
    assert differences(fold_of(work / "logs" / "study", 1), killed / "fold_1") == []
    assert scored == [killed / "fold_0", killed / "fold_1"] == sorted(filter(Path.is_dir, killed.iterdir()))
    folder = StudyFolder.at(killed)
    fold_0 = command.of_fold(settings(*study_command(work)[1:]), folder.read_record(), 0)
    assert fold_0.data.augment_on_device is False


def _die_in_fold_1():
    """Die by SIGKILL after the first epoch of fold 1."""

    write = RunFolder.write_log

    def write_and_die(folder, log):
        write(folder, log)
        if folder.name.startswith("fold_1_") and len(log):
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.write_log = write_and_die


def test_other_settings_and_other_folds_are_refused_by_name(work, calls):
    with pytest.raises(
        ConfigError, match=r"begun with other settings: data.batch_size 1, now 2; training.lr 0.003, now"
    ):
        command.cross_validate(settings(*study_command(work, batch_size="2", lr="0.1")[1:]))
    with pytest.raises(ConfigError, match=r"training.max_epochs 2, now 3"):
        command.cross_validate(settings(*study_command(work, max_epochs="3")[1:]))
    with pytest.raises(ConfigError, match=r"--folds: expected some of the folds 0, 1, found 2"):
        command.cross_validate(settings(*study_command(work)[1:]), folds=[0, 2])
    with pytest.raises(ConfigError, match=r"data.fold is 1: leave it out"):
        command.cross_validate(settings(*study_command(work, "other", "--data.fold", "1")[1:]))
    record = StudyFolder.at(work / "logs" / "study").read_record()
    others = command.replace(record, hash="0", folds={0: {"train": ("a",), "val": ("b",), "test": ()}})
    with pytest.raises(ConfigError, match=r"begun with other folds \(gone a, b; new body_000, body_001, body_002 and"):
        command._refuse_changed_folds(StudyFolder.at(work / "logs" / "study"), others, record)


def test_a_number_of_a_job_array_without_a_fold_says_which_there_are(work, calls, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    with pytest.raises(
        ConfigError, match=r"SLURM_ARRAY_TASK_ID: expected .* folds 0, 1 \(sbatch --array=0-1\), found '7'"
    ):
        command.cross_validate(settings(*study_command(work)[1:]))


@pytest.mark.fault(
    "two processes that would train the same fold of a cross-validation", "the second leaves it to the first, by name"
)
def test_a_fold_that_another_process_trains_is_left_to_it(study, work):
    for name in ("training_summary.json", "training_log.json", "training_config.json"):
        (fold_of(study, 0) / name).unlink()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(study), fold_of(study, 0).name], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    said = []
    try:
        assert holder.stdout.readline() == "locked\n"
        config = settings(*study_command(work, "study", "--log_dir", str(study.parent))[1:])
        report = command.cross_validate(config, say=said.append)
    finally:
        holder.kill()
        holder.communicate()
    assert any(line.startswith(f"Fold 0: process {holder.pid} on ") for line in said)
    assert "Fold 1: finished, kept" in said
    assert (report.unfinished, report.evaluation) == ((0,), None)


HOLDER = """
import sys, time
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.run_lock import only_training_in
with only_training_in(RunFolder(sys.argv[1], sys.argv[2])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.fault(
    "a fold's record that names a case which its network was trained on", "no score is given, and the case is named"
)
def test_a_network_is_not_scored_on_what_it_was_trained_on(study):
    path = fold_of(study, 0) / "training_config.json"
    document = strict_json(path)
    case = document["data"]["split"]["val"][0]
    document["data"]["split"]["train"].append(case)
    path.write_text(json.dumps(document))
    with pytest.raises(EvaluationError, match=f"case {case}: .* found that it was trained on a scan of that subject"):
        evaluate_study(study)
    document["data"]["cross_validation"]["hash"] = "0"
    path.write_text(json.dumps(document))
    with pytest.raises(EvaluationError, match="expected fold 0 of the folds of 2 folds by subject, seed 42, found"):
        evaluate_study(study)


@pytest.mark.fault(
    "a fold of a cross-validation that is trained again to other weights", "its cases alone are segmented again"
)
def test_cases_of_a_fold_that_was_trained_again_are_segmented_again(study, work, monkeypatch, capsys):
    def train_again(config, *, folder, **_):
        shutil.copytree(earlier / folder.name, folder.path)
        weights = torch.load(folder.best_checkpoint, weights_only=True)
        weights["state_dict"] = {key: value * 1.5 for key, value in weights["state_dict"].items()}
        torch.save(weights, folder.best_checkpoint)

    monkeypatch.setattr(command, "train", train_again)
    case = strict_json(fold_of(study, 1) / "training_config.json")["data"]["split"]["val"][0]
    (study / "predictions" / f"{case}.nii.gz").write_bytes(b"corrected by a person")
    earlier = Path(shutil.copytree(study, study.parent / "earlier"))
    shutil.rmtree(fold_of(study, 1))
    assert main(again := [*study_command(work, "study", log_dir=str(study.parent)), "--json"]) == 1
    printed = capsys.readouterr()
    assert f'"case": "{case}",' in printed.out
    assert f"\nbodyseg: warning: study: val Dice is the mean of 3 of 4 cases alone: {case} could" in printed.err
    (study / "predictions" / f"{case}.nii.gz").rename(study / "corrected.nii.gz")
    assert main(again) == 0
    assert len(strict_json(study / "metrics.json")["cases"]) == 4
    for number in (0, 1):
        weights = (fold_of(study, number) / "checkpoints" / "best_model.ckpt").read_bytes()
        for one in strict_json(fold_of(study, number) / "training_config.json")["data"]["split"]["val"]:
            before, now = (strict_json(folder / "predictions" / f"{one}.json") for folder in (earlier, study))
            assert (before == now) == (number == 0)
            assert now["made_by"]["runs"][0]["checkpoint_sha256"] == hashlib.sha256(weights).hexdigest()


def test_a_test_case_of_one_fold_that_another_was_trained_on_is_not_scored_by_all(study):
    """As a file of folds may have it, which names a case of imagesTs in one of them."""
    path = fold_of(study, 0) / "training_config.json"
    document = strict_json(path)
    case = document["data"]["split"]["val"].pop()
    document["data"]["split"]["test"] = [case]
    path.write_text(json.dumps(document))
    assert case in strict_json(fold_of(study, 1) / "training_config.json")["data"]["split"]["train"]
    with pytest.raises(EvaluationError, match=f"fold_1.*case {case}: expected a test case that no fold has seen"):
        evaluate_run(study, "test", device="cpu")


def test_weights_to_start_from_that_may_have_seen_the_cases_are_noted_beside_the_scores(study, work, monkeypatch):
    """Fold 0's network was trained on the two cases of fold 1."""
    monkeypatch.setattr(command, "train", lambda *arguments, **named: None)
    said: list[str] = []
    start = ("--training.start_from", str(fold_of(study, 0)), "--log_dir", str(study.parent))
    command.cross_validate(settings(*study_command(work, "started", *start)[1:]), folds=[0], say=said.append)
    (warning,) = StudyFolder.at(study.parent / "started").read_record().notes
    assert warning.startswith(
        "Warning: 2 of 4 validation cases bear names of cases that fold_0_bs1_lr0.003_ch2_aug was trained"
    )
    assert warning in said


def test_cases_of_no_fold_are_scored_by_all_networks_together(study, work, capsys):
    held_out = "body_003"
    for number in (0, 1):
        path = fold_of(study, number) / "training_config.json"
        document = strict_json(path)
        split = document["data"]["split"]
        document["data"]["split"] = {part: [case for case in split[part] if case != held_out] for part in split}
        document["data"]["split"]["test"] = [held_out]
        path.write_text(json.dumps(document))
    assert main(["evaluate", str(study), "--split", "test", "--json", "--workers", "1", "--surface", "none"]) == 0
    assert [case["case"] for case in json.loads(capsys.readouterr().out)["cases"]] == [held_out]
    record = strict_json(study / "evaluation" / "test" / "predictions" / f"{held_out}.json")
    assert [network["name"] for network in record["made_by"]["runs"]] == [fold_of(study, k).name for k in (0, 1)]
    assert main(["evaluate", str(study), "--split", "train"]) == 2
    assert "networks of this cross-validation saw its train cases" in capsys.readouterr().err
    assert main(["evaluate", str(study), "--output", str(study / "x")]) == 2
    assert "lie in its own folder; leave --output out" in capsys.readouterr().err
    assert main(["evaluate", str(work / "logs" / "study"), "--compare", str(work / "logs" / "study")]) == 2
    assert "found the file that this one writes" in capsys.readouterr().err


def test_a_case_that_validates_in_two_folds_and_a_runs_folder_are_refused(work, tmp_path):
    split_file = tmp_path / "folds.json"
    split_file.write_text(json.dumps([{"train": ["body_000"], "val": ["body_001"]}] * 2))
    own = {"data.split_file": str(split_file), "data.folds": "0", "log_dir": str(tmp_path)}
    with pytest.raises(ConfigError, match="case body_001 validates in fold 0 and in fold 1 of "):
        command.cross_validate(settings(*study_command(work, "twice", **own)[1:]))
    assert not (tmp_path / "twice").exists()
    with pytest.raises(
        ConfigError, match=r"data.folds is 5, but .*folds.json has 2 folds of its own; leave data.folds"
    ):
        command.cross_validate(settings(*study_command(work, "five", **(own | {"data.folds": "5"}))[1:]))
    shutil.copytree(fold_of(work / "logs" / "study", 0), tmp_path / "run")
    with pytest.raises(FileError, match="expected a cross-validation or nothing, found the run of one training"):
        command.cross_validate(settings(*study_command(work, "run", "--log_dir", str(tmp_path))[1:]))


def test_patches_are_cross_validated_in_the_same_way_with_the_data_sets_own_folds(work, tmp_path, capsys):
    split_file = tmp_path / "folds.json"
    cases = [path.name.removesuffix(".nii.gz") for path in sorted((work / "data" / "labelsTr").iterdir())]
    folds = [{"train": [cases[n + 2]], "val": [cases[n]]} for n in (0, 1)]
    split_file.write_text(json.dumps(folds))
    patches = {"data.mode": "patch", "data.spacing_mm": "24 24 24", "target_size": "16 16 24", "max_epochs": "1"}
    own = {"data.split_file": str(split_file), "data.folds": "0", "log_dir": str(tmp_path)}
    assert main(study_command(work, "patches", "--folds", "all", **(patches | own))) == 0
    printed = capsys.readouterr().out
    assert f"Folds: {split_file}; cases that are scored: 1, 1" in printed
    assert f"All 2 networks together: bodyseg predict {tmp_path / 'patches'} SCANS --output DIR" in printed
    assert "data.mean_std of all folds: [" in printed
    metrics = strict_json(tmp_path / "patches" / "metrics.json")
    assert sorted(case["case"] for case in metrics["cases"]) == cases[:2]
