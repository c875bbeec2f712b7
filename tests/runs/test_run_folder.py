"""The run folder against its contract's own checker and schemas, and against kills, full disks and damaged files."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.files.atomic import FileError, write_atomically
from pipeline.files.json_files import read_json, write_json
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder, distinct_names, list_runs, run_name
from tests.support.finished_run import append, documented_config, finished_run, start
from tests.support.paths import ROOT

PARTS = {"name": "body_unet", "batch_size": 2, "lr": 1e-4, "base_channels": 32}
PLAIN = PARTS | {"weight_alpha": None, "data_aug": False, "light": False}


def checked(spec: Path, folder: RunFolder) -> str:
    command = [sys.executable, str(spec / "check_run.py"), str(folder.path), "--no-torch"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


# The contract --------------------------------------------------------------------------------------------------------


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
        name = run_name(**PARTS | {"lr": lr}, weight_alpha=alpha, data_aug=augmented, light=light)
        assert name == checker.expected_name(json.loads(json.dumps(config)))


def test_the_log_is_valid_before_and_after_every_epoch_whatever_the_values(tmp_path, shared_spec):
    schema = json.loads((shared_spec / "training_log.schema.json").read_text())
    folder, log = RunFolder(tmp_path, "run"), TrainingLog()
    start(folder)
    for miou in (math.nan, np.float32(0.25), torch.tensor(0.5), None, -math.inf, np.float64("nan")):
        folder.write_log(log)
        jsonschema.Draft202012Validator(schema).validate(json.loads(folder.log.read_text(), parse_constant=pytest.fail))
        append(log, miou, train_loss=math.inf, val_loss=math.nan, per_class_iou={"liver": miou})
    assert log.history["val_mIoU"] == [None, 0.25, 0.5, None, None, None]
    assert log.per_class_iou == {"liver": 0.5}


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


def test_paths_stand_in_the_summary_as_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = finished_run(Path("logs"), documented_config())
    assert folder.read_summary()["best_checkpoint"] == f"logs/{folder.name}/checkpoints/best_model.ckpt"


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", "..", ".hidden", "", "  ", "a\nb", "a\x1b[2Jb", "a\u202eb", " a", "a\ud800b", "é" * 130],
)
def test_a_name_that_is_no_plain_folder_name_is_refused_in_one_line(name, tmp_path):
    for refused in (lambda: run_name(**PLAIN | {"name": name}), lambda: RunFolder(tmp_path, name)):
        with pytest.raises(FileError, match="choose a plain one") as error:
            refused()
        assert str(error.value).isprintable()
    assert not list(tmp_path.iterdir())


# Whole files ---------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
folder, log = RunFolder(sys.argv[1], "run"), TrainingLog()
for epoch in range(int(sys.argv[2])):
    log.append_epoch(epoch, train_loss=1 / 3, train_accuracy=None, val_loss=2.0, val_mIoU=epoch / 7, learning_rate=1e-4)
    folder.write_log(log)
    print(epoch, flush=True)
"""


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.files.atomic import write_atomically
def die(stream):
    stream.write(b"half of the new weig")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), die)
