"""Which weights were scored: the same in a copy and after a resume, others after another training, never a guess."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest
import torch

from networks.body_net import BodyNet
from pipeline.files.atomic import FileError
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.stored_scores import (
    TrainedWeights,
    about_missing,
    scores_at,
    scores_of_run,
    scores_of_study,
    weights_id,
)
from pipeline.runs.study import StudyFolder, StudyRecord
from pipeline.training.checkpoint import write_best, write_tensors
from tests.support.finished_run import append
from tests.support.tiny_training import description

EVALUATED = "2024-01-15 11:30:00"


def network(seed: int) -> BodyNet:
    torch.manual_seed(seed)
    return BodyNet(in_channels=1, n_classes=2, base_channels=2, light=True)


def trained(folder: Path, name: str = "run", seed: int = 0, score: float | None = 0.5) -> RunFolder:
    """What a training leaves, as --overwrite begins it."""
    run, log = RunFolder(folder, name), TrainingLog()
    run.make_ready(keep=False)
    append(log, score)
    log.last_update = "2024-01-15 11:00:00"
    write_best(run.best_checkpoint, network(seed), description(name), epoch=0, val_miou=score)
    run.write_log(log)
    run.write_summary("completed", log)
    return run


def weights_of(run: RunFolder) -> dict:
    checkpoint = torch.load(run.best_checkpoint, weights_only=True)
    return TrainedWeights.of_checkpoint(checkpoint, run.name, weights_id(run.best_checkpoint)).to_document()


def write_scores(metrics: Path, *runs: RunFolder, said: bool = True) -> None:
    """Write metrics.json; said: whether it says of which weights, as earlier versions did not."""
    metrics.parent.mkdir(parents=True, exist_ok=True)
    document = {"created": EVALUATED} | ({"networks": [weights_of(run) for run in runs]} if said else {})
    metrics.write_text(json.dumps(document))


def evaluated(run: RunFolder, *, said: bool = True) -> RunFolder:
    write_scores(run.evaluation("val") / "metrics.json", run, said=said)
    return run


def left_out(run: RunFolder) -> str:
    return scores_of_run(run, "val").left_out


def copied(run: RunFolder, to: Path) -> RunFolder:
    """Copy without time stamps, and the weights last."""
    shutil.copytree(run.path, to, copy_function=shutil.copyfile)
    os.utime(to / "checkpoints" / "best_model.ckpt", (4e9, 4e9))
    return RunFolder.at(to)


def test_the_id_is_of_the_crc_32_of_each_tensor_by_zlib(tmp_path):
    run = trained(tmp_path)
    rows = []
    for n, value in enumerate(torch.load(run.best_checkpoint, weights_only=True)["state_dict"].values()):
        content = value.numpy().tobytes()
        rows.append((str(n), len(content), zlib.crc32(content)))
    assert weights_id(run.best_checkpoint) == hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()


def test_the_id_stays_when_weights_are_written_again_and_changes_with_the_last_bit(tmp_path):
    """As a resume writes them: out of its state, at another time, in another folder, with what a later version adds."""
    model, path = network(0), tmp_path / "best_model.ckpt"
    write_best(path, model, description("run"), epoch=3, val_miou=0.5)
    before = weights_id(path)
    write_tensors(tmp_path / "last.ckpt", {"network": model.state_dict()})
    again = network(1)
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["network"])
    write_best(tmp_path / "other.ckpt", again, description("another name"), epoch=4, val_miou=None)
    assert weights_id(tmp_path / "other.ckpt") == before
    torch.save({**torch.load(path, weights_only=True), "more": "facts"}, tmp_path / "by_name.ckpt")
    assert weights_id(tmp_path / "by_name.ckpt") == before
    changed = copy.deepcopy(model)
    last = list(changed.parameters())[-1].data
    last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))
    write_best(path, changed, description("run"), epoch=3, val_miou=0.5)
    assert weights_id(path) not in (before, "")


def test_a_file_without_weights_has_no_id(tmp_path):
    for content in (b"", b"weights", b"PK\x05\x06" + bytes(18)):
        (tmp_path / "x").write_bytes(content)
        assert weights_id(tmp_path / "x") == ""
    os.mkfifo(tmp_path / "pipe")
    assert weights_id(tmp_path / "pipe") == weights_id(tmp_path) == weights_id(tmp_path / "nowhere") == ""


def test_scores_stay_in_a_copy_also_without_weights_and_after_a_resume_that_changed_nothing(tmp_path):
    run = evaluated(trained(tmp_path))
    assert left_out(run) == ""
    copy_of_it = copied(run, tmp_path / "renamed")
    assert left_out(copy_of_it) == ""
    copy_of_it.best_checkpoint.unlink()
    assert left_out(copy_of_it) == ""
    log = TrainingLog()
    append(log, 0.5)
    append(log, 0.6)
    copy_of_it.write_log(log)  # trained on, then copied without weights
    assert "renamed no longer has the weights that were scored" in left_out(copy_of_it)
    run.make_ready(keep=True)
    write_best(run.best_checkpoint, network(0), description("run"), epoch=0, val_miou=0.5)
    os.utime(run.best_checkpoint, (4e9, 4e9))
    assert left_out(run) == ""


def test_a_training_anew_takes_the_scores_away_whatever_the_times_say(tmp_path):
    run = evaluated(trained(tmp_path))
    run.make_ready(keep=False)
    run.write_log(TrainingLog())
    run.write_summary("failed", TrainingLog(), reason="memory ran out")
    assert "run no longer has the weights that were scored" in left_out(run)
    trained(tmp_path, seed=1)
    os.utime(run.best_checkpoint, (0, 0))
    assert left_out(run) == (
        f"{run.evaluation('val') / 'metrics.json'}: its scores are left out, since they are of other weights than run "
        f"has now; score the present ones by bodyseg evaluate {run.path} --split val --overwrite"
    )
    trained(tmp_path, seed=0)
    assert left_out(run) == ""  # the same seed on the same machine: the same network


@pytest.mark.parametrize("said", [True, False])
def test_a_checkpoint_that_was_cut_short_is_called_damaged_and_not_other_weights(tmp_path, said):
    run = evaluated(trained(tmp_path), said=said)
    content = run.best_checkpoint.read_bytes()
    run.best_checkpoint.write_bytes(content[: len(content) // 2])
    os.utime(run.best_checkpoint, (4e9, 4e9))
    assert left_out(run) == (
        f"{run.evaluation('val') / 'metrics.json'}: its scores are left out, since {run.best_checkpoint} is damaged or "
        "cannot be read; restore it from a copy of the run, or train the run again where there is none"
    )
    run.best_checkpoint.write_bytes(content)
    assert (left_out(run) == "") == said


@pytest.mark.parametrize("networks", [5, [5], [{}], []])
def test_scores_of_an_earlier_version_are_shown_only_where_both_times_agree(tmp_path, networks):
    run = evaluated(trained(tmp_path), said=False)
    metrics = run.evaluation("val") / "metrics.json"
    metrics.write_text(json.dumps({"created": EVALUATED, "networks": networks}))
    os.utime(run.best_checkpoint, (0, 0))
    assert left_out(run) == ""
    run.write_log(TrainingLog.from_dict(run.read_log().to_dict() | {"last_update": "2024-01-15 11:30:01"}))
    assert "an earlier version did not say of which weights they are" in left_out(run)
    trained(tmp_path)
    os.utime(run.best_checkpoint, (4e9, 4e9))
    assert left_out(run).endswith(f"score these by bodyseg evaluate {run.path} --split val")
    run.best_checkpoint.unlink()
    assert left_out(run) == ""  # a copy without weights
    run.make_ready(keep=False)
    assert left_out(run) != ""


def test_a_split_without_scores_has_none_and_a_damaged_file_is_refused(tmp_path):
    run = evaluated(trained(tmp_path))
    assert scores_of_run(run, "test") is None
    (run.evaluation("val") / "metrics.json").write_text("{")
    with pytest.raises(FileError, match=r"metrics.json: is not valid JSON"):
        scores_of_run(run, "val")


def a_study(tmp_path: Path, *, said: bool = True) -> tuple[StudyFolder, list[RunFolder]]:
    study = StudyFolder(tmp_path, "study")
    runs = [trained(study.path, f"fold_{number}_bs1", seed=number) for number in (0, 1)]
    folds = {number: {"train": (), "val": (), "test": ()} for number in (0, 1)}
    study.write_record(StudyRecord({}, "2 folds", "ab", folds, run_names={n: run.name for n, run in enumerate(runs)}))
    write_scores(study.metrics, *runs, said=said)
    return study, runs


@pytest.mark.parametrize("said", [True, False])
def test_scores_of_a_study_are_of_its_folds_whatever_lies_beside_them(tmp_path, said):
    study, runs = a_study(tmp_path, said=said)
    trained(study.path, "again_bs1", seed=5)
    assert scores_of_study(study).left_out == ""
    shutil.rmtree(runs[1].path)
    assert scores_of_study(study).left_out.endswith(
        "fold 1 is not trained to its end; finish it with bodyseg cross-validate, which then scores all cases again"
    )
    trained(study.path, runs[1].name, seed=6)
    os.utime(runs[1].best_checkpoint, (4e9, 4e9))
    assert ("other weights than fold_1_bs1 has now" in scores_of_study(study).left_out) == said
    assert scores_of_study(study).left_out
    study.metrics.unlink()
    assert scores_of_study(study) is None


def test_a_metrics_json_is_known_as_that_of_the_run_or_study_where_it_lies(tmp_path, monkeypatch):
    run = evaluated(trained(tmp_path / "logs"))
    metrics = run.evaluation("val") / "metrics.json"
    link = tmp_path / "link.json"
    link.symlink_to(metrics)
    monkeypatch.chdir(metrics.parent)
    trained(tmp_path / "logs", seed=1)
    for path in (metrics, link, Path("metrics.json"), Path("../val/metrics.json")):
        assert "they are of other weights than run has now" in scores_at(path).left_out
    study, runs = a_study(tmp_path)
    of_all = RunFolder.at(study.path).evaluation("test") / "metrics.json"
    write_scores(of_all, *runs)
    assert scores_at(study.metrics).left_out == scores_at(of_all).left_out == ""
    trained(study.path, runs[1].name, seed=6)
    assert "other weights than fold_1_bs1 has now" in scores_at(study.metrics).left_out
    assert scores_at(of_all).left_out.endswith(
        f"score the present ones by bodyseg evaluate {study.path} --split test --overwrite"
    )
    runs[0].write_summary("interrupted", TrainingLog())
    assert scores_at(of_all).left_out.endswith(
        f"then score these by bodyseg evaluate {study.path} --split test --overwrite"
    )
    for other in (tmp_path / "metrics.json", run.evaluation("mine") / "metrics.json", metrics.with_name("kept.json")):
        write_scores(other, run)
        assert scores_at(other) is None


def test_scores_of_some_of_the_cases_say_so(tmp_path):
    run = evaluated(trained(tmp_path))
    metrics = run.evaluation("val") / "metrics.json"
    assert scores_of_run(run, "val").incomplete == ""
    refused = [{"case": case, "reason": "gone"} for case in ("a", "b", "c", "d")]
    whole = json.loads(metrics.read_text()) | {"n_cases": 3}
    metrics.write_text(json.dumps(whole | {"refused": refused}))
    assert scores_of_run(run, "val").incomplete == (
        "run: val Dice is the mean of 3 of 7 cases alone: a, b, c and 1 more could not be scored, for reasons that "
        f"{metrics} gives; mend these, then score all by bodyseg evaluate {run.path} --split val"
    )
    assert left_out(run) == ""
    study, _ = a_study(tmp_path)
    study.metrics.write_text(json.dumps(json.loads(study.metrics.read_text()) | {"n_cases": 1, "refused": refused}))
    assert scores_of_study(study).incomplete.startswith("study: val Dice is the mean of 1 of 5 cases alone: a, b, c")
    assert scores_of_study(study).incomplete.endswith(f"score all by bodyseg evaluate {study.path}")
    for damaged in (5, [5], [{}]):
        about_missing({"refused": damaged, "labels_without_prediction": damaged}, metrics)


def test_labels_without_a_prediction_are_no_failure():
    """As where the test cases alone were predicted, and the data set has labels of all."""
    metrics, labels = Path("scores/metrics.json"), ["a", "b", "c", "d"]
    some = {"n_cases": 2, "refused": [], "labels_without_prediction": labels}
    said = "4 labels have no prediction (a, b, c and 1 more): Dice is the mean of the 2 cases that have one"
    assert about_missing(some, metrics) == f"scores/metrics.json: {said}"
    assert about_missing(some, metrics, "run: val", "CMD") == f"run: val: {said}; score all by CMD"
    one = some | {"n_cases": 1, "labels_without_prediction": ["a"]}
    assert about_missing(one, metrics).endswith(
        "1 label has no prediction (a): Dice is the mean of the 1 case that has one"
    )
    assert about_missing(some | {"refused": [{"case": "x", "reason": "gone"}]}, metrics) == (
        "scores/metrics.json: 4 labels have no prediction (a, b, c and 1 more); of the others Dice is the mean of 2 of "
        "3 cases alone: x could not be scored, for reasons that scores/metrics.json gives; mend these, then score all "
        "by evaluating again"
    )
