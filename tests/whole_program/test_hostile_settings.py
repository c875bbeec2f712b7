"""Bad settings of every kind, typed as a person would: what is said, the exit code, and that nothing was touched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.cli.main import main
from tests.support import hostile_data, hostile_files, hostile_volumes
from tests.support.hostile import PREDICT, TRAIN, Row, check_answer, table_of
from tests.support.hostile_settings import ROWS


def test_there_are_at_least_150_kinds_of_bad_input() -> None:
    every = [*ROWS, *hostile_data.ROWS, *hostile_volumes.ROWS, *hostile_files.ROWS]
    assert len({row.name for row in every}) == len(every) >= 150


@table_of("bad settings", ROWS)
def test_bad_input_is_named_and_nothing_else_is_touched(
    row: Row, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_answer(row, workspace, capsys)


FOREIGN = """
from pathlib import Path
from torch import nn
Path("fired").touch()
class Net(nn.Sequential):
    def __init__(self, in_channels=1, out_channels=2):
        super().__init__(nn.Conv3d(in_channels, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, out_channels, 1))
"""


@pytest.mark.fault(
    "a config or checkpoint that names a class of a foreign package",
    "one line with path, allow-list and flag; not even imported, unless --trust_config is given",
)
def test_a_foreign_network_trains_and_predicts_only_where_it_is_trusted(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_nets.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(workspace))
    training = [*TRAIN, "--exp_name", "own", "--model.network", '{"_target_": "own_nets.Net"}', "--max_epochs", "1"]
    predicting = ["predict", "logs/own_bs1_lr0.0001_ch2", *PREDICT[2:]]
    assert main(training) == 2
    assert "--trust_config" in capsys.readouterr().err
    assert not Path("fired").exists()
    assert main([*training, "--trust_config"]) == 0
    Path("fired").unlink()
    sys.modules.pop("own_nets")
    assert main(predicting) == 2
    assert "network own_nets.Net" in capsys.readouterr().err
    assert not Path("fired").exists()
    assert main([*predicting, "--trust_config"]) == 0
    assert Path("out/scan.nii.gz").is_file()
