"""Trackers that fail at any moment, beside trainings that must not notice."""

from __future__ import annotations

import importlib.util
import json
import signal

import pandas as pd
import pytest

from pipeline import train as train_module
from pipeline.config.settings import ConfigError
from pipeline.train import train as run_training
from pipeline.training import trackers as module
from pipeline.training.csv_tracker import CsvTracker
from pipeline.training.tracked_run import Remembered
from pipeline.training.trackers import Trackers
from tests.support.tiny_training import (
    EPOCHS,
    WHOLE,
    differences,
    ended,
    resumed,
    settings_of,
    strict_json,
    train,
)
from tests.support.tracked import follow, tracked_run

SCORES = [0.25, 0.5, None, 0.75]


class Broken:
    """A tracker whose methods end as the test says, or else remember what they were told."""

    place, remedy, run_id = "a server", "see whether it runs", "id-1"

    def __init__(self, *moments: str, error: BaseException | None = None) -> None:
        self.moments = list(moments)
        self.error = error or RuntimeError("gone\x1b[2J\nfor good")
        self.told: list[object] = []
        self.before: Remembered | None = None

    def _pass(self, moment: str, told: object = None) -> None:
        if moment in self.moments:
            raise self.error
        self.told.append(moment if told is None else told)

    def open(self, run, settings, before, n_epochs):
        self.before = before
        self._pass("open")
        return min(before.epochs, n_epochs) if before else 0

    def write(self, epoch, numbers):
        self._pass("write", (epoch, numbers.get("val_mIoU")))

    def close(self, ending):
        self._pass("close", ending)


@pytest.fixture
def put(monkeypatch):
    """Put trackers in the place of csv, mlflow and wandb, in this order."""

    def put(*found):
        makers = list(found)

        def make(options, run):
            return makers.pop(0)(options, run)

        for name in module.TRACKERS:
            monkeypatch.setitem(module.TRACKERS, name, make)
        monkeypatch.setattr(train_module, "refuse_missing", lambda entries: None)

    return put


@pytest.mark.fault(
    "a tracker that raises when it is opened, when it takes an epoch, or when it is closed",
    "named once, with what to do; the training goes on, bit for bit the same",
)
def test_no_tracker_changes_a_training_whenever_it_fails(work, put, caplog, monkeypatch):
    write = CsvTracker.write

    def fail_later(tracker, epoch, numbers):
        if epoch == 1:
            raise MemoryError("no more")
        write(tracker, epoch, numbers)

    monkeypatch.setattr(CsvTracker, "write", fail_later)
    server, closing = Broken("open", error=SystemExit(3)), Broken("close")
    put(CsvTracker, lambda *_: server, lambda *_: closing)
    config, run = settings_of(work, "hindered", max_epochs=EPOCHS, **{"experiment.logger": "csv mlflow wandb"})
    run_training(config)
    assert differences(work / "logs" / WHOLE, run) == []
    named = [message.partition("; the training goes on without it")[0] for message in caplog.messages]
    assert named == [
        "tracker mlflow fails (SystemExit: 3)",
        "tracker csv fails (MemoryError: no more)",
        "tracker wandb fails (RuntimeError: gone\N{REPLACEMENT CHARACTER}[2J for good)",
    ]
    assert closing.told[1:] == [
        (epoch, score)
        for epoch, score in enumerate(strict_json(run / "training_log.json")["training_history"]["val_mIoU"])
    ]


@pytest.mark.fault(
    "SIGKILL of a training with trackers, then `--resume`", "the tracker's run goes on; no epoch is missing or twice"
)
def test_a_killed_training_goes_on_in_its_table(work):
    process, run, output = train(work, "followed", pause=2, **{"experiment.logger": "csv"})
    process.kill()
    ended(process, run, output, code=-signal.SIGKILL)
    assert resumed(work, "followed", **{"experiment.logger": "csv"}) == []
    table, history = (
        pd.read_csv(run / "csv" / "metrics.csv"),
        strict_json(run / "training_log.json")["training_history"],
    )
    for name in ("epoch", "train_loss", "train_accuracy", "val_loss", "val_mIoU", "learning_rate"):
        assert table[name].tolist() == history[name]


