"""The weighted mean of an epoch, over all processes, without asking the device for a value at every step."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """Σ weight · value / Σ weight in float64; NaN where a value is NaN or nothing was added.

    torchmetrics' MeanMetric looks for NaN in every value, for which the processor waits for the GPU; without that
    (`nan_strategy="disable"`, torchmetrics 1.9) it forgets the weights.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)  # an epoch adds up millions of voxels
        for name in ("total", "weight"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Add a value, a scalar."""
        # Numbers stay numbers: to move one to a GPU, the processor waits for it
        value, weight = (x.to(self.total) if isinstance(x, Tensor) else float(x) for x in (value, weight))
        self.total = self.total + value * weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.weight
