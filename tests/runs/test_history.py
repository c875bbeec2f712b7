"""The six arrays of a training, held against pandas and JSON."""

from __future__ import annotations

import json
import math
import random

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.files.atomic import FileError
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
from tests.support.finished_run import append, start


def test_the_log_is_valid_before_and_after_every_epoch_whatever_the_values(tmp_path, shared_spec):
    schema = json.loads((shared_spec / "training_log.schema.json").read_text())
    folder, log = RunFolder(tmp_path, "run"), TrainingLog()
    start(folder)
    for miou in (math.nan, np.float32(0.25), torch.tensor(0.5), None, -math.inf, np.float64("nan")):
        folder.write_log(log)
        jsonschema.Draft202012Validator(schema).validate(json.loads(folder.log.read_text(), parse_constant=pytest.fail))
        append(log, miou, train_loss=math.inf, val_loss=math.nan, per_class_iou={"liver": miou})
    assert log.history["val_mIoU"] == [None, 0.25, 0.5, None, None, None]
    assert log.per_class_iou == {"liver": 0.5}


def test_the_best_epoch_is_the_first_highest_as_pandas_finds_it():
    draw = random.Random(1)
    for _ in range(200):
        log, best_when_appended = TrainingLog(), None
        for epoch in range(draw.randrange(1, 12)):
            values = draw.choice([None, math.nan, 0.0, 0.25, 0.5]), draw.choice([None, math.inf, 1.0, 2.0])
            if append(log, values[0], val_loss=values[1]):
                best_when_appended = epoch
        scores, losses = (pd.Series(log.history[key], dtype=float) for key in ("val_mIoU", "val_loss"))
        if not scores.isna().all():
            expected = scores.idxmax()
        elif not losses.isna().all():  # no validation case holds a structure
            expected = losses.idxmin()
        else:
            expected = len(log) - 1
        assert log.best_epoch == best_when_appended == expected
        assert log.best_val_miou == (None if scores.isna().all() else scores.max())
    assert TrainingLog().best_epoch is None


def test_a_history_goes_on_after_a_round_trip_through_json():
    log = TrainingLog()
    append(log, 0.5, per_class_iou={"liver": 0.5, "spleen": math.nan})
    append(log, None)
    again = TrainingLog.from_dict(json.loads(json.dumps(log.to_dict(), allow_nan=False)))
    assert again == log
    assert again.training_seconds is None  # as in those of earlier versions
    assert TrainingLog.from_dict(log.to_dict() | {"training_seconds": 2.5}).training_seconds == 2.5
    with pytest.raises(FileError, match="training_seconds: expected a number from 0, found -1"):
        TrainingLog.from_dict(log.to_dict() | {"training_seconds": -1})
    assert not append(again, 0.5)
    assert again.history["epoch"] == [0, 1, 2]
    assert len(log) == 2  # nothing is shared


@pytest.mark.parametrize(("epoch", "rate"), [(0, 1e-4), (2, 1e-4), (1, math.nan)])
def test_an_epoch_that_does_not_fit_is_refused_and_nothing_is_appended(epoch, rate):
    log = TrainingLog()
    append(log, 0.1)
    with pytest.raises(FileError, match="expected"):
        log.append_epoch(epoch, train_loss=1, train_accuracy=1, val_loss=1, val_mIoU=1, learning_rate=rate)
    assert {len(values) for values in log.history.values()} == {1}
