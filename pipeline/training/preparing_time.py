"""Measure how long preparing the cases of a data set takes on this machine."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.cache.build import CHAIN_BYTES
from pipeline.cache.entry import CannotWriteError
from pipeline.checks.screening import Screened
from pipeline.compute.memory import workers_that_fit
from pipeline.config.settings import DataConfig
from pipeline.files.atomic import write_error
from pipeline.training.prepared_data import cached_dataset, preprocessing_of

N_MEASURED = 5
"""Cases that are prepared at most; the fastest counts, since the first one loads libraries."""

ENOUGH_S = 5.0
"""Seconds after which no third one is."""


def preparing_s(screened: Screened, data: DataConfig) -> float:
    """Seconds of preparing all training and validation cases, by the voxels of a few of median size.

    Args:
        screened: the data set.
        data: how its cases are prepared; what is prepared here is written beside the entries of its cache and removed.

    Raises:
        CacheError, VolumeError: a case cannot be prepared.
    """
    assert screened.split is not None  # a data set that cannot be split was refused
    used = {*screened.split.train, *screened.split.val}
    voxels = {c.case: sum(math.prod(i.shape) for i in c.images) for c in screened.cases if c.case in used}
    middle = sorted(voxels, key=lambda case: voxels[case])[max(0, (len(voxels) - N_MEASURED) // 2) :][:N_MEASURED]
    cases = {case.id: case for case in screened.dataset.cases}
    try:
        beside = TemporaryDirectory(dir=data.cache_dir)
    except OSError as error:
        raise CannotWriteError(f"cache folder {write_error(Path(data.cache_dir), error)}") from error
    with beside as folder:
        measured = cached_dataset(
            [cases[case] for case in middle],
            preprocessing_of(screened, data),
            replace(data, cache_dir=folder),
            class_names=screened.dataset.classes.names,
            trains=True,
            seed=0,
        )
        voxel_s, began = math.inf, time.perf_counter()
        for index, case in enumerate(middle):
            if index >= 2 and time.perf_counter() - began > ENOUGH_S:
                break
            start = time.perf_counter()
            measured.store.prepare(index, wait=True)
            voxel_s = min(voxel_s, (time.perf_counter() - start) / max(1, voxels[case]))
    return voxel_s * sum(voxels.values()) / workers_that_fit(CHAIN_BYTES, len(voxels))
