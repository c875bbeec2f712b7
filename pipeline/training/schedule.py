"""The learning rate as a function of the epoch."""

from __future__ import annotations

import math


def learning_rate_at(epoch: int, *, lr: float, warmup_epochs: int, max_epochs: int, schedule: str) -> float:
    """The rate that the batches of `epoch` (from 0) are trained with.

    Warm-up is linear, `lr * (epoch + 1) / warmup_epochs`; the decay after it starts at the full rate:
    half a cosine to 0 (Loshchilov & Hutter 2017, without restarts), `poly` (1 − t)^0.9 as in nnU-Net, or constant.
    """
    if epoch < warmup_epochs:
        return lr * (epoch + 1) / warmup_epochs
    progress = (epoch - warmup_epochs) / max(1, max_epochs - warmup_epochs)
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "poly":
        return lr * (1 - progress) ** 0.9
    return lr
