"""What trackers are told of a training."""

from __future__ import annotations

import math

from pipeline.runs.history import TrainingLog
from pipeline.training.tracked_run import distinct, epoch_numbers, tracked_settings
from tests.support.settings import settings
from tests.support.tracked import history_of


def test_the_numbers_of_an_epoch_are_those_of_the_log_without_undefined_ones():
    history = history_of([0.25, None, 0.125])
    assert epoch_numbers(history, 2, {"liver": 0.5, "spleen": math.nan, "aorta": None}) == {
        "train_loss": 0.5,
        "train_accuracy": 0.75,
        "val_loss": 1.0,
        "val_mIoU": 0.125,
        "best_val_mIoU": 0.25,
        "learning_rate": 0.001,
        "val_IoU/liver": 0.5,
    }
    assert "val_mIoU" not in epoch_numbers(history, 1, {})
    assert "best_val_mIoU" not in epoch_numbers(history_of([None]), 0, {})
    assert len(TrainingLog()) == 0


def test_settings_are_a_flat_table_that_names_no_case():
    from pipeline.config.files import as_mapping

    document = as_mapping(settings("--dataset_root", "d", "--lr", "0.01", "--experiment.name", "a b"))
    document["data"] |= {"split": {"train": ["patient_1"]}, "skipped_cases": {"patient_2": "bad"}, "n_cases": 2}
    document["model"] |= {"total_parameters": 123, "class_names": ["background", "a"]}
    document["training"]["start_from"] = "run\x1b[2J" + "x" * 1000
    table = tracked_settings(document)
    assert (table["training.lr"], table["data.target_size"], table["training.ema"]) == (0.01, "[160, 160, 256]", "null")
    assert table["model.total_parameters"] == 123
    assert "patient" not in str(table)
    assert table["training.start_from"].startswith("run\N{REPLACEMENT CHARACTER}[2J")
    assert len(table["training.start_from"]) == 250


def test_names_stay_distinct_when_letters_are_replaced():
    names = distinct(["肝", "脾", "liver"], lambda name: "".join(c if c.isascii() else "_" for c in name))
    assert names == {"肝": "_", "脾": "__1", "liver": "liver"}