def test_a_tracker_that_works_again_gets_what_it_has_missed(tmp_path, put, caplog, monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    server = Broken("write")
    put(lambda *_: server)
    trackers = Trackers(["mlflow"], tracked_run(tmp_path))
    with trackers.closing():
        follow(trackers, SCORES[:2])
        server.moments.clear()
        follow(trackers, SCORES, n_before=2)
    written = [told for told in server.told if isinstance(told, tuple)]
    assert written == list(enumerate(SCORES))
    assert server.told[-1] == "completed"
    assert [message.split("(")[0].strip() for message in caplog.messages] == [
        "tracker mlflow fails",
        "tracker mlflow works again and has all epochs",
    ]


def test_a_tracker_that_failed_is_left_alone_for_a_while(tmp_path, put):
    server = Broken("write")
    put(lambda *_: server)
    trackers = Trackers(["mlflow"], tracked_run(tmp_path))
    with trackers.closing():
        follow(trackers, SCORES)
    assert server.told == ["open"]  # the first epoch failed; nothing was tried in the milliseconds after it


@pytest.mark.parametrize(
    ("raised", "ending"), [(None, "completed"), (KeyboardInterrupt(), "interrupted"), (OSError(), "failed")]
)
def test_the_run_in_a_tracker_is_remembered_and_told_how_the_training_ended(tmp_path, put, raised, ending):
    run, server = tracked_run(tmp_path), Broken()
    put(lambda *_: server, lambda *_: server)

    def train_two():
        trackers = Trackers(["mlflow"], run)
        with trackers.closing():
            follow(trackers, SCORES[:2])
            if raised:
                raise raised

    if raised:
        with pytest.raises(type(raised)):
            train_two()
    else:
        train_two()
    assert server.told[-1] == ending
    assert json.loads(run.folder.trackers.read_text()) == {
        "mlflow": {"run": "id-1", "place": "a server", "epochs": 2, "is_closed": True}
    }
    server.told.clear()
    follow(Trackers(["mlflow"], run), SCORES, n_before=2)
    assert server.before == Remembered("id-1", "a server", 2, is_closed=True)
    assert server.told == ["open", (2, None), (3, 0.75)]


def test_a_damaged_memory_of_trackers_begins_a_new_run(tmp_path, put, caplog):
    run, server = tracked_run(tmp_path), Broken()
    put(*[lambda *_: server] * 3)
    for text in ("{", '{"mlflow": 3}', '{"mlflow": {"run": "x", "place": "y", "epochs": "many", "is_closed": true}}'):
        run.folder.trackers.write_text(text)
        follow(Trackers(["mlflow"], run), SCORES, n_before=3)
        assert server.before is None
        assert "trackers.json: is damaged (" in caplog.messages[-1]
    assert server.told[-4:] == list(enumerate([0.25, 0.5, None, 0.75]))


@pytest.mark.fault(
    "a tracker that is not installed", "one line before anything is read that says what to install, exit 2"
)
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_read(work, monkeypatch):
    find = importlib.util.find_spec
    absent = ("mlflow", "wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    for name in absent:
        config, run = settings_of(work, "absent", dataset_root=str(work / "nowhere"), **{"experiment.logger": name})
        with pytest.raises(ConfigError, match=rf"experiment.logger: {name} is not installed .*pip install {name}\)"):
            run_training(config)
        assert not run.exists()


def test_a_folder_that_a_tracker_left_in_the_working_directory_is_no_installation(tmp_path, monkeypatch):
    (tmp_path / "left_by_wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("left_by_wandb") is not None
    assert not module._is_installed("left_by_wandb")
    assert module._is_installed("pytorch_lightning")


def test_a_tracker_that_was_left_out_once_is_found_again(tmp_path, put):
    run = tracked_run(tmp_path)
    again = Broken()
    put(lambda *_: Broken(), lambda *_: Broken(), lambda *_: Broken(), lambda *_: Broken(), lambda *_: again)
    for names, n in ((["mlflow", "wandb"], 1), (["mlflow"], 2), (["mlflow", "wandb"], 3)):
        trackers = Trackers(names, run)
        with trackers.closing():
            follow(trackers, SCORES[:n], n_before=n - 1)
    assert (again.before.run, again.before.epochs) == ("id-1", 1)
