"""The folder of a cross-validation: its record is read as it was written, and nothing else is taken for one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.files.atomic import FileError
from pipeline.runs.history import TrainingLog
from pipeline.runs.study import StudyFolder, StudyRecord, is_study_folder, metrics_at, runs_at

FOLDS = {k: {"train": ("a", "b"), "val": (name,), "test": ()} for k, name in ((0, "c"), (2, "d"))}


@pytest.fixture
def study(tmp_path):
    folder = StudyFolder(tmp_path, "study")
    folder.path.mkdir()
    record = StudyRecord({"data": {"folds": 2}}, "2 folds", "ab12", FOLDS, {"window": [-100, 200]}, ("a note",))
    folder.write_record(record)
    return folder


def test_a_record_is_read_as_it_was_written(study):
    record = study.read_record()
    assert record == StudyRecord(
        {"data": {"folds": 2}}, "2 folds", "ab12", FOLDS, {"window": [-100, 200]}, ("a note",), record.created
    )
    assert record.cases == {"a", "b", "c", "d"}
    assert StudyFolder.at(study.path).record == study.record


def test_the_runs_of_a_record_are_those_it_names(study, tmp_path):
    before = study.read_record()
    assert study.runs_of(before)[2].path == study.path / "fold_2"  # as earlier versions called it
    study.write_record(replace(before, run_names={0: "fold_0_bs2", 2: "fold_2_bs2"}))
    record = study.read_record()
    assert [run.path.name for run in study.runs_of(record).values()] == ["fold_0_bs2", "fold_2_bs2"]
    study.write_record(replace(record, run_names={0: "fold_0_bs2", 2: "../fold_2"}))
    with pytest.raises(FileError, match="holds a slash"):
        study.runs_of(study.read_record())
    study.write_record(replace(record, run_names={0: "fold_0_bs2"}))
    with pytest.raises(FileError, match="no '2'"):
        study.read_record()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("cross_validation", {"source": "x", "hash": "y"}, "no 'folds'"),
        ("cross_validation", {"source": "x", "hash": "y", "folds": {}}, "with 0 folds"),
        ("cross_validation", {"source": "x", "hash": "y", "folds": {"0": ["a"]}}, "study.json: expected the record"),
        ("settings", ["a"], "study.json: expected the record"),
        ("format", 9, "format 9"),
        ("shared", {"window": 5}, "shared 'window': 5"),
        ("shared", {"mean_std": [1, 10**400]}, "too large"),
        ("shared", {"batch_size": [1, 2]}, "shared 'batch_size'"),
    ],
)
def test_another_document_is_refused(study, key, value, words):
    study.record.write_text(json.dumps(json.loads(study.record.read_text()) | {key: value}))
    with pytest.raises(FileError, match=words):
        study.read_record()


def test_a_study_stands_for_its_runs_once_they_have_ended(study, tmp_path):
    assert is_study_folder(study.path)
    log = TrainingLog()
    for number in (0, 2):
        with pytest.raises(FileError, match=r"study: expected 2 trained folds, found that fold .* is not finished"):
            runs_at(study.path)
        run = study.runs_of(study.read_record())[number]
        run.make_ready(keep=False)
        if number:
            run.write_summary("interrupted", log, reason="stopped by SIGTERM")
            assert not run.has_ended
            run.write_summary("interrupted", log, reason="val_mIoU has not risen for 3 epochs", stopped_early=True)
        else:
            run.write_summary("completed", log)
        assert run.has_ended
    assert runs_at(study.path) == [study.path / "fold_0", study.path / "fold_2"]
    assert runs_at(tmp_path / "run") == [tmp_path / "run"]
    with pytest.raises(FileError, match=r"metrics.json: expected the scores of a cross-validation, found none; finish"):
        metrics_at(study.path)
    study.metrics.touch()
    assert metrics_at(study.path) == study.metrics
    assert metrics_at(tmp_path / "metrics.json") == tmp_path / "metrics.json"


def test_a_name_that_would_leave_the_log_folder_is_refused(tmp_path):
    with pytest.raises(FileError, match='study" holds a slash'):
        StudyFolder(tmp_path, "../study")
