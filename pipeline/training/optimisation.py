"""How gradients change the weights, and whether an average of these is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

NESTEROV_MOMENTUM = 0.99
"""As nnU-Net has it (nnUNetTrainer.configure_optimizers)."""


@dataclass(frozen=True)
class Optimisation:
    """What the settings say of it."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Which optimiser."""
    weight_decay: float = 0.0
    """Apart from the gradient in AdamW, a part of it in SGD."""
    ema: float | None = None
    """Decay of the moving average of the weights, see `weight_average`; None: there is none."""

    def build(self, parameters: Iterable[nn.Parameter], *, lr: float, fused: bool) -> torch.optim.Optimizer:
        """AdamW (Loshchilov & Hutter 2019), or SGD with Nesterov's momentum (Sutskever et al. 2013)."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=lr,
                momentum=NESTEROV_MOMENTUM,
                nesterov=True,
                weight_decay=self.weight_decay,
                fused=fused,
            )
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=self.weight_decay, fused=fused)
