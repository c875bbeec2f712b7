"""Choose how many processes prepare batches: no more than cores and shared memory allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.compute.memory import MORE_SHARED_MEMORY, SHARED_RESERVE
from pipeline.config.settings import ConfigError
from pipeline.console.text import gigabytes
from transforms.slabs import segmentation_dtype

PREFETCHED = 2
"""Batches that each worker prepares ahead, where the shared memory suffices; torch's own default."""


@dataclass(frozen=True)
class DataWorkers:
    """The processes that prepare batches."""

    number: int
    """0: batches are prepared in the training process."""
    prefetched: int = PREFETCHED
    """Batches that each of them prepares ahead."""
    note: str = ""
    """Why there are fewer than were asked for."""


def batch_bytes(target_size: Sequence[int], *, batch_size: int, in_channels: int, n_classes: int) -> int:
    """Size of a batch as a worker hands it over: float32 images, and labels of one or two bytes a voxel.

    >>> batch_bytes((160, 160, 256), batch_size=2, in_channels=1, n_classes=71)
    65536000
    """
    n_voxels = batch_size * math.prod(target_size)
    return n_voxels * (4 * in_channels + segmentation_dtype(n_classes).itemsize)


def choose_data_workers(asked: int, n_bytes: int, *, cores: int, shared_free: int | None) -> DataWorkers:
    """Return how many processes prepare batches, and how far ahead.

    Batches are the same with any number of workers. They travel through shared memory, of which a container has 64 MB
    by default; a worker that finds none left is killed by the system.

    Args:
        asked: what data.num_workers says.
        n_bytes: size of a batch.
        cores: cores that this process may use.
        shared_free: free bytes of the shared memory; None where there is no such limit.

    Raises:
        ConfigError: not even one worker's next batch fits the shared memory beside the one that is trained on.
    """
    number = min(asked, cores)
    note = "" if number == asked else f"Data workers: {number}, not {asked}: this process may use {cores} cores"
    if number == 0 or shared_free is None or (number * PREFETCHED + 1) * n_bytes <= shared_free - SHARED_RESERVE:
        return DataWorkers(number, note=note)
    free = gigabytes(shared_free, 3)
    found = f"a batch takes {gigabytes(n_bytes, 3)}, and the shared memory (/dev/shm) has {free} free"
    most = max(0, shared_free - SHARED_RESERVE) // n_bytes - 1
    if most < 1:
        raise ConfigError(f"data.num_workers is {asked}: {found}; start with --num_workers 0, or {MORE_SHARED_MEMORY}")
    number = min(number, most)
    return DataWorkers(number, 1, f"Data workers: {number} with one batch each, not {asked}: {found}")
