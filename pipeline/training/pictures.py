"""The pictures of a training in TensorBoard: every so many epochs, of the best epoch, and of the last one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.training.tensorboard import EventsLogger
from pipeline.visualisation.validation_picture import ValidationSample, validation_picture

log = logging.getLogger(__name__)

EVERY = "validation/label_and_segmentation"
BEST = "validation/best"


class ValidationPictures:
    """Draw and write the pictures of one training.

    The best epoch's is written when the training ends, so that a training that improves in each epoch does not draw in
    each.

    Args:
        every: epochs between two pictures; 0 = none at all.
        class_names: background first.
    """

    def __init__(self, every: int, class_names: Sequence[str]) -> None:
        self.every = every
        self.class_names = class_names
        self._best: tuple[int, ValidationSample] | None = None

    def after_validation(
        self,
        events: EventsLogger,
        epoch: int,
        sample: ValidationSample | None,
        earlier: Sequence[int],
        *,
        is_best: bool,
        is_last: bool,
    ) -> None:
        """Write what is due after an epoch with a validation.

        Args:
            events: where to.
            epoch: counted from 0.
            sample: a case of the validation; None where this process had none.
            earlier: epochs with a validation before.
            is_best: whether this epoch's weights are kept.
            is_last: whether the training ends with it.
        """
        if not self.every or sample is None:
            return
        if is_best:
            self._best = epoch, sample
        before = max(earlier, default=-1)
        if is_last or epoch // self.every > before // self.every:  # the first validation after every so many epochs
            self._write(events, EVERY, epoch, sample)

    def finish(self, events: EventsLogger) -> None:
        """Write the best epoch's picture, if one has not been written."""
        if self._best is not None:
            epoch, sample = self._best
            self._best = None
            self._write(events, BEST, epoch, sample)

    def _write(self, events: EventsLogger, tag: str, epoch: int, sample: ValidationSample) -> None:
        try:
            events.write_picture(tag, epoch, validation_picture(sample, self.class_names, epoch))
        except Exception as error:  # a picture that cannot be drawn is not worth a training
            log.warning("epoch %d: the picture %s could not be drawn (%s); the training goes on", epoch, tag, error)
