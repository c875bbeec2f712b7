"""Pictures of the best epoch are kept until the training ends, and no picture ends a training."""

from __future__ import annotations

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.training.pictures import BEST, EVERY, ValidationPictures
from pipeline.training.tensorboard import EventsLogger
from pipeline.visualisation.validation_picture import ValidationSample


def sample(shape=(8, 9, 10)) -> ValidationSample:
    label = torch.ones(shape, dtype=torch.uint8)
    return ValidationSample("a", torch.rand(1, *shape), label, label, np.eye(4))


def written(tmp_path, pictures: ValidationPictures, epochs, *, finished=True, taken=sample) -> dict[str, list[int]]:
    logger = EventsLogger(save_dir=tmp_path, name="run")
    assert logger.experiment is not None  # opens the file
    for epoch, is_best in epochs:
        pictures.keep(epoch, taken(), is_best=is_best)
        pictures.write_due(logger, range(epoch + 1))
    if finished:
        for _ in range(2):
            pictures.finish(logger, epochs[-1][0] + 1)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return {tag: [picture.step for picture in events.Images(tag)] for tag in events.Tags()["images"]}


def test_the_best_epoch_is_drawn_once_at_the_end_and_the_last_one_always(tmp_path):
    epochs = [(0, True), (1, True), (2, False)]
    assert written(tmp_path, ValidationPictures(10, ["b", "a"]), epochs) == {EVERY: [0, 2], BEST: [1]}


def test_what_a_killed_training_had_not_drawn_is_drawn_by_the_one_that_goes_on(tmp_path):
    """The same pixels as without a kill, after a way through a file that holds nothing but data."""
    one = sample()
    killed, resumed, whole = (ValidationPictures(10, ["b", "a"]) for _ in range(3))
    for pictures in (killed, whole):
        pictures.keep(0, one, is_best=True)
    torch.save(killed.state(), tmp_path / "state.ckpt")
    resumed.restore(torch.load(tmp_path / "state.ckpt", weights_only=True))
    found = []
    for pictures, name in ((resumed, "resumed"), (whole, "whole")):
        logger = EventsLogger(save_dir=tmp_path, name=name)
        pictures.finish(logger, 1)
        logger.finalize("success")
        events = EventAccumulator(logger.log_dir)
        events.Reload()
        found.append([(tag, one.step, one.encoded_image_string) for tag in (EVERY, BEST) for one in events.Images(tag)])
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_a_damaged_state_of_pictures_is_a_warning(caplog):
    pictures = ValidationPictures(10, ["b", "a"])
    pictures.restore({BEST: {"epoch": 3}, EVERY: 5})
    assert pictures.state() == {}
    assert caplog.text.count("cannot be restored") == 2


def test_an_epoch_that_could_not_be_finished_is_not_drawn(tmp_path):
    pictures = ValidationPictures(10, ["b", "a"])
    pictures.keep(0, sample(), is_best=True)
    logger = EventsLogger(save_dir=tmp_path, name="run")
    pictures.finish(logger, 0)
    assert set(pictures.state()) == {EVERY, BEST}


def test_no_pictures_are_drawn_where_none_are_wanted(tmp_path):
    assert written(tmp_path, ValidationPictures(0, ["b", "a"]), [(0, True), (1, True)]) == {}


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path, caplog):
    pictures = ValidationPictures(1, ["b", "a"])
    assert written(tmp_path, pictures, [(0, False)], taken=lambda: sample(shape=(0, 9, 10))) == {}
    assert "epoch 0: the picture validation/label_and_segmentation could not be drawn" in caplog.text
