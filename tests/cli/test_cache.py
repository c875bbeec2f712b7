"""`bodyseg cache`: what it holds, in GB, and pruning that is never the whole folder by accident."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline.cache.entry import encode, write_entry
from pipeline.cache.folder import open_folder
from pipeline.cli.main import main


@pytest.fixture
def folder(tmp_path):
    open_folder(tmp_path / "cache")
    for n in range(3):
        image = torch.from_numpy(np.random.default_rng(n).random((1, 8, 8, 8), np.float32))
        name = f"{'a' * 16}-{n:032x}"
        entry, payload = encode({"image": image}, name=name, case=f"case_{n}", chain={"size": 8}, n_classes=2)
        write_entry(tmp_path / "cache" / f"{name}.bodycase", entry, payload)
    return tmp_path / "cache"


def test_info_says_cases_size_and_chain(folder, capsys):
    assert main(["cache", "info", "--cache_dir", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "3 cases, 0.0 MB;" in text
    assert "free on its disk" in text
    assert "{'size': 8}" in text
    assert main(["cache", "info", "--cache_dir", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_entries"] == 3


def test_pruning_needs_a_size_and_keeps_what_fits_it(folder, capsys):
    size = sum(path.stat().st_size for path in folder.glob("*.bodycase"))
    assert main(["cache", "prune", "--cache_dir", str(folder)]) == 2
    assert "--max_gb" in capsys.readouterr().err
    assert main(["cache", "prune", "--cache_dir", str(folder), "--max_gb", str(size / 3 / 1e9)]) == 0
    assert len(list(folder.glob("*.bodycase"))) == 1
    assert main(["cache", "prune", "--cache_dir", str(folder), "--max_gb", "0"]) == 0
    assert list(folder.glob("*.bodycase")) == []
    assert "removed 1 files" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["info"], ["prune", "--max_gb", "0"]])
def test_a_folder_that_is_not_there_is_not_called_one_of_others(tmp_path, capsys, command):
    assert main(["cache", *command, "--cache_dir", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none: there is no such folder; name the cache folder" in line
