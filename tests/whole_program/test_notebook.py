"""The cells of docs/first_steps.ipynb, run with the smallest settings, and what its kept outputs may hold."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.paths import ROOT

PATH = ROOT / "docs" / "first_steps.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
SMALLEST = {
    "N_BODIES, VOXEL_MM = 24, 7.0": "N_BODIES, VOXEL_MM = 3, 40.0",
    "SIZE, N_EPOCHS = (40, 32, 72), 10": "SIZE, N_EPOCHS = (16, 16, 32), 1",
}


def test_the_cells_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program = "\n\n".join("".join(cell["source"]) for cell in CODE)
    for line, smallest in SMALLEST.items():
        assert program.count(line) == 1
        program = program.replace(line, smallest)
    names: dict = {}
    exec(compile(program, PATH.name, "exec"), names)
    assert names["report"].exit_code < 2
    assert names["done"].n_failed == 0
    assert len(names["scores"].cases) == 2
    assert (names["WORK"] / "predictions" / "body_001.png").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["first_steps"]
    assert "2 done" in capsys.readouterr().out


def test_the_notebook_was_run_from_top_to_bottom_and_shows_two_pictures():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert PATH.stat().st_size < 300_000


@pytest.mark.parametrize("cell", CODE, ids=lambda cell: cell["id"])
def test_no_output_names_a_folder_of_the_machine_that_ran_it(cell):
    outputs = [{**output, "data": {**output.get("data", {}), "image/png": ""}} for output in cell["outputs"]]
    assert not re.search(r"(?<![\w.:/<])/\w+/\w+", json.dumps(outputs))
