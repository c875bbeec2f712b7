"""The CSV file of a run, read back by pandas."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

import pandas as pd
import pytest

from pipeline.training.csv_tracker import lines_of
from pipeline.training.trackers import Trackers
from tests.support.paths import ROOT
from tests.support.small_disk import small_disk
from tests.support.tracked import follow, tracked_run

SCORES = [0.25, 0.5, None, 0.75]


def table_of(run):
    return pd.read_csv(run.folder.epoch_table)


def test_a_line_an_epoch_with_names_that_steer_no_terminal(tmp_path):
    run = tracked_run(tmp_path)
    follow(Trackers(["csv"], run), SCORES)
    table = table_of(run)
    assert table["epoch"].tolist() == table["step"].tolist() == [0, 1, 2, 3]
    assert table["train_loss"].tolist() == [2.0, 1.0, 0.5, 0.25]
    assert table["val_mIoU"].isna().tolist() == [False, False, True, False]
    assert table["best_val_mIoU"].tolist() == [0.25, 0.5, 0.5, 0.75]
    for name in ("liver", "=1+1", "a\N{REPLACEMENT CHARACTER}[2J", "Milz ü", "Milz ö", ".."):
        assert table[f"val_IoU/{name}"].tolist()[0] == 0.25
    assert not (run.folder.path / "trackers.json").exists()


@pytest.mark.parametrize("damage", ["none", "half a line", "line 1 gone", "gone"])
def test_a_resumed_training_goes_on_in_the_file_and_adds_what_a_kill_took_from_it(tmp_path, damage):
    run = tracked_run(tmp_path)
    follow(Trackers(["csv"], run), SCORES[:2])
    text = run.folder.epoch_table.read_text()
    lines = text.splitlines(keepends=True)
    damaged = {"none": text, "half a line": text[:-9], "line 1 gone": lines[0] + lines[2], "gone": ""}[damage]
    run.folder.epoch_table.write_text(damaged)
    follow(Trackers(["csv"], run), SCORES, n_before=2)
    table = table_of(run)
    assert table["step"].tolist() == [0, 1, 2, 3]
    assert table["train_loss"].tolist() == [2.0, 1.0, 0.5, 0.25]
    kept = {"none": 0.25, "half a line": 0.25}.get(damage)
    assert table["val_IoU/Milz ü"].fillna(-1).tolist()[0] == (-1 if kept is None else kept)
    follow(Trackers(["csv"], run), SCORES[:1])  # another training in the folder
    assert table_of(run)["step"].tolist() == [0]


def test_lines_of_a_file_of_something_else_are_none(tmp_path):
    path = tmp_path / "metrics.csv"
    assert lines_of(path) == []
    for text in ("", "a,b\n1,2\n", "step\nx\n", '"', "step,a\n0\n"):
        path.write_text(text)
        assert lines_of(path) == []


@pytest.mark.fault("a full disk under a tracker", "named once; the lines that are missing follow when there is space")
def test_a_full_disk_is_named_once_and_caught_up_with(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("pipeline.training.trackers.RETRY_S", 0.0)
    run = tracked_run(tmp_path)
    with small_disk(run.folder.epoch_table.parent, "16k") as disk:
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
        trackers = Trackers(["csv"], run)
        follow(trackers, SCORES[:2])
        (named,) = caplog.messages
        assert "metrics.csv: cannot be written (No space left on device)" in named
        assert "training_log.json has every number; free space or make its folder writable" in named
        ballast.unlink()
        follow(trackers, SCORES, n_before=2)
        assert caplog.messages[1:] == ["tracker csv works again and has all epochs"]
        table = table_of(run)
    assert table["train_loss"].tolist() == [2.0, 1.0, 0.5, 0.25]
    assert table["val_IoU/Milz ü"].fillna(-1).tolist() == [0.25, 0.5, -1, 0.75]


RESUMED = """
import os, signal, sys
from pathlib import Path
from pipeline.training.trackers import Trackers
from tests.support.tracked import follow, tracked_run

def end(event, details):
    if event == "os.rename" and "metrics.csv" in str(details[0]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(end)
run = tracked_run(Path(sys.argv[1]))
follow(Trackers(["csv"], run), [0.25, 0.5], n_before=2)
"""
"""A training that is resumed, and killed before a file is in the place of metrics.csv."""


@pytest.mark.fault(
    "SIGKILL or a full disk while `--resume` opens metrics.csv", "it keeps all that it had, classes included"
)
def test_a_resumed_training_that_is_killed_or_finds_a_full_disk_keeps_the_table(tmp_path):
    run = tracked_run(tmp_path)
    with small_disk(run.folder.epoch_table.parent, "16k") as disk:
        follow(Trackers(["csv"], run), SCORES[:2])
        before = run.folder.epoch_table.read_bytes()
        killed = subprocess.run([sys.executable, "-c", RESUMED, str(tmp_path)], cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert run.folder.epoch_table.read_bytes() == before
        run.folder.make_ready(keep=True)
        assert [path.name for path in disk.iterdir()] == ["metrics.csv"]  # the half of a killed process is gone
        with (disk / "ballast").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
        follow(Trackers(["csv"], run), SCORES[:2], n_before=2)
        assert run.folder.epoch_table.read_bytes() == before
        (disk / "ballast").unlink()
        follow(Trackers(["csv"], run), SCORES, n_before=2)
        assert table_of(run)["val_IoU/Milz ü"].fillna(-1).tolist() == [0.25, 0.5, -1, 0.75]


def test_the_header_has_all_names_before_they_have_a_number(tmp_path):
    run = tracked_run(tmp_path)
    follow(Trackers(["csv"], run), [None])
    columns = set(table_of(run))
    follow(Trackers(["csv"], run), [None, 0.5], n_before=1)
    assert set(table_of(run)) == columns
    assert table_of(run)["val_IoU/liver"].fillna(-1).tolist() == [-1, 0.5]
