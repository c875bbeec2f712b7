"""The run folder against its contract's own checker and schemas; starting, resuming, overwriting, finding runs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jsonschema
import pandas as pd
import pytest

from pipeline.compare import compare
from pipeline.config.settings import Config, DataConfig, ExperimentConfig
from pipeline.files.atomic import FileError, write_atomically
from pipeline.plot import plot
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder, distinct_names, is_run_folder, list_runs, run_name
from tests.support.finished_run import append, documented_config, finished_run, settings_in, start
from tests.support.killed_writer import KILLED
from tests.support.nobody import Nobody
from tests.support.paths import ROOT


def checked(spec: Path, folder: RunFolder) -> str:
    command = [sys.executable, str(spec / "check_run.py"), str(folder.path), "--no-torch"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_a_finished_run_passes_the_contracts_own_checker(tmp_path, shared_spec):
    folder = finished_run(tmp_path / "logs", documented_config())
    assert folder.name == "body_unet_bs2_lr0.0001_ch32_cw0.5_aug"
    assert checked(shared_spec, folder) == f"{folder.name}: completed, 6 epochs, best val mIoU 0.5 at epoch 3\n"
    assert not folder.resume.exists()


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_ended_early_passes_too_and_says_why(tmp_path, shared_spec, status):
    folder = finished_run(tmp_path, documented_config(), scores=(None, float("nan")))
    folder.best_checkpoint.write_bytes(b"weights")
    folder.write_summary(status, folder.read_log(), reason="stopped by SIGTERM")
    assert f"{status}, 2 epochs, best val mIoU None" in checked(shared_spec, folder)
    assert folder.read_summary()["reason"] == "stopped by SIGTERM"
    with pytest.raises(FileError, match="needs a reason"):
        folder.write_summary("failed", folder.read_log())


def test_the_run_name_is_the_checkers_for_every_combination(shared_spec):
    spec = importlib.util.spec_from_file_location("check_run", shared_spec / "check_run.py")
    checker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checker)
    for lr, alpha, augmented, light in [(1e-5, 1.0, True, True), (3e-4, None, False, True), (1.0, 0.25, False, False)]:
        config = documented_config(
            **{"training.lr": lr, "loss.use_class_weights": alpha is not None, "loss.weight_alpha": alpha},
            **{"data.data_aug": augmented, "model.use_light_model": light},
        )
        name = run_name(settings_in(config))
        assert name == checker.expected_name(json.loads(json.dumps(config)))


def test_the_documented_pandas_table_can_be_built(tmp_path):
    for channels, scores in ((16, (0.1, 0.2)), (32, (0.4, 0.3))):
        config = documented_config(**{"model.base_channels": channels, "training.max_epochs": 2})
        finished_run(tmp_path, config, scores)
    rows = []
    for run in sorted(tmp_path.iterdir()):
        summary = json.loads((run / "training_summary.json").read_text())
        model = json.loads((run / "training_config.json").read_text())["model"]
        row = {key: summary[key] for key in ("best_val_mIoU", "total_epochs")}
        rows.append(row | {key: model[key] for key in ("base_channels", "total_parameters")})
        assert Path(summary["best_checkpoint"]).read_bytes() == b"weights"
    table = pd.DataFrame(rows)
    assert table.best_val_mIoU.tolist() == [0.2, 0.4]
    assert table.base_channels.tolist() == [16, 32]


def test_completing_leaves_alone_what_another_process_is_writing(tmp_path):
    """`bodyseg plot` may draw the curves at the very moment at which the training completes."""
    folder = finished_run(tmp_path, documented_config())

    def complete_meanwhile(stream):
        stream.write(b"PNG")
        folder.write_summary("completed", folder.read_log())
        folder.tidy()

    write_atomically(folder.curves, complete_meanwhile)
    assert folder.curves.read_bytes() == b"PNG"


def test_completing_removes_a_link_to_the_state_elsewhere_and_there_only_what_is_the_runs(tmp_path):
    folder = RunFolder(tmp_path / "logs", "run")
    folder.path.mkdir(parents=True)
    for name, others in (("own", []), ("shared", ["notes.txt"])):
        place = tmp_path / name
        place.mkdir()
        for other in others:
            (place / other).touch()
        folder.resume.symlink_to(place)
        start(folder, overwrite=True)
        folder.best_checkpoint.touch()
        folder.resume_checkpoint.mkdir()
        with pytest.raises(FileError, match=r"run/resume: cannot be removed \(.*last\.ckpt.*\); remove it by hand"):
            folder.write_summary("completed", TrainingLog())
        with pytest.raises(FileError, match=r"run/resume: cannot be removed"):
            folder.tidy()  # as the next start does
        folder.resume_checkpoint.rmdir()
        folder.resume_checkpoint.touch()
        folder.lock.touch()
        folder.tidy()
        assert not os.path.lexists(folder.resume)
        assert [path.name for path in place.glob("*")] == others
        assert place.exists() == bool(others)


def test_paths_stand_in_the_summary_as_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = finished_run(Path("logs"), documented_config())
    assert folder.read_summary()["best_checkpoint"] == f"logs/{folder.name}/checkpoints/best_model.ckpt"


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", "..", ".hidden", "", "  ", "a\nb", "a\x1b[2Jb", "a\u202eb", " a", "a\ud800b", "é" * 130],
)
def test_a_name_that_is_no_plain_folder_name_is_refused_in_one_line(name, tmp_path):
    config = Config(ExperimentConfig(name), DataConfig("scans"))
    for refused in (lambda: run_name(config), lambda: RunFolder(tmp_path, name)):
        with pytest.raises(FileError, match="choose a plain one") as error:
            refused()
        assert str(error.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_a_kill_in_mid_write_leaves_the_old_file_and_the_next_start_removes_the_rest(tmp_path):
    folder = RunFolder(tmp_path, "run")
    start(folder)
    folder.write_config(documented_config())
    write_atomically(folder.resume_checkpoint, lambda stream: stream.write(b"state"))
    write_atomically(folder.best_checkpoint, lambda stream: stream.write(b"good weights"))

    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder.best_checkpoint)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL

    assert folder.best_checkpoint.read_bytes() == b"good weights"
    assert len(list(folder.checkpoints.iterdir())) == 2
    assert start(folder, resume=True)
    assert list(folder.checkpoints.iterdir()) == [folder.best_checkpoint]
    assert folder.best_checkpoint.read_bytes() == b"good weights"


def test_a_finished_run_is_neither_overwritten_nor_resumed_unasked(tmp_path):
    folder = finished_run(tmp_path, documented_config())
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    for resume in (False, True):
        with pytest.raises(FileError, match=r"finished training \(6 finished epochs, best val mIoU 0.5000\).*--overwr"):
            start(folder, resume=resume)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    assert folder.state == "finished"


def test_overwriting_removes_the_run_and_keeps_what_is_not_its_own(tmp_path):
    folder = finished_run(tmp_path, documented_config())
    (folder.path / "notes.txt").write_text("mine")
    folder.summary.write_text("damaged")
    assert start(folder, overwrite=True) is False
    assert folder.state == "absent"
    files = sorted(path.name for path in folder.path.rglob("*") if path.is_file())
    assert files == ["events.out.tfevents.1", "notes.txt"]
    with pytest.raises(FileError, match="exclude each other"):
        start(folder, resume=True, overwrite=True)


def test_an_interrupted_run_says_so_and_resumes(tmp_path):
    folder, log = RunFolder(tmp_path, "run"), TrainingLog()
    assert folder.state == "absent"
    assert start(folder, resume=True) is False  # a requeued job repeats its command line
    folder.write_config(documented_config())
    append(log, 0.25)
    write_atomically(folder.resume_checkpoint, lambda stream: stream.write(b"state"))
    folder.write_log(log)
    assert folder.state == "interrupted"
    with pytest.raises(FileError, match=r"still running\) training \(1 finished .*continue it with --resume"):
        start(folder)
    folder.write_summary("failed", log, reason="the loss is NaN")
    assert folder.state == "failed"
    assert start(folder, resume=True) is True
    assert folder.state == "interrupted"  # the old ending is gone, history and state are not
    assert folder.read_log() == log
    assert folder.resume_checkpoint.read_bytes() == b"state"


def test_a_run_killed_in_its_first_epoch_begins_anew_and_one_without_its_state_is_refused(tmp_path):
    folder, log = RunFolder(tmp_path, "run"), TrainingLog()
    start(folder)
    folder.write_config(documented_config())
    folder.write_log(log)
    assert start(folder, resume=True) is False
    assert not folder.config.exists()
    append(log, 0.5)
    folder.write_log(log)
    with pytest.raises(FileError, match=r"last\.ckpt: expected the state after the last epoch, found nothing"):
        start(folder, resume=True)
    assert len(folder.read_log()) == 1


def test_a_file_in_the_runs_place_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileError, match="run: cannot be written"):
        start(RunFolder(tmp_path, "run"))


def test_several_data_sets_are_written_as_the_documented_text_and_a_list_of_the_others(tmp_path, shared_spec):
    config = json.loads(json.dumps(documented_config()))
    config["data"]["dataset_root"] = ["one", "two", "three"]
    folder = finished_run(tmp_path, config)
    written = json.loads(folder.config.read_text())
    jsonschema.validate(written, json.loads((shared_spec / "training_config.schema.json").read_text()))
    assert (written["data"]["dataset_root"], written["data"]["other_dataset_roots"]) == ("one", ["two", "three"])
    assert folder.read_config()["data"] == config["data"]
    folder.config.write_text(json.dumps(config))  # as earlier versions wrote it
    assert folder.read_config()["data"] == config["data"]
    folder.config.write_text(json.dumps(config | {"data": {"dataset_root": "one", "other_dataset_roots": 2}}))
    with pytest.raises(FileError, match="other_dataset_roots: expected a list of the data sets behind"):
        folder.read_config()


def test_other_damage_is_named_too(tmp_path):
    folder = finished_run(tmp_path, documented_config())
    folder.summary.write_text('{"status": "done"}')
    with pytest.raises(FileError, match='status: expected completed, interrupted or failed, found "done"'):
        _ = folder.state
    folder.config.write_text('{"experiment": 3}')
    with pytest.raises(FileError, match="experiment: expected a group, found the number 3"):
        folder.read_config()
    folder.log.unlink()
    os.mkfifo(folder.log)
    with pytest.raises(FileError, match="not a regular file"):
        folder.read_log()
    folder.config.unlink()
    with pytest.raises(FileError, match="No such file"):
        folder.read_config()


def test_a_history_that_the_summary_counts_and_nobody_finds_is_missed(tmp_path):
    folder = finished_run(tmp_path, documented_config())
    log = folder.read_log()
    folder.log.unlink()
    missing = r"training_log\.json: expected the 6 epochs of training_summary\.json, found no file; restore the file"
    for read in (folder.read_log, folder.may_start, lambda: plot([folder.path]), lambda: compare([folder.path])):
        with pytest.raises(FileError, match=missing):
            read()
    assert not folder.may_start(overwrite=True)
    folder.write_summary("interrupted", log)
    folder.resume.mkdir()
    folder.resume_checkpoint.touch()
    assert folder.may_start(resume=True), "the state to resume from holds the history, too"
    folder.write_summary("interrupted", TrainingLog())
    assert len(folder.read_log()) == 0


def test_runs_are_listed_once_from_folders_and_from_log_folders(tmp_path, monkeypatch):
    for name in ("b", "a", ".hidden"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "training_config.json").touch()
    (tmp_path / "logs" / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "logs" / "b")
    runs = list_runs([".", tmp_path / "logs", "../a"])
    assert [run.name for run in runs] == ["b", "a"]
    assert distinct_names(runs) == ["b", "a"]
    assert distinct_names([RunFolder("x", "a"), RunFolder("y", "a")]) == ["x/a", "y/a"]


@pytest.mark.fault("a folder beside the runs that its owner closed", "the others are read; the closed one is named")
def test_a_closed_folder_beside_the_runs_is_named_and_hides_none(caplog):
    with tempfile.TemporaryDirectory() as name:
        logs = Path(name)
        logs.chmod(0o755)
        for run in ("a", "z"):
            finished_run(logs / run, documented_config()).path.rename(logs / run / "run")
            (logs / f"{run}_run").symlink_to(logs / run / "run")
        (logs / "colleague").mkdir(0o700)
        (logs / "link").symlink_to("colleague/run")
        with Nobody():
            runs, table = list_runs([logs]), compare([logs])
            with pytest.raises(FileError, match="colleague: cannot be read"):
                list_runs([logs / "colleague"])
    said = [f"{logs / closed}: cannot be read (Permission denied); check its perm" for closed in ("colleague", "link")]
    assert [run.name for run in runs] == ["a_run", "z_run"] == sorted(row["run"] for row in table.rows)
    for lines in ([record.getMessage() for record in caplog.records], table.skipped):
        assert [line.startswith(words) for line, words in zip(lines, said, strict=True)] == [True, True]


@pytest.mark.parametrize(("path", "words"), [("none", "no such folder"), ("", "no training_config.json in it")])
def test_a_path_without_a_run_is_named(tmp_path, path, words):
    with pytest.raises(FileError, match=words):
        list_runs([tmp_path / path])


@pytest.mark.fault("`--overwrite` killed in the middle", "what is then advised can be followed")
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("kept", range(7))
def test_advice_after_an_overwrite_that_was_killed_can_be_followed(tmp_path, monkeypatch, kept, finished):
    folder = finished_run(tmp_path, documented_config())
    if not finished:
        folder.summary.unlink()
        folder.resume_checkpoint.parent.mkdir()
        folder.resume_checkpoint.write_bytes(b"state")
    unlink, calls = Path.unlink, iter(range(100))

    def killed(path: Path, missing_ok: bool = False) -> None:
        if next(calls) == kept:
            raise SystemExit
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with contextlib.suppress(SystemExit):
            folder.make_ready(keep=False)
    try:
        folder.may_start()
    except FileError as error:
        advice = str(error)
        assert "--overwrite" in advice
        if "continue it with --resume" in advice:
            continues = folder.may_start(resume=True)
            assert not continues or folder.config.exists()
        else:
            with pytest.raises(FileError):
                folder.may_start(resume=True)
    folder.may_start(overwrite=True)


def test_a_folder_with_weights_alone_is_a_run_and_one_with_an_empty_checkpoints_folder_is_not(tmp_path):
    (tmp_path / "weights" / "checkpoints").mkdir(parents=True)
    (tmp_path / "weights" / "checkpoints" / "best_model.ckpt").touch()
    (tmp_path / "scans" / "checkpoints").mkdir(parents=True)
    assert is_run_folder(tmp_path / "weights")
    assert not is_run_folder(tmp_path / "scans")
    assert not is_run_folder(tmp_path / "nowhere")
    assert [run.name for run in list_runs([tmp_path])] == ["weights"]
