"""The curves that TensorBoard itself reads back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pipeline.training.tensorboard import EventsLogger
from tests.support.tracked import history_of


def write(tmp_path, **changes):
    logger = EventsLogger(save_dir=tmp_path, name="run")
    epoch = {
        "values": {"train_loss": 0.5, "val_loss": math.inf},
        "iou_per_class": {"liver": 0.25, "spleen": math.nan},
        "seconds": {"data": 1.0, "step": 3.0},
    }
    logger.write_epoch(3, **epoch | changes)
    logger.write_picture("validation/best", 3, np.zeros((4, 6, 3), np.uint8))
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return events


def test_finite_values_are_written_and_undefined_ones_leave_a_gap(tmp_path):
    events = write(tmp_path)
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "train_loss": [(3, 0.5)],
        "val_IoU/liver": [(3, 0.25)],
        "time_share/data": [(3, 0.25)],
        "time_share/step": [(3, 0.75)],
        "seconds_per_epoch": [(3, 4.0)],
    }
    (picture,) = events.Images("validation/best")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)


@pytest.mark.fault(
    "class names with control characters, marks that reorder text, or what UTF-8 cannot write",
    "TensorBoard shows replacements; the training goes on",
)
@pytest.mark.parametrize("odd", ["\udcff", "\x1b", "\x9b", "\u202e", "\u2066", "\n"])
def test_what_a_page_or_utf8_cannot_show_is_written_as_a_replacement(tmp_path, odd):
    events = write(tmp_path, iou_per_class={f"a{odd}b": 0.5})
    assert [event.value for event in events.Scalars("val_IoU/a\ufffdb")] == [0.5]


def test_a_refused_folder_is_warned_of_once_and_tried_again(tmp_path, caplog):
    (tmp_path / "run").write_text("a file where the folder should be")
    logger = EventsLogger(save_dir=tmp_path, name="run")
    assert logger.experiment is None
    epoch = {"iou_per_class": {}, "seconds": {}}
    logger.write_epoch(0, values={"train_loss": 0.75}, **epoch)
    (tmp_path / "run").unlink()
    logger.write_epoch(1, values={"train_loss": 0.5}, **epoch)
    logger.finalize("success")
    (warning,) = caplog.messages
    assert warning.startswith(f"{tmp_path / 'run' / 'version_0'}: cannot be written (")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(1, 0.5)]


def test_settings_are_written_for_the_table_of_runs(tmp_path):
    logger = EventsLogger(save_dir=tmp_path, name="run")
    logger.write_settings({"training": {"lr": 1e-3, "betas": [0.9, 0.99]}, "data": {"root": "x" * 1000}})
    logger.write_best(history_of([None]))
    logger.write_best(history_of([0.1, None, 0.25, 0.2]))
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    found = HParamsPluginData.FromString(start.content).session_start_info.hparams
    assert found["training.lr"].number_value == 1e-3
    assert found["training.betas"].string_value == "[0.9, 0.99]"
    assert len(found["data.root"].string_value) == 300
    assert [(event.step, event.value) for event in events.Scalars("best_val_mIoU")] == [(2, 0.25)]


def test_a_resumed_training_writes_the_numbers_that_its_earlier_parts_lack(tmp_path):
    """Those of a training that was overwritten are no reason to leave any out."""
    history = history_of([0.1, None, 0.3, 0.2])
    values = [{key: row[n] for key, row in history.history.items() if row[n] is not None} for n in range(4)]
    overwritten = [{"train_loss": 7.0, "learning_rate": 1e-3, "val_mIoU": 0.1}] * 4
    killed = [values[0] | {"val_IoU/liver": 0.1}, values[1], {"train_loss": values[2]["train_loss"]}]
    for epochs in (overwritten, killed):
        logger = EventsLogger(save_dir=tmp_path, name="run")
        for epoch, numbers in enumerate(epochs):
            scalars = {name: value for name, value in numbers.items() if name != "epoch"}
            logger.write_epoch(epoch, values=scalars, iou_per_class={}, seconds={})
        logger.finalize("success")
    with next((tmp_path / "run" / "version_1").glob("events*")).open("ab") as file:
        file.write(bytes(7))  # half an event
    logger = EventsLogger(save_dir=tmp_path, name="run")
    logger.write_missing(history)
    logger.finalize("success")
    found = {}
    for version in (1, 2):
        events = EventAccumulator(str(tmp_path / "run" / f"version_{version}"))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = found.get(tag, []) + [(event.step, event.value) for event in events.Scalars(tag)]
    for name in ("train_loss", "train_accuracy", "val_loss", "learning_rate"):
        assert found[name] == [(epoch, pytest.approx(values[epoch][name])) for epoch in range(4)]
    assert found["val_mIoU"] == [(epoch, pytest.approx(values[epoch]["val_mIoU"])) for epoch in (0, 2, 3)]
    assert found["val_IoU/liver"] == [(0, pytest.approx(0.1)), (2, pytest.approx(0.3))]


def test_event_files_that_cannot_be_read_are_said_and_nothing_is_written_twice(tmp_path, caplog):
    folder = tmp_path / "run" / "version_0"
    (folder / "events.out.tfevents.1").mkdir(parents=True)
    logger = EventsLogger(save_dir=tmp_path, name="run")
    logger.write_missing(history_of([0.5]))
    logger.finalize("success")
    (warning,) = caplog.messages
    assert warning.startswith(f"{tmp_path / 'run'}: cannot be read (")
    assert not list((tmp_path / "run").glob("version_1/*"))
