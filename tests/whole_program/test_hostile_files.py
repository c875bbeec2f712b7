"""Bad checkpoints, run files, predictions and caches of every kind; nothing in them is executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.cache.entry import DamagedEntryError, read_entry
from pipeline.cli.main import main
from tests.support.hostile import TRAIN, Bomb, Row, check_answer, contents, table_of
from tests.support.hostile_files import ROWS, checkpoint


@table_of("bad checkpoints, run files and predictions", ROWS)
def test_bad_input_is_named_and_nothing_else_is_touched(
    row: Row, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_answer(row, workspace, capsys)


@pytest.mark.fault(
    "pickle bombs in the place of cached cases", "not executed; the cases are prepared again, exit code 0"
)
def test_a_bomb_in_the_cache_is_not_executed_and_prepared_again(workspace: Path) -> None:
    entries = sorted(Path("cache").glob("*.bodycase"))
    whole = [path.read_bytes() for path in entries]
    assert len(entries) == 4
    for path in entries:
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(DamagedEntryError, match="not an entry of this cache"):
            read_entry(path)
    assert main([*TRAIN, "--exp_name", "again", "--max_epochs", "1"]) == 0
    assert not Path("fired").exists()
    assert [path.read_bytes()[:8] for path in entries] == [content[:8] for content in whole]


@pytest.mark.fault("class names of a checkpoint that are paths", "masks a structure stay below the output folder")
def test_no_class_name_leads_out_of_the_output(workspace: Path) -> None:
    names = ["background", "../../../fired", "/fired", "..\\fired\n"]
    arguments = [*checkpoint(class_names=names), "--per_structure"]
    before = contents(workspace)
    assert main(arguments) == 0
    written = set(contents(workspace)) - set(before)
    assert written
    assert all(name.startswith("out/") for name in written)
    masks = sorted(path.name for path in Path("out/scan/segmentations").iterdir())
    assert masks == ["fired.nii.gz", "fired_2.nii.gz", "fired_3.nii.gz"]
    assert not (workspace.parent / "fired.nii.gz").exists()
