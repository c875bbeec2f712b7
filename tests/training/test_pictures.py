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
        last = epoch == epochs[-1][0]
        pictures.after_validation(logger, epoch, taken(), range(epoch), is_best=is_best, is_last=last)
    if finished:
        pictures.finish(logger)
        pictures.finish(logger)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return {tag: [picture.step for picture in events.Images(tag)] for tag in events.Tags()["images"]}


def test_the_best_epoch_is_drawn_once_at_the_end_and_the_last_one_always(tmp_path):
    epochs = [(0, True), (1, True), (2, False)]
    assert written(tmp_path, ValidationPictures(10, ["b", "a"]), epochs) == {EVERY: [0, 2], BEST: [1]}


def test_no_pictures_are_drawn_where_none_are_wanted(tmp_path):
    assert written(tmp_path, ValidationPictures(0, ["b", "a"]), [(0, True), (1, True)]) == {}


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path, caplog):
    pictures = ValidationPictures(1, ["b", "a"])
    assert written(tmp_path, pictures, [(0, False)], taken=lambda: sample(shape=(0, 9, 10))) == {}
    assert "epoch 0: the picture validation/label_and_segmentation could not be drawn" in caplog.text
