"""The pictures of a training in TensorBoard: every so many epochs, of the best epoch, and of the last one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.training.tensorboard import EventsLogger
from pipeline.visualisation.validation_picture import (
    ValidationSample,
    ValidationSlices,
    cut_sample,
    validation_picture,
)

log = logging.getLogger(__name__)

EVERY = "validation/label_and_segmentation"
BEST = "validation/best"


class _Kept(NamedTuple):
    """What can be drawn of an epoch."""

    epoch: int
    slices: ValidationSlices


class ValidationPictures:
    """Draw and write the pictures of one training.

    Those of the best and of the last epoch are written when the training ends, so that a training that improves in each
    epoch does not draw in each. What they show goes along with the state to resume from: a resumed training may find no
    better epoch, or have none left to train.

    Args:
        every: epochs between two pictures; 0 = none at all.
        class_names: background first.
    """

    def __init__(self, every: int, class_names: Sequence[str]) -> None:
        self.every = every
        self.class_names = class_names
        self._kept: dict[str, _Kept] = {}
        """By tag, what is not drawn yet."""

    def state(self) -> dict[str, Any]:
        """What is not drawn yet, as plain containers and tensors."""
        return {tag: {"epoch": kept.epoch, **kept.slices.to_dict()} for tag, kept in self._kept.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` gave before a training was interrupted."""
        for tag in (EVERY, BEST):
            if not self.every or tag not in state:
                continue
            try:
                self._kept[tag] = _Kept(int(state[tag]["epoch"]), ValidationSlices.from_dict(state[tag]))
            except Exception as error:  # a picture is not worth a training
                log.warning("the picture %s cannot be restored (%s); the training goes on", tag, error)

    def keep(self, epoch: int, sample: ValidationSample | None, *, is_best: bool) -> None:
        """Keep what is drawn of an epoch with a validation.

        Args:
            epoch: counted from 0.
            sample: a case of the validation; None where this process had none.
            is_best: whether this epoch's weights are kept.
        """
        if not self.every or sample is None:
            return
        try:
            kept = _Kept(epoch, cut_sample(sample))
        except Exception as error:  # a picture is not worth a training
            log.warning("epoch %d: the picture %s could not be drawn (%s); the training goes on", epoch, EVERY, error)
            return
        self._kept |= {EVERY: kept, BEST: kept} if is_best else {EVERY: kept}

    def write_due(self, events: EventsLogger, validated: Sequence[int]) -> None:
        """Write the last epoch's picture, if its validation is the first after every so many epochs.

        validated: the epochs with a validation so far.
        """
        if EVERY not in self._kept:
            return
        epoch = self._kept[EVERY].epoch
        before = max((other for other in validated if other < epoch), default=-1)
        if epoch // self.every > before // self.every:
            self._write(events, EVERY)

    def finish(self, events: EventsLogger, n_epochs: int) -> None:
        """Write the pictures of the last and of the best epoch, where they have not been written.

        n_epochs: how many epochs were finished; an epoch whose state could not be written is none.
        """
        for tag in [tag for tag, kept in self._kept.items() if kept.epoch < n_epochs]:
            self._write(events, tag)

    def _write(self, events: EventsLogger, tag: str) -> None:
        epoch, slices = self._kept.pop(tag)
        try:
            events.write_picture(tag, epoch, validation_picture(slices, self.class_names, epoch))
        except Exception as error:  # a picture that cannot be drawn is not worth a training
            log.warning("epoch %d: the picture %s could not be drawn (%s); the training goes on", epoch, tag, error)
