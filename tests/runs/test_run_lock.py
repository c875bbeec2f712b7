"""One training at a time in a run folder, and nothing left behind by one that wrote nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.files.atomic import FileError
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.run_lock import only_training_in
from tests.support.paths import ROOT

HOLDER = """
import sys, time
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.run_lock import only_training_in
with only_training_in(RunFolder(sys.argv[1], "run")):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_training_is_refused_with_the_process_of_the_first_and_may_start_after_its_kill(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "locked\n"
        words = rf"run: process {first.pid} on .* is training there now; wait for it or stop it, or give this run anoth"
        with pytest.raises(FileError, match=words), only_training_in(RunFolder(tmp_path, "run")):
            pass
    finally:
        first.kill()
        first.communicate()
    with only_training_in(RunFolder(tmp_path, "run")):
        assert (tmp_path / "run").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_a_training_wrote_stays(tmp_path):
    folder = RunFolder(tmp_path, "run")
    with only_training_in(folder):
        folder.write_config({"data": {}})
    assert [path.name for path in folder.path.iterdir()] == ["training_config.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileError, match="run: cannot be written"), only_training_in(RunFolder(tmp_path, "run")):
        pass