"""


def writer(log_dir: Path, n_epochs: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(log_dir), str(n_epochs)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_reader_never_meets_a_half_written_log(tmp_path):
    folder = RunFolder(tmp_path, "run")
    start(folder)
    folder.write_log(TrainingLog())
    lengths = []
    with writer(tmp_path, 500) as process:
        while process.poll() is None:
            history = json.loads(folder.log.read_bytes())["training_history"]
            assert len({len(values) for values in history.values()}) == 1
            lengths.append(len(history["epoch"]))
    assert process.returncode == 0
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 20
    assert len(folder.read_log()) == 500


def test_a_log_is_whole_after_a_kill_at_any_moment(tmp_path):
    folder, moments = RunFolder(tmp_path, "run"), random.Random(0)
    start(folder)
    for _ in range(5):
        with writer(tmp_path, 10_000) as process:
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
            said = [int(line) for line in process.stdout.read().split()]
        assert len(folder.read_log()) >= (said[-1] + 1 if said else 1)


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


@pytest.mark.parametrize(
    "write",
    [
        lambda stream: stream.write(bytes(100_000)),
        lambda stream: torch.save({"w": torch.zeros(100_000)}, stream),  # hides the disk's error under one of its own
    ],
)
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, write):
    path = tmp_path / "best_model.ckpt"
    path.write_bytes(b"good")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(FileError, match=r"best_model\.ckpt: cannot be written \(File too large\); free space"):
            write_atomically(path, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"good"]


def test_a_folder_without_permission_is_named_and_the_old_file_stays(tmp_path):
    folder = RunFolder(tmp_path, "run")
    start(folder)
    folder.write_log(TrainingLog())
    before = folder.log.read_bytes()
    user = os.geteuid()
    folder.path.chmod(0o555)
    if user == 0:
        os.seteuid(65534)  # root writes everywhere
    try:
        with pytest.raises(FileError, match=r"training_log\.json: cannot be written \(Permission denied\); make the"):
            folder.write_log(TrainingLog())
    finally:
        os.seteuid(user)
        folder.path.chmod(0o755)
    assert folder.log.read_bytes() == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_mid_write_passes_through_and_leaves_nothing(tmp_path, error):
    def fail(stream):
        stream.write(b"half")
        raise error

    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(error):
        write_atomically(path, fail)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_are_as_readable_as_the_umask_allows(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == mode


def test_json_holds_what_python_held_except_for_the_undefined(tmp_path):
    path = tmp_path / "x.json"
    odd = os.fsdecode(b"caf\xe9/Wirbels\xc3\xa4ule")  # a file name in an old encoding, which no UTF-8 can say
    write_json(
        path, {"a": (1, 2.5, np.int64(3), np.float32(0.5)), "b": [math.nan, math.inf], "c": Path(odd), "d": True}
    )
    assert read_json(path) == {"a": [1, 2.5, 3, 0.5], "b": [None, None], "c": odd, "d": True}
    assert "Wirbelsäule" in path.read_text(encoding="utf-8")


# History -------------------------------------------------------------------------------------------------------------


def test_the_best_epoch_is_the_first_highest_as_pandas_finds_it():
    draw = random.Random(1)
    for _ in range(200):
        log, best_when_appended = TrainingLog(), None
        for epoch in range(draw.randrange(1, 12)):
            if append(log, draw.choice([None, math.nan, 0.0, 0.25, 0.5])):
                best_when_appended = epoch
        scores = pd.Series(log.history["val_mIoU"], dtype=float)
        expected = None if scores.isna().all() else scores.idxmax()
        assert log.best_epoch == best_when_appended == expected


def test_a_history_goes_on_after_a_round_trip_through_json():
    log = TrainingLog()
    append(log, 0.5, per_class_iou={"liver": 0.5, "spleen": math.nan})
    append(log, None)
    again = TrainingLog.from_dict(json.loads(json.dumps(log.to_dict(), allow_nan=False)))
    assert again == log
    assert not append(again, 0.5)
    assert again.history["epoch"] == [0, 1, 2]
    assert len(log) == 2  # nothing is shared


@pytest.mark.parametrize(("epoch", "rate"), [(0, 1e-4), (2, 1e-4), (1, math.nan)])
def test_an_epoch_that_does_not_fit_is_refused_and_nothing_is_appended(epoch, rate):
    log = TrainingLog()
    append(log, 0.1)
    with pytest.raises(FileError, match="expected"):
        log.append_epoch(epoch, train_loss=1, train_accuracy=1, val_loss=1, val_mIoU=1, learning_rate=rate)
    assert {len(values) for values in log.history.values()} == {1}


# Starting, resuming, overwriting -------------------------------------------------------------------------------------


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


# Reading damaged files -----------------------------------------------------------------------------------------------

SIX = {"epoch": [0], "train_loss": [1], "train_accuracy": [1], "val_loss": [1], "val_mIoU": [1], "learning_rate": [1]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not valid JSON"),
        ('{"training_history": {', "not valid JSON"),
        ('{"training_history": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff\xfe", "not valid JSON"),
        ("[]", "expected a JSON object, found a list"),
        ("{}", "training_history: expected six arrays, found None"),
        ({"training_history": SIX | {"val_loss": 3}}, "val_loss: expected an array, found 3"),
        ({"training_history": {"epoch": []}}, "train_loss: expected an array, found None"),
        ({"training_history": SIX | {"val_loss": [1, 2]}}, "expected arrays of equal length"),
        ({"training_history": SIX | {"epoch": [1]}}, r"expected 0, 1, 2, …, found \[1\]"),
        ({"training_history": SIX | {"val_mIoU": ["0.5"]}}, r"val_mIoU\[0\]: expected a number, found '0.5'"),
        ({"training_history": SIX | {"val_mIoU": [10**400]}}, r"val_mIoU\[0\]: expected a number"),
        ({"training_history": SIX | {"learning_rate": [None]}}, r"learning_rate\[0\]: expected a number"),
        (json.dumps({"training_history": SIX}).replace('"val_loss": [1]', '"val_loss": [1e999]'), "expected a number"),
    ],
)
def test_a_damaged_log_is_named_with_what_is_wrong(tmp_path, content, words):
    folder = RunFolder(tmp_path, "run")
    start(folder)
    text = content if isinstance(content, str) else json.dumps(content)
    folder.log.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=words) as error:
        folder.read_log()
    assert str(error.value).startswith(str(folder.log))
    assert "restore" in str(error.value)
    assert str(error.value).isprintable()


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


# Finding runs --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("path", "words"), [("none", "no such folder"), ("", "no training_config.json in it")])
def test_a_path_without_a_run_is_named(tmp_path, path, words):
    with pytest.raises(FileError, match=words):
        list_runs([tmp_path / path])
