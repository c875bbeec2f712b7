"""Patches of a large case from the cache, cut and varied on one core: how many a second, how many bytes are read.

The case is not resampled from a scan here: an entry of its size is written, with a body's intensities and classes, and
patches are drawn from it as a training does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset

from benchmarks.inputs import BLOCK, blocky_label
from benchmarks.measure import measure, resident_bytes
from benchmarks.measurement import Measurement
from benchmarks.steps import Clock, fit
from networks.body_net import BodyNet
from pipeline.cache.entry import StoredEntry, encode, write_entry
from pipeline.compute.devices import cpu_computes_in_bfloat16
from pipeline.compute.memory import forget_peak
from transforms.augment import RandomAugmentd
from transforms.patches import RandomPatchd, Triple

NAME = "0" * 16 + "-" + "0" * 32
N_CLASSES = 71
PAGE = 4096


def prepare(folder: str, size: Sequence[int]) -> None:
    """Write the entry of a case of `size` voxels."""
    label = blocky_label([-(-n // BLOCK) for n in size], N_CLASSES)[0]  # eight times coarser, to make it at once
    for axis in (1, 2, 3):
        label = label.repeat_interleave(BLOCK, axis).narrow(axis, 0, size[axis - 1])
    image = torch.rand(1, *size).mul_(0.1).add_(label, alpha=1 / N_CLASSES)
    entry, payload = encode(
        {"image": image, "label": label}, name=NAME, case="a", chain={}, n_classes=N_CLASSES, with_places=True
    )
    write_entry(_path(folder), entry, payload)


def ours(folder: str, patch: Triple, n: int, *, augment: bool) -> Measurement:
    """Draw, cut and vary `n` patches; a first one before."""
    read: list[float] = []

    class Counted(StoredEntry):
        def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
            read.append(_pages_of(self.size, start, stop) * PAGE)
            return super().read(start, stop)

    chain = _chain(patch, augment=augment)

    def draw() -> list[float]:
        item: dict[str, Any] = {"stored": Counted(_path(folder), verify=False), "epoch": 0}
        chain(item)
        return []

    torch.set_num_threads(1)
    draw()
    read.clear()
    started = time.process_time()
    measured = measure(draw, n=n)
    core_seconds = time.process_time() - started  # what other programs do to the clock does not count
    measured.facts = {
        "patches_per_second_and_core": n / core_seconds,
        "MB_of_pages_a_patch": float(np.mean(read)) / 1e6,
        "MB_in_a_patch": 3 * float(np.prod(patch)) / 1e6,
    }
    return measured


def training(folder: str, patch: Triple, n_steps: int, base_channels: int = 32) -> Measurement:
    """Train BodyNet on varied patches, drawn one after the other by the process that trains; the first step warms up.

    "share_of_time_for_data" is what drawing takes of the time of a step and its patch: what a training without data
    workers waits.
    """
    chain = _chain(patch, augment=True)
    seconds: list[float] = []

    class Drawn(Dataset):
        def __len__(self) -> int:
            return n_steps

        def __getitem__(self, index: int) -> dict[str, Any]:
            start = time.perf_counter()
            item = chain({"stored": StoredEntry(_path(folder), verify=False), "epoch": index})
            seconds.append(time.perf_counter() - start)
            return {"image": item["image"][None], "label": item["label"][None], "case": ["a"]}

    clock = Clock()
    network = BodyNet(1, N_CLASSES, base_channels)
    precision = "bf16-mixed" if cpu_computes_in_bfloat16() else "32-true"
    loader = DataLoader(Drawn(), batch_size=None)
    forget_peak()
    before = resident_bytes()
    fit(network, loader, n_classes=N_CLASSES, accelerator="cpu", precision=precision, callbacks=[clock])
    taken, peak = clock.seconds[1:], clock.peaks[-1]
    facts = {"share_of_time_for_data": sum(seconds[1:]) / (sum(taken) + sum(seconds[1:]))}
    return Measurement(taken, max(0, peak - before), peak, [], facts)


def _chain(patch: Triple, *, augment: bool) -> Compose:
    varied = RandomAugmentd(patch) if augment else None
    chain = Compose([RandomPatchd(lambda epoch: patch, weights=[0] + [1] * (N_CLASSES - 1), augment=varied)])
    return chain.set_random_state(seed=0)


def _pages_of(size: Sequence[int], start: Sequence[int], stop: Sequence[int]) -> int:
    """Pages of the file that hold a part of the image (two bytes a voxel) and of the label (one byte)."""
    rows = np.arange(start[0], stop[0])[:, None] * size[1] + np.arange(start[1], stop[1])
    n_pages = 0
    for width, offset in ((2, 0), (1, 2 * int(np.prod(size)))):
        first = (offset + (rows * size[2] + start[2]) * width).ravel() // PAGE
        last = (offset + (rows * size[2] + stop[2]) * width - 1).ravel() // PAGE
        covered = np.maximum(last[1:], last[:-1]) - np.maximum(first[1:] - 1, last[:-1])
        n_pages += int(last[0] - first[0] + 1 + covered.clip(min=0).sum())
    return n_pages


def _path(folder: str) -> Path:
    return Path(folder) / f"{NAME}.bodycase"
