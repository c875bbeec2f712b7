"""What a machine has, and what training takes on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BETWEEN_STEPS_S = {"cpu": 0.02, "gpu": 0.01}
"""Seconds that a training takes for a step beyond what is measured: Lightning's loop, the next batch, the scaled
gradients. 20 ms on two CPU cores, 6 on an H200, which computes while the next batch is prepared."""

GPU_EPOCH_S = 0.1
"""Seconds from one epoch to the next on a GPU, where the first batch of the data workers is waited for. Measured on an
H100 with 16 workers and patches of a hippocampus. On a CPU, which has none, it is in the time between steps."""

GPU_CASE_S = 0.05
"""Seconds that validating a case takes on a GPU beyond the network and the loss: loading, metrics, files (measured in
the same training)."""


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of the machine."""

    accelerator: str
    """"cpu" or "gpu"."""
    n_cores: int
    memory_bytes: int

    @property
    def start_s(self) -> float:
        """Seconds that starting a training and checking remembered cases take; 22 on an H100 where nothing had been
        read from the disk before."""
        return 12.0 if self.accelerator == "cpu" else 20.0


@dataclass(frozen=True)
class Cost:
    """What a step of one process takes, from a few measured ones: so much each time, for each sample and each voxel."""

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
    sample_s: float = 0.0
    """Seconds for each patch of a batch, however small: where a GPU does not run our kernels, each is normalised by
    kernels of its own."""
    epoch_s: float = 0.0
    """Seconds from one epoch to the next, beyond its steps."""
    case_s: float = 0.0
    """Seconds of validating a case, beyond its voxels."""

    def step_s(self, patch: Sequence[int], batch: int) -> float:
        """Seconds of a step."""
        return self.fixed_s + self.sample_s * batch + self.voxel_s * math.prod(patch) * batch

    def peak_bytes(self, patch: Sequence[int], batch: int) -> float:
        """Memory of a step in all processes together."""
        return (self.fixed_bytes + self.voxel_bytes * math.prod(patch) * batch) * self.n_processes
