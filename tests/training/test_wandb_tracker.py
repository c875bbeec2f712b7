"""The offline run of Weights & Biases, read back from its own records."""

from __future__ import annotations

import pytest

from pipeline.config.trackers import WandbOptions
from pipeline.training.trackers import Trackers
from pipeline.training.wandb_tracker import WandbTracker
from tests.support.tracked import follow, tracked_run
from tests.support.wandb_files import read_offline_run

SCORES = [0.25, 0.5, None, 0.75]


def test_it_says_where_it_writes_and_takes_names_that_the_server_takes(tmp_path):
    run = tracked_run(tmp_path)
    assert WandbTracker(WandbOptions(), run).place == f"{tmp_path / 'logs' / 'wandb'} (offline)"
    online = WandbTracker(WandbOptions(mode="online", project="a/b#1", entity="team"), run)
    assert online.place == "the server, project team/a-b-1"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_resumed_training_goes_on_in_the_same_run(tmp_path, caplog, is_killed):
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is an optional extra that is not installed here")
    run = tracked_run(tmp_path)
    others = wandb.init(mode="offline", dir=tmp_path, project="somebody's")  # of the program that calls us
    for n_before in (0, 2):
        trackers = Trackers([{"wandb": {"group": "study"}}], run)
        with trackers.closing():
            follow(trackers, SCORES[: n_before + 2], n_before)
        if is_killed and not n_before:
            remembered = run.folder.trackers.read_text()
            run.folder.trackers.write_text(remembered.replace('"is_closed": true', '"is_closed": false'))
    assert wandb.run is others
    others.finish()
    first, second = [
        read_offline_run(path) for path in sorted((tmp_path / "logs" / "wandb").glob("offline-run-*/*.wandb"))
    ]
    assert first.run_id == second.run_id != ""
    assert (first.project, first.exit_code, second.exit_code) == ("spine", 0, 0)
    rows = first.rows + second.rows
    # what a killed process had in hand may be lost, so all epochs are written again
    steps = [0, 1, 0, 1, 2, 3] if is_killed else [0, 1, 2, 3]
    assert [row["trainer/global_step"] for row in rows] == [row["epoch"] for row in rows] == steps
    assert [row["train_loss"] for row in rows] == [2.0 ** (1 - epoch) for epoch in steps]
    assert rows[-1]["val_IoU/=1+1"] == rows[-1]["val_mIoU"] == 0.75
    assert first.config["training.lr"] == second.config["training.lr"] == 1e-4
    assert [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")] == []


@pytest.mark.filterwarnings("ignore")
def test_a_training_online_without_a_login_is_not_asked_for_one(tmp_path, caplog, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases is an optional extra that is not installed here")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    trackers = Trackers([{"wandb": {"mode": "online"}}], tracked_run(tmp_path))
    with trackers.closing():
        follow(trackers, SCORES)
    (named,) = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")]
    assert "tracker wandb fails (PermissionError: no login is known here)" in named
    assert "log in with `wandb login`" in named
