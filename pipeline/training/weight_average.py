"""An exponential moving average of a network's weights, which is validated and kept in their place.

Averages of the weights along a training (Polyak & Juditsky 1992) differ less from step to step than the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of all that a network's state_dict holds: weights, and the running means of batch norms with them.

    The first step's weights begin it; whole numbers, as the batches that a batch norm has counted, are copied. It is
    float32, as the weights of every precision are.

    Args:
        decay: share of the old average that a step keeps, in the long run.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.n_steps = 0
        """Steps that it holds."""
        self.weights: dict[str, Tensor] = {}

    def update(self, network: nn.Module) -> None:
        """Add the weights that a step has left.

        Early steps count less, as in tf.train.ExponentialMovingAverage: a decay of 0.999 alone would hold the first
        steps' weights for thousands of them.
        """
        now = network.state_dict()
        if not self.n_steps:
            self.weights = {name: value.clone() for name, value in now.items()}
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        averaged = [name for name, value in now.items() if value.is_floating_point()]
        get_ema_multi_avg_fn(decay)([self.weights[name] for name in averaged], [now[name] for name in averaged], None)
        for name in now.keys() - averaged:
            self.weights[name].copy_(now[name])
        self.n_steps += 1

    @contextmanager
    def in_place_of_weights(self, network: nn.Module) -> Iterator[None]:
        """Put the average into the network for a while; before the first step its own weights stay."""
        if not self.n_steps:
            yield
            return
        trained = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.weights)
        try:
            yield
        finally:
            network.load_state_dict(trained)

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"n_steps": self.n_steps, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any], network: nn.Module) -> None:
        """Go on from such a state, on the network's device. Raises KeyError where it is of another network."""
        self.n_steps = state["n_steps"]
        now = network.state_dict() if self.n_steps else {}
        self.weights = {name: state["weights"][name].to(value.device, copy=True) for name, value in now.items()}
