"""Measure training steps of several patch sizes on random voxels: `python -m pipeline.training.step_times`.

Runs as a program of its own, with a JSON object on its input and one a step on its output, see `compute.measuring`.
Where a training may take several processes of one thread each, as many run at once and exchange gradients, since
they share caches, memory and clock rate: one alone would be faster.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed

from networks import BODY_NET
from networks.registry import build_network
from pipeline.compute.devices import choose_devices
from pipeline.compute.measuring import begin_measurement, clock_s, peak_bytes, run_together
from pipeline.compute.memory import keep_freed_memory
from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.metrics.slab_argmax import segment_in_slabs
from pipeline.planning.network_shape import Triple
from pipeline.training.muon import hidden_matrices
from pipeline.training.optimisation import Optimisation
from transforms.slabs import segmentation_dtype

N_STEPS = 4
"""Steps of a size; the first warms up, the median of the others counts."""

TIME_LIMIT_S = 600.0

LEAST_PROCESS_BYTES = 10**9
"""Where fewer are there for each, no several processes are started: each holds a third of it before its first step, and
0.75 GB with one of 32×32×32 voxels, so that as many as a machine has cores could take all of its memory."""


@dataclass(frozen=True)
class StepTime:
    """What a training step of one patch and batch takes on this machine."""

    patch: Triple
    """Voxels (I, J, K)."""
    batch: int
    all_threads: tuple[float, float]
    """Seconds of a step, and of validating one patch with its loss and segmentation."""
    in_processes: tuple[float, float] | None
    """The same in each of `n_processes` processes of one thread that train together; None where not measured."""
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
    n_processes: int = 1
    """Processes of one thread each that are measured, too, for a training in as many; 1 for none."""
    process_bytes: int = 0
    """Memory that each of them may take: they take no step that needs more."""


def measure_steps(request: StepRequest) -> list[StepTime]:
    """Measure in processes of their own; in one alone where memory does not hold several, or one of them fails.

    Returns:
        One entry for each step that could be taken; those that memory or `TIME_LIMIT_S` ended are missing.
    """
    until = time.monotonic() + TIME_LIMIT_S
    alone = replace(request, n_processes=1)
    if request.process_bytes < LEAST_PROCESS_BYTES:
        request = alone
    found = _measured(request, TIME_LIMIT_S)
    left_s = until - time.monotonic()
    if len(found) < len(request.steps) and request.n_processes > 1 and left_s > 0:
        found = max(found, _measured(alone, left_s), key=len)
    return found


def _measured(request: StepRequest, time_limit_s: float) -> list[StepTime]:
    """The steps that the processes of a request took until their end or the limit."""
    with tempfile.TemporaryDirectory() as folder:
        shared = {**asdict(request), "rendezvous": Path(folder, "rendezvous").as_uri()}
        ranks = [{**shared, "rank": rank} for rank in range(request.n_processes)]
        output = run_together("pipeline.training.step_times", ranks, time_limit_s=time_limit_s)
    found = []
    for line in output.splitlines():
        fields = json.loads(line)
        triples_and_pairs = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        found.append(StepTime(**fields | triples_and_pairs))
    return found


def _take_steps(request: dict[str, Any]) -> None:
    """Take the steps; the first process prints a line of JSON for each."""
    n_processes, rank = request["n_processes"], request["rank"]
    if n_processes > 1:
        distributed.init_process_group(
            "gloo", request["rendezvous"], timedelta(seconds=TIME_LIMIT_S / 2), rank=rank, world_size=n_processes
        )
    devices = choose_devices(request["n_gpus"], None, request["precision"])
    device = torch.device("cuda" if devices.accelerator == "gpu" else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as a training does
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(devices.precision)
    for patch, batch in request["steps"]:
        network = build_network(
            {"_target_": BODY_NET, **request["network"]},
            in_channels=request["in_channels"],
            n_classes=request["n_classes"],
            base_channels=request["base_channels"],
            target_size=patch,
        ).to(device)
        work = _Work(network, patch, batch, request["in_channels"], request["n_classes"], device, dtype)
        all_threads = work.seconds() if rank == 0 else None
        in_processes = None
        if n_processes > 1 and _agreed(rank == 0 and peak_bytes() <= request["process_bytes"]):
            n_threads = torch.get_num_threads()
            torch.set_num_threads(1)
            in_processes = work.seconds(work.exchange_gradients)
            torch.set_num_threads(n_threads)
        if all_threads:
            print(
                json.dumps(asdict(StepTime(tuple(patch), batch, all_threads, in_processes, peak_bytes()))), flush=True
            )


def _agreed(yes: bool) -> bool:
    """Wait for what the first process says."""
    answer = torch.tensor(yes)
    distributed.broadcast(answer, 0)
    return bool(answer)


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
        matrices = hidden_matrices(network, network.head)
        self.optimizer = Optimisation("muon").build(network.parameters(), lr=1e-3, fused=True, matrices=matrices)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)

    def seconds(self, after_backward: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Seconds of a step, and of validating one patch."""
        step_s = median([self._timed(lambda: self._step(after_backward)) for _ in range(N_STEPS)][1:])
        return step_s, min(self._timed(self._validate) for _ in range(2))

    def exchange_gradients(self) -> None:
        """Add up the gradients of all processes, which thereby wait for each other."""
        distributed.all_reduce(torch.cat([p.grad.flatten() for p in self.network.parameters() if p.grad is not None]))

    def _step(self, after_backward: Callable[[], None]) -> None:
        with self.autocast:
            features = self.network.features(self.image)
        self.criterion(features, self.network.head, self.label).loss.backward()
        after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _validate(self) -> None:
        with torch.no_grad(), self.autocast:
            features = self.network.features(self.image[:1])
            self.criterion(features, self.network.head, self.label[:1])
            segment_in_slabs(features, self.network.head)

    def _timed(self, work: Callable[[], None]) -> float:
        start = clock_s()
        work()
        return clock_s() - start


if __name__ == "__main__":
    _take_steps(begin_measurement())
