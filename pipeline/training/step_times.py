"""Measure training steps of several patch sizes on random voxels: `python -m pipeline.training.step_times`.

Runs as a program of its own, with a JSON object on its input and one a step on its output, see `compute.measuring`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from networks.registry import build_network
from pipeline.compute.devices import choose_devices
from pipeline.compute.measuring import begin_measurement, clock_s, peak_bytes, run_measurement
from pipeline.losses.dice_ce import SlabDiceCELoss
from transforms.io.label_values import label_dtype

Triple = tuple[int, int, int]

N_STEPS = 4
"""Steps of a size; the first warms up, the fastest of the others counts."""

TIME_LIMIT_S = 600.0


@dataclass(frozen=True)
class StepTime:
    """What a training step of one patch and batch takes on this machine."""

    patch: Triple
    """Voxels (I, J, K)."""
    batch: int
    step_s: float
    """Seconds of a step, all threads working on it."""
    one_thread_s: float | None
    """Seconds of a step on one CPU thread; None on a GPU."""
    forward_s: float
    """Seconds of a forward pass of one patch without gradients, all threads working on it."""
    peak_bytes: int
    """Most memory in use so far: of the GPU where it trains, else of the process."""


@dataclass(frozen=True)
class StepRequest:
    """What is measured."""

    network: dict[str, Any]
    """Arguments of BodyNet beyond channels and classes."""
    in_channels: int
    n_classes: int
    base_channels: int
    precision: str
    """training.precision."""
    n_gpus: int | None
    """training.n_gpus."""
    steps: tuple[tuple[Triple, int], ...]
    """Patch and batch of each measurement, cheapest first."""


def measure_steps(request: StepRequest) -> list[StepTime]:
    """Measure in a process of its own.

    Returns:
        One entry for each step that could be taken; those that memory or `TIME_LIMIT_S` ended are missing.
    """
    try:
        output = run_measurement("pipeline.training.step_times", asdict(request), time_limit_s=TIME_LIMIT_S).stdout
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    found = []
    for line in output.splitlines():
        fields = json.loads(line)
        found.append(StepTime(**fields | {"patch": tuple(fields["patch"])}))
    return found


def _take_steps(request: dict[str, Any]) -> None:
    """Print a line of JSON for each measured step."""
    devices = choose_devices(request["n_gpus"], None, request["precision"])
    device = torch.device("cuda" if devices.accelerator == "gpu" else "cpu")
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(devices.precision)
    for patch, batch in request["steps"]:
        network = build_network(
            {"_target_": "networks.body_net.BodyNet", **request["network"]},
            in_channels=request["in_channels"],
            n_classes=request["n_classes"],
            base_channels=request["base_channels"],
            target_size=patch,
        ).to(device)
        work = _Work(network, patch, batch, request["in_channels"], request["n_classes"], device, dtype)
        n_threads = torch.get_num_threads()
        step_s, forward_s = work.step_s(), work.forward_s()
        one_thread_s = None
        if device.type == "cpu":
            torch.set_num_threads(1)
            one_thread_s = work.step_s() if n_threads > 1 else step_s
            torch.set_num_threads(n_threads)
        print(
            json.dumps(asdict(StepTime(tuple(patch), batch, step_s, one_thread_s, forward_s, peak_bytes()))),
            flush=True,
        )


class _Work:
    """A network and random voxels to train it with."""

    def __init__(
        self,
        network: Any,
        patch: Sequence[int],
        batch: int,
        in_channels: int,
        n_classes: int,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network = network
        self.image = torch.rand(batch, in_channels, *patch, generator=generator).to(device)
        label = torch.randint(n_classes, (batch, 1, *patch), generator=generator)
        self.label = label.to(device, getattr(torch, label_dtype(n_classes).name))
        self.criterion = SlabDiceCELoss()
        self.optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)

    def step_s(self) -> float:
        """Seconds of the fastest step after the first."""
        return min([self._timed(self._step) for _ in range(N_STEPS)][1:])

    def forward_s(self) -> float:
        """Seconds of the fastest forward pass of one patch."""
        return min(self._timed(self._forward) for _ in range(2))

    def _step(self) -> None:
        with self.autocast:
            features = self.network.features(self.image)
        self.criterion(features, self.network.head, self.label).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _forward(self) -> None:
        with torch.no_grad(), self.autocast:
            self.network.features(self.image[:1])

    def _timed(self, work: Any) -> float:
        start = clock_s()
        work()
        return clock_s() - start


if __name__ == "__main__":
    _take_steps(begin_measurement())
