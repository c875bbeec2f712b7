"""One case from its files: through MONAI's usual chain, through ours, and from the cache."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Resized, ScaleIntensityRanged

from benchmarks.inputs import N_PHANTOM_CLASSES, scan_item, write_scan
from benchmarks.measure import measure
from benchmarks.measurement import Measurement
from pipeline.cache.cached_dataset import CachedDataset
from pipeline.checks.remembered_checks import check_changed_cases
from pipeline.datasets.listing import list_cases
from pipeline.phantoms.anatomy import CLASS_NAMES
from transforms.chains import RAS, preprocessing_chain


def prepare(folder: str, source_size: Sequence[int], size: Sequence[int]) -> None:
    """Write a CT and its label map of `source_size`, and the cache entry at `size`."""
    write_scan(folder, source_size)
    cached(folder, size).build(workers=0)


def plain(folder: str, size: Sequence[int], n: int = 1) -> Measurement:
    """MONAI's transforms for the same steps; labels are resized by the nearest voxel."""
    keys = ["image", "label"]
    chain = Compose(
        [
            LoadImaged(keys, reader="NibabelReader"),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=RAS),
            ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True),
            Resized(keys, spatial_size=list(size), mode=["trilinear", "nearest-exact"]),
        ]
    )
    return measure(lambda: chain(scan_item(folder)), n=n, value=summary_of)


def uncached(folder: str, size: Sequence[int], n: int = 1) -> Measurement:
    """Our chain, from the files."""
    chain = preprocessing_chain(size)
    return measure(lambda: chain(scan_item(folder)), n=n, value=summary_of)


def first_start(folder: str, size: Sequence[int], n: int = 1) -> Measurement:
    """What a training does with a new case, in an empty cache: hash and check it, then prepare it; processor time."""
    classes = {name: index for index, name in enumerate(CLASS_NAMES)}
    case = {name: scan_item(folder)[name] for name in ("case", "image", "label")}
    listed = Path(folder, "cases.json")
    listed.write_text(json.dumps({"cases": [case], "labels": classes, "channel_names": ["CT"]}))
    dataset = list_cases(listed)
    spent: list[tuple[float, float]] = []

    def work() -> list[float]:
        with TemporaryDirectory(dir=folder) as cache:
            began = time.process_time()
            check_changed_cases(dataset, Path(cache))
            checked = time.process_time()
            cached(folder, size, cache=cache).build(workers=0)
            spent.append((checked - began, time.process_time() - checked))
        return []

    measured = measure(work, n=n)
    measured.seconds = [sum(parts) for parts in spent]
    measured.facts = {"hash_and_check_s": spent[-1][0], "prepare_s": spent[-1][1]}
    return measured


def second_epoch(folder: str, size: Sequence[int], n: int = 1) -> Measurement:
    """Our chain's result, from the cache; the first reading is not counted, as in a training's first epoch."""
    dataset = cached(folder, size)
    dataset[0]
    measured = measure(lambda: dataset[0], n=n, value=summary_of)
    measured.facts["entry_mb"] = max(path.stat().st_size for path in Path(folder, "cache").rglob("*")) / 1e6
    return measured


def cached(
    folder: str, size: Sequence[int], cases: Sequence[str] = ("phantom",), *, cache: str = "cache", **arguments: Any
) -> CachedDataset:
    """The cached data set of the written scan under the given case ids; `cache`: its folder, in `folder`."""
    return CachedDataset(
        [scan_item(folder, case) for case in cases],
        preprocessing_chain(size),
        folder=Path(folder, cache),
        key={"target_size": list(size)},
        n_classes=N_PHANTOM_CLASSES,
        **arguments,
    )


def summary_of(case: dict[str, Any]) -> list[float]:
    """What two ways of loading must agree in: the image's mean and deviation, the affine, the voxels of each class."""
    image, label = case["image"], case["label"]
    voxels = torch.bincount(label.as_tensor().flatten().int(), minlength=N_PHANTOM_CLASSES)
    moments = [float(image.as_tensor().double().mean()), float(image.as_tensor().double().std())]
    return [*moments, *image.affine.double().flatten().tolist(), *voxels.double().tolist()]
