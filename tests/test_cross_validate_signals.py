"""A cross-validation that is asked to stop begins no other fold, and says how to go on."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline import cross_validate as command
from pipeline.cli.main import main
from pipeline.compute.signals import Stopped
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.study import StudyFolder
from tests.support.tiny_study import study_command, study_data


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study_data(folder)
    return folder


def test_a_signal_says_how_to_go_on(work, tmp_path, monkeypatch, capsys):
    def stopped(*arguments, **named):
        raise Stopped("SIGTERM", "go on with --resume")

    monkeypatch.setattr(command, "train", stopped)
    assert main(study_command(work, "stopped", "--log_dir", str(tmp_path))) == 143
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "bodyseg: stopped by SIGTERM; 0 of 2 folds are finished; the same command goes on with fold 0"
    # No fold was begun, so that the settings may still be corrected.
    assert main(study_command(work, "stopped", lr="0.1", log_dir=str(tmp_path))) == 143
    assert StudyFolder(tmp_path, "stopped").read_record().settings["training"]["lr"] == 0.1


@pytest.mark.fault("SIGTERM while a fold of a cross-validation ends", "the next fold is not begun; exit 143")
def test_a_signal_as_a_fold_ends_lets_no_other_begin(work, tmp_path, monkeypatch, capsys):
    write = RunFolder.write_summary

    def asked_to_stop(folder, *arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        write(folder, *arguments, **named)

    monkeypatch.setattr(RunFolder, "write_summary", asked_to_stop)
    assert main(study_command(work, "asked", "--log_dir", str(tmp_path), max_epochs="1")) == 143
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "bodyseg: stopped by SIGTERM; 1 of 2 folds are finished; the same command goes on"
    assert [folder.name[:6] for folder in (tmp_path / "asked").iterdir() if folder.is_dir()] == ["fold_0"]
