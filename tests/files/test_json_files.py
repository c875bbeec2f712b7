"""Strict JSON: what is written can be read everywhere, and damage is named."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.files.atomic import FileError
from pipeline.files.json_files import read_json, write_json
from pipeline.runs.run_folder import RunFolder
from tests.support.finished_run import start


def test_json_holds_what_python_held_except_for_the_undefined(tmp_path):
    path = tmp_path / "x.json"
    odd = os.fsdecode(b"caf\xe9/Wirbels\xc3\xa4ule")  # a file name in an old encoding, which no UTF-8 can say
    write_json(
        path, {"a": (1, 2.5, np.int64(3), np.float32(0.5)), "b": [math.nan, math.inf], "c": Path(odd), "d": True}
    )
    assert read_json(path) == {"a": [1, 2.5, 3, 0.5], "b": [None, None], "c": odd, "d": True}
    assert "Wirbelsäule" in path.read_text(encoding="utf-8")


SIX = {"epoch": [0], "train_loss": [1], "train_accuracy": [1], "val_loss": [1], "val_mIoU": [1], "learning_rate": [1]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not valid JSON"),
        ('{"training_history": {', "not valid JSON"),
        ('{"training_history": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff\xfe", "not valid JSON"),
        ("[]", "expected a JSON object, found a list"),
        ("{}", "training_history: expected six arrays, found None"),
        ({"training_history": SIX | {"val_loss": 3}}, "val_loss: expected an array, found 3"),
        ({"training_history": {"epoch": []}}, "train_loss: expected an array, found None"),
        ({"training_history": SIX | {"val_loss": [1, 2]}}, "expected arrays of equal length"),
        ({"training_history": SIX | {"epoch": [1]}}, r"expected 0, 1, 2, …, found \[1\]"),
        ({"training_history": SIX | {"val_mIoU": ["0.5"]}}, r"val_mIoU\[0\]: expected a number, found '0.5'"),
        ({"training_history": SIX | {"val_mIoU": [10**400]}}, r"val_mIoU\[0\]: expected a number"),
        ({"training_history": SIX | {"learning_rate": [None]}}, r"learning_rate\[0\]: expected a number"),
        (json.dumps({"training_history": SIX}).replace('"val_loss": [1]', '"val_loss": [1e999]'), "expected a number"),
    ],
)
def test_a_damaged_log_is_named_with_what_is_wrong(tmp_path, content, words):
    folder = RunFolder(tmp_path, "run")
    start(folder)
    text = content if isinstance(content, str) else json.dumps(content)
    folder.log.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=words) as error:
        folder.read_log()
    assert str(error.value).startswith(str(folder.log))
    assert "restore" in str(error.value)
    assert str(error.value).isprintable()
