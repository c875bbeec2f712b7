"""Whether memory leaks: resident memory after every epoch of a long training, and after every prediction of a set."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.measure import following, resident_bytes
from benchmarks.measurement import Measurement
from pipeline.compute.memory import forget_peak, peak_memory_bytes
from pipeline.config.files import from_mapping
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.predict import PredictionOptions, predict
from pipeline.runs.run_folder import RunFolder, run_name
from pipeline.train import train

N_CASES = 4


def epochs(folder: str, n: int) -> Measurement:
    """Train a tiny network on tiny phantoms; memory when an epoch's entry appears in training_log.json."""
    forget_peak()
    resident: dict[int, int] = {}
    start = time.perf_counter()
    _train(Path(folder), n, resident)
    return _measurement(resident, (time.perf_counter() - start) / n)


def predictions(folder: str, n: int) -> Measurement:
    """Predict the same two scans again and again, as NIfTI and NRRD with previews."""
    run = _train(Path(folder), 1, {})
    scans = sorted(Path(folder, "data", "imagesTr").iterdir())[:2]
    options = PredictionOptions(("nifti", "nrrd"), preview=True, device="cpu", precision="32", overwrite=True)
    forget_peak()
    resident = {}
    start = time.perf_counter()
    for number in range(1, n + 1):
        predict([run], scans, Path(folder, "out"), options, console=Console(quiet=True))
        resident[number] = resident_bytes()
    return _measurement(resident, (time.perf_counter() - start) / n)


def growth_per_unit(resident: Mapping[int, int]) -> float:
    """Bytes by which memory grows from one unit of work to the next: the slope over the second half.

    In the first half allocators and caches still fill.

    >>> growth_per_unit({1: 5, 2: 9, 3: 10, 4: 12, 5: 14, 6: 16})
    2.0
    """
    half = max(resident) // 2
    later = {number: held for number, held in resident.items() if number >= half}
    return round(float(np.polyfit(list(later), list(later.values()), 1)[0]), 6)


def _measurement(resident: Mapping[int, int], seconds: float) -> Measurement:
    facts = {f"MB_after_{number}": resident[number] / 1e6 for number in _marks(sorted(resident))}
    facts["kB_more_each_time_in_the_second_half"] = growth_per_unit(resident) / 1e3
    return Measurement([seconds], None, peak_memory_bytes(), facts=facts)


def _marks(numbers: list[int]) -> list[int]:
    """The first number, those at a quarter, half and three quarters, and the last."""
    last = len(numbers) - 1
    return sorted({numbers[round(share * last)] for share in (0, 0.25, 0.5, 0.75, 1)})


def _train(folder: Path, n_epochs: int, resident: dict[int, int]) -> Path:
    """Train for so many epochs, noting in `resident` what is held after each; return the run folder."""
    write_dataset(folder / "data", n_cases=N_CASES, seed=1, voxel_mm=24.0)
    config = from_mapping(
        {
            "experiment": {"name": "growth", "log_dir": str(folder / "logs")},
            "data": {
                "dataset_root": str(folder / "data"), "cache_dir": str(folder / "cache"), "target_size": [16, 16, 24],
                "batch_size": 1, "num_workers": 0, "data_aug": True,
            },
            "model": {"base_channels": 2},
            "training": {"max_epochs": n_epochs, "warmup_epochs": 0, "n_gpus": 0, "precision": "32"},
        }
    )  # fmt: skip
    run = RunFolder.at(Path(config.experiment.log_dir, run_name(config)))
    with following(run.log, lambda n: resident.setdefault(n, resident_bytes())):
        train(config, overwrite=True)
    return run.path
