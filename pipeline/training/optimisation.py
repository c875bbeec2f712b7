"""How gradients change the weights, and whether an average of these is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pipeline.training.muon import Muon

NESTEROV_MOMENTUM = 0.99
"""As nnU-Net has it (nnUNetTrainer.configure_optimizers)."""


@dataclass(frozen=True, eq=False)
class TakenWeights:
    """Parameters that a training has taken over from another, and how they are treated."""

    whole: Collection[nn.Parameter] = ()
    """Those that hold the other network's numbers alone."""
    lr_factor: float = 1.0
    """Factor on their learning rate."""
    frozen: Collection[nn.Parameter] = ()
    """Those of them that are not trained at first."""
    frozen_norms: Collection[nn.Module] = ()
    """Batch normalisations among them, whose running means stay as they are meanwhile."""
    freeze_epochs: int = 0
    """Epochs in which they are not trained."""


NOTHING_TAKEN = TakenWeights()


@dataclass(frozen=True)
class Optimisation:
    """What the settings say of it."""

    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """Which optimiser."""
    weight_decay: float = 0.0
    """Apart from the gradient in AdamW and Muon, a part of it in SGD."""
    ema: float | None = None
    """Decay of the moving average of the weights, see `weight_average`; None: there is none."""

    def build(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        fused: bool,
        taken: TakenWeights = NOTHING_TAKEN,
        matrices: Collection[nn.Parameter] = (),
    ) -> torch.optim.Optimizer:
        """AdamW (Loshchilov & Hutter 2019), Muon, or SGD with Nesterov's momentum (Sutskever et al. 2013).

        Where what was taken over learns at another rate it is a group of its own, with that factor as "lr_factor".

        matrices: what Muon makes orthogonal, see `muon.hidden_matrices`.
        """
        every = list(parameters)
        groups: list[dict[str, Any]] = [{"params": every}]
        if taken.lr_factor != 1:
            whole = {id(parameter) for parameter in taken.whole}
            groups = [
                {"params": [p for p in every if id(p) not in whole], "lr_factor": 1.0},
                {"params": [p for p in every if id(p) in whole], "lr_factor": taken.lr_factor},
            ]
        if self.optimizer == "muon":
            return Muon(groups, matrices, lr=lr, weight_decay=self.weight_decay, fused=fused)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                groups,
                lr=lr,
                momentum=NESTEROV_MOMENTUM,
                nesterov=True,
                weight_decay=self.weight_decay,
                fused=fused,
            )
        return torch.optim.AdamW(groups, lr=lr, weight_decay=self.weight_decay, fused=fused)
