"""What a machine has, and what training takes on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of the machine."""

    accelerator: str
    """"cpu" or "gpu"."""
    n_cores: int
    memory_bytes: int


@dataclass(frozen=True)
class Cost:
    """What a step of one process takes, as a line through two measured points."""

    fixed_s: float
    voxel_s: float
    fixed_bytes: float
    voxel_bytes: float
    validation_voxel_s: float
    """Seconds of validating one voxel once, in one process."""
    n_processes: int
    """Processes that train together on this machine."""
    n_features: int = 16
    """Channels at full resolution of the network that was measured."""
    why_processes: str = "measured"
    """Why so many."""

    def step_s(self, patch: Sequence[int], batch: int) -> float:
        """Seconds of a step."""
        return self.fixed_s + self.voxel_s * math.prod(patch) * batch

    def peak_bytes(self, patch: Sequence[int], batch: int) -> float:
        """Memory of a step in all processes together."""
        return (self.fixed_bytes + self.voxel_bytes * math.prod(patch) * batch) * self.n_processes
