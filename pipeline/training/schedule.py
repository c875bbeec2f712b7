"""The learning rate as a function of the epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a decay from the full rate.

    >>> schedule = Schedule(lr=1e-4, warmup_epochs=5, max_epochs=100)
    >>> [round(schedule.learning_rate(epoch), 6) for epoch in range(6)]
    [2e-05, 4e-05, 6e-05, 8e-05, 0.0001, 0.0001]
    """

    lr: float
    """Learning rate after warm-up."""
    warmup_epochs: int = 0
    """Epochs in which the rate rises linearly to `lr`."""
    max_epochs: int = 1
    """Epochs of the whole training."""
    decay: Literal["cosine", "poly", "constant"] = "constant"
    """Half a cosine to 0 (Loshchilov & Hutter 2017, without restarts); "poly", (1 − t)^0.9 as in nnU-Net; or none."""

    def learning_rate(self, epoch: int) -> float:
        """Return the rate of all batches of `epoch`, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.lr * (epoch + 1) / self.warmup_epochs
        progress = (epoch - self.warmup_epochs) / max(1, self.max_epochs - self.warmup_epochs)
        if self.decay == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if self.decay == "poly":
            return self.lr * (1 - progress) ** 0.9
        return self.lr
