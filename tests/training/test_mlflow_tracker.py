"""The run in MLflow, read back by MLflow's own client."""

from __future__ import annotations

import logging

import pytest

from pipeline.training.mlflow_tracker import _metric_name
from pipeline.training.trackers import Trackers
from tests.support.tracked import CLASS_NAMES, follow, tracked_run

SCORES = [0.25, 0.5, None, 0.75]


def client_of(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is an optional extra that is not installed here")
    pytest.importorskip("sqlalchemy", reason="MLflow's local database needs sqlalchemy, which is not installed here")
    return mlflow.MlflowClient(f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")


def test_names_of_metrics_are_those_that_mlflow_takes():
    assert _metric_name("val_mIoU") == "val_mIoU"
    assert _metric_name("val_IoU/lung.upper left-1") == "val_IoU/lung.upper left-1"
    assert _metric_name("val_IoU/..") == _metric_name("val_IoU/") == "val_IoU/_"
    assert _metric_name("val_IoU/a/../b\x1b") == "val_IoU/a_.._b_"
    assert len(_metric_name("val_IoU/" + "a" * 1000)) == 200


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_goes_on_in_the_same_run(tmp_path, caplog):
    client = client_of(tmp_path)
    run = tracked_run(tmp_path)
    options = {"mlflow": {"tags": {"site": "north"}}}
    for n_before, ending, status in ((0, KeyboardInterrupt(), "KILLED"), (2, None, "FINISHED")):
        trackers = Trackers([options], run)
        try:
            with trackers.closing():
                follow(trackers, SCORES[: n_before + 2], n_before)
                if ending:
                    raise ending
        except KeyboardInterrupt:
            pass
        (experiment,) = [found for found in client.search_experiments() if found.name == "spine"]
        (found,) = client.search_runs([experiment.experiment_id])
        assert (found.info.run_name, found.info.status, found.data.tags["site"]) == ("run", status, "north")
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 2.0), (1, 1.0), (2, 0.5), (3, 0.25)]
    history = client.get_metric_history(found.info.run_id, "val_mIoU")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.25), (1, 0.5), (3, 0.75)]
    assert sum(name.startswith("val_IoU/") for name in found.data.metrics) == len(CLASS_NAMES) - 1
    assert found.data.params["training.lr"] == "0.0001"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_gone_is_begun_again_with_all_epochs(tmp_path):
    client = client_of(tmp_path)
    run = tracked_run(tmp_path)
    follow(Trackers(["mlflow"], run), SCORES[:2])
    (first,) = client.search_runs(["1"])
    client.delete_run(first.info.run_id)
    follow(Trackers(["mlflow"], run), SCORES, n_before=2)
    (second,) = client.search_runs(["1"])
    assert [metric.step for metric in client.get_metric_history(second.info.run_id, "train_loss")] == [0, 1, 2, 3]
    run.folder.trackers.write_text(run.folder.trackers.read_text().replace(second.info.run_id, "0" * 32))
    follow(Trackers(["mlflow"], run), SCORES, n_before=4)
    assert len(client.search_runs(["1"])) == 2


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_that_mlflow_has_is_not_written_again(tmp_path):
    """As after a kill between the epoch and the note of it, or from a server that took it and answered too late."""
    client = client_of(tmp_path)
    run = tracked_run(tmp_path)
    follow(Trackers(["mlflow"], run), SCORES[:2])
    run.folder.trackers.write_text(run.folder.trackers.read_text().replace('"epochs": 2', '"epochs": 1'))
    follow(Trackers(["mlflow"], run), SCORES, n_before=2)
    (found,) = client.search_runs(["1"])
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "train_loss")] == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_not_there_is_named_within_seconds(tmp_path, caplog):
    client_of(tmp_path)
    trackers = Trackers([{"mlflow": {"tracking_uri": "http://127.0.0.1:9"}}], tracked_run(tmp_path))
    with trackers.closing():
        follow(trackers, SCORES)
    (named,) = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")]
    assert "see whether http://127.0.0.1:9 can be reached" in named
