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
from pipeline.metrics.slab_argmax import segment_in_slabs
from pipeline.planning.network_shape import Triple
from transforms.slabs import segmentation_dtype

N_STEPS = 4
"""Steps of a size; the first warms up, the fastest of the others counts."""

TIME_LIMIT_S = 600.0


@dataclass(frozen=True)
class StepTime:
    """What a training step of one patch and batch takes on this machine."""

    patch: Triple
    """Voxels (I, J, K)."""
    batch: int
    all_threads: tuple[float, float]
    """Seconds of a step, and of validating one patch with its loss and segmentation."""
    one_thread: tuple[float, float] | None
    """The same on one CPU thread; None on a GPU."""
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
        triples_and_pairs = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        found.append(StepTime(**fields | triples_and_pairs))
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
        all_threads = one_thread = work.seconds()
        if device.type == "cpu" and n_threads > 1:
            torch.set_num_threads(1)
            one_thread = work.seconds()
            torch.set_num_threads(n_threads)
        alone = one_thread if device.type == "cpu" else None
        print(json.dumps(asdict(StepTime(tuple(patch), batch, all_threads, alone, peak_bytes()))), flush=True)


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
        self.label = label.to(device, segmentation_dtype(n_classes))
        self.criterion = SlabDiceCELoss()
        self.optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)

    def seconds(self) -> tuple[float, float]:
        """Seconds of the fastest step after the first, and of the fastest validation of one patch."""
        step_s = min([self._timed(self._step) for _ in range(N_STEPS)][1:])
        return step_s, min(self._timed(self._validate) for _ in range(2))

    def _step(self) -> None:
        with self.autocast:
            features = self.network.features(self.image)
        self.criterion(features, self.network.head, self.label).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _validate(self) -> None:
        with torch.no_grad(), self.autocast:
            features = self.network.features(self.image[:1])
            self.criterion(features, self.network.head, self.label[:1])
            segment_in_slabs(features, self.network.head)

    def _timed(self, work: Any) -> float:
        start = clock_s()
        work()
        return clock_s() - start


if __name__ == "__main__":
    _take_steps(begin_measurement())
