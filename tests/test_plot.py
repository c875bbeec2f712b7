"""The command "plot": where the picture is written, and what cannot be drawn."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli.main import main
from pipeline.files.atomic import FileError
from pipeline.plot import FORMATS, plot
from pipeline.runs.run_folder import RunFolder
from tests.support.paths import ROOT
from tests.support.training_logs import a_log


def a_run(log_dir: Path, name: str, n_epochs: int = 5) -> Path:
    folder = RunFolder(log_dir, name)
    folder.make_ready(keep=False)
    folder.write_log(a_log(n_epochs))
    return folder.path


def test_one_run_is_drawn_into_its_own_folder(tmp_path):
    run = a_run(tmp_path, "run")
    assert plot([run]) == run / "training_curves.png"
    with Image.open(run / "training_curves.png") as picture:
        assert picture.size[0] > 1000
    assert not list(run.glob(".*"))


def test_several_runs_are_drawn_into_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        a_run(tmp_path / "logs", name)
    assert plot([Path("logs")]) == Path("training_curves.png")
    with Image.open("training_curves.png") as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize(("name", "beginning"), [("x.PNG", b"\x89PNG"), ("x.pdf", b"%PDF"), ("x.svg", b"<?xml")])
def test_the_files_ending_decides_its_format(tmp_path, name, beginning):
    run = a_run(tmp_path, "run")
    assert plot([run], tmp_path / name).read_bytes().startswith(beginning)


def test_a_folder_as_output_takes_the_picture(tmp_path):
    run = a_run(tmp_path, "run")
    assert plot([run], str(tmp_path)) == tmp_path / "training_curves.png"


def test_what_cannot_be_drawn_is_said_in_a_sentence(tmp_path):
    run, empty = a_run(tmp_path, "run"), a_run(tmp_path, "empty", n_epochs=0)
    with pytest.raises(FileError, match=r'x\.bmp: expected a file ending in .png, .pdf, .svg, found ".bmp"'):
        plot([run], tmp_path / "x.bmp")
    with pytest.raises(FileError, match=r"empty/training_log\.json: expected a finished epoch to draw, found none"):
        plot([empty])
    with pytest.raises(FileError, match="cannot be written"):
        plot([run], tmp_path / "nowhere" / "x.png")
    (run / "training_log.json").write_text("{")
    with pytest.raises(FileError, match="not valid JSON"):
        plot([run])


def test_the_help_names_every_format_that_is_written(capsys):
    assert main(["plot", "--help"]) == 0
    assert set(re.findall(r"\.([a-z]+)", capsys.readouterr().out.partition("--output FILE")[2])) == set(FORMATS)


def test_pyplot_and_its_global_state_stay_out(tmp_path):
    code = (
        "import sys; from pipeline.plot import plot; plot(sys.argv[1:]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(a_run(tmp_path, "run"))], cwd=ROOT, check=True)
