"""Data sets and a machine to plan for, which takes a known time and memory."""

from dataclasses import replace

from pipeline.planning.choice import DataSummary
from pipeline.planning.machine import Cost, Machine
from pipeline.training.step_times import StepTime

HIPPOCAMPUS = DataSummary(
    sizes=((35, 51, 36),) * 120,
    spacings_mm=((1.0, 1.0, 1.0),) * 120,
    n_train=108,
    n_val=12,
    is_split=False,
    n_channels=1,
    class_names=("background", "anterior", "posterior"),
    mirrors=True,
)
WHOLE_BODY = DataSummary(
    sizes=((333, 333, 533),) * 500,
    spacings_mm=((1.5, 1.5, 1.5),) * 500,
    n_train=450,
    n_val=50,
    is_split=False,
    n_channels=1,
    class_names=tuple(map(str, range(71))),
    mirrors=False,
)
MACHINE = Machine("cpu", 2, 24 * 10**9)


class Measured:
    """A machine that takes a known time and memory."""

    def __init__(self, voxel_s=8e-7, n_processes=2, voxel_bytes=3000.0, by_channels=False):
        self.cost = Cost(0.01, voxel_s, 5e8, voxel_bytes, voxel_s / 3, n_processes)
        self.by_channels = by_channels
        self.asked = []

    def __call__(self, steps, strides, kernels, channels):
        self.asked.append((steps, strides, kernels, channels))
        return self.at(channels)

    def at(self, channels):
        """What a network of so many channels takes."""
        times = channels / 16 if self.by_channels else 1
        return replace(self.cost, voxel_s=self.cost.voxel_s * times, voxel_bytes=self.cost.voxel_bytes * times)


def step(patch, batch, step_s, in_processes_s, peak_bytes) -> StepTime:
    """A measured step of one process with all threads, and of several where their seconds are given."""
    in_processes = (in_processes_s, 0.15) if in_processes_s else None
    return StepTime(patch, batch, (step_s, 0.1), in_processes, peak_bytes)
