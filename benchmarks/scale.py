"""What many cases cost: a start, which asks the system about each file, a prediction's list, a summary of scores."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.measure import measure
from benchmarks.measurement import Measurement
from pipeline.config.settings import Config, DataConfig
from pipeline.evaluation.case_scores import METRICS
from pipeline.evaluation.summary import CONVENTIONS
from pipeline.inference.inputs import list_inputs
from pipeline.metrics.statistics import summarise
from pipeline.training.prepared_data import prepare_data

VOXELS = (12, 12, 12)
QUESTIONS = ("stat", "lstat", "scandir")
"""What of the module os is counted: on a network disk each of them takes a millisecond."""
SETTLED_S = 2.5
"""Files younger than two seconds may change again unseen, and are hashed at every start."""


def second_start(folder: str, n_cases: int, n_masks: int) -> Measurement:
    """Checking and preparing the data at a start that finds nothing changed; processor time.

    The data are in TotalSegmentator's layout, in tiny files of its own.
    """
    root = Path(folder, str(n_cases))
    _write(root / "data", n_cases, n_masks)
    time.sleep(SETTLED_S)
    config = Config(data=DataConfig(str(root / "data"), target_size=(8, 8, 8), cache_dir=str(root / "cache")))
    prepare_data(config)
    with _counted() as asked:
        began = time.process_time()
        prepare_data(config)
        seconds = time.process_time() - began
    n_files = n_cases * (n_masks + 1)
    facts = {
        "stat_calls_a_file": (asked["stat"] + asked["lstat"]) / n_files,
        "folders_read_a_case": asked["scandir"] / n_cases,
        "processor_ms_a_case": 1000 * seconds / n_cases,
    }
    return Measurement([seconds], facts=facts)


def listing(folder: str, n_scans: int) -> Measurement:
    """Listing a folder of scans for a prediction; processor time."""
    scan = Path(folder, "scan.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(VOXELS, np.int16), np.eye(4)), scan)
    root = Path(folder, f"scans{n_scans}")
    root.mkdir()
    for n in range(n_scans):
        (root / f"s{n:05d}.nii.gz").hardlink_to(scan)
    with _counted() as asked:
        began = time.process_time()
        list_inputs([root])
        seconds = time.process_time() - began
    return Measurement([seconds], facts={"stat_calls_a_scan": (asked["stat"] + asked["lstat"]) / n_scans})


def summing_up(folder: str, n_cases: int, n_classes: int) -> Measurement:
    """All metrics of an evaluation, each in both conventions for structures that a label lacks."""
    scores = np.random.default_rng(0).random((n_cases, n_classes))
    return measure(lambda: [summarise(scores, seed=1)[0].mean for _ in METRICS for _ in CONVENTIONS][:1])


def _write(root: Path, n_cases: int, n_masks: int) -> None:
    """CASE/ct.nii.gz and CASE/segmentations/STRUCTURE.nii.gz; the masks of all cases are links to the same files."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    masks = [root.parent / f"structure_{n:03d}.nii.gz" for n in range(n_masks)]
    for n, mask in enumerate(masks):
        inside = np.zeros(VOXELS, np.uint8)
        inside[n % 10 : n % 10 + 2, n // 10 % 10, 3:6] = 1
        nib.save(nib.Nifti1Image(inside, np.eye(4)), mask)
    for case in range(n_cases):
        segmentations = root / f"s{case:05d}" / "segmentations"
        segmentations.mkdir(parents=True)
        image = rng.integers(-500, 500, VOXELS, dtype=np.int16)
        nib.save(nib.Nifti1Image(image, np.eye(4)), segmentations.parent / "ct.nii.gz")
        for mask in masks:
            (segmentations / mask.name).hardlink_to(mask)


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Count the calls of `QUESTIONS` by name."""
    asked: Counter[str] = Counter()
    originals = {name: getattr(os, name) for name in QUESTIONS}

    def counting(name: str) -> Callable[..., Any]:
        def ask(*arguments: Any, **options: Any) -> Any:
            asked[name] += 1
            return originals[name](*arguments, **options)

        return ask

    for name in QUESTIONS:
        setattr(os, name, counting(name))
    try:
        yield asked
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
