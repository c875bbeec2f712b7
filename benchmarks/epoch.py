"""A whole epoch on a small real data set: `bodyseg train` against a plain MONAI and PyTorch loop.

Both train the same network on the same cases at the same size, augment, and validate by the run folder's val_mIoU; ours
also writes its run folder. Each trains in its own precision, which is among the facts: MONAI's tutorials in float32.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.transforms import (
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    Resized,
    ScaleIntensityRangePercentilesd,
)

from benchmarks.augmentation import monai_chain
from benchmarks.measure import following, resident_bytes
from benchmarks.measurement import Measurement
from networks.body_net import BodyNet
from pipeline.compute.memory import forget_peak, peak_memory_bytes
from pipeline.config.files import from_mapping, load_mapping
from pipeline.config.settings import Config
from pipeline.datasets.dataset import Dataset as ListedDataset
from pipeline.datasets.listing import list_cases
from pipeline.files.json_files import read_json
from pipeline.metrics.overlap import mean_iou
from pipeline.runs.run_folder import RunFolder, run_name
from pipeline.train import train
from transforms.chains import RAS

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "hippocampus.yaml"


def ours(folder: str, dataset_root: str, n_epochs: int, base_channels: int = 16) -> Measurement:
    """Time between the epochs' entries in training_log.json, as they appear."""
    config = _config(folder, dataset_root, n_epochs, base_channels)
    run = RunFolder.at(Path(config.experiment.log_dir, run_name(config)))
    finished: dict[int, float] = {}
    forget_peak()
    before = resident_bytes()
    with following(run.log, lambda n: finished.setdefault(n, time.perf_counter())):
        train(config, overwrite=True)
    history, training = read_json(run.log)["training_history"], run.read_config()["training"]
    return _measurement(finished, before, _facts(history["val_mIoU"][-1], training["effective_precision"]))


def plain(folder: str, dataset_root: str, n_epochs: int, base_channels: int = 16) -> Measurement:
    """Logits, DiceCELoss and AdamW in float32 on a CacheDataset; DiceMetric on one-hot maps, as MONAI's tutorials."""
    config = _config(folder, dataset_root, n_epochs, base_channels)
    dataset = list_cases(config.data.dataset_root)
    n_classes = len(dataset.classes.names)
    forget_peak()
    before = resident_bytes()
    train_loader, val_loader = _loaders(config, dataset)
    torch.manual_seed(config.training.seed)
    network = BodyNet(1, n_classes, config.model.base_channels)
    optimiser = torch.optim.AdamW(network.parameters(), config.training.lr, weight_decay=config.training.weight_decay)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    finished, score = dict[int, float](), float("nan")
    for epoch in range(1, n_epochs + 1):
        network.train()
        for batch in train_loader:
            optimiser.zero_grad()
            criterion(network(batch["image"].as_tensor()), batch["label"].as_tensor()).backward()
            optimiser.step()
        score = _validate(network.eval(), val_loader, n_classes)
        finished[epoch] = time.perf_counter()
    return _measurement(finished, before, _facts(score, "32-true"))


@torch.no_grad()
def _validate(network: torch.nn.Module, loader: DataLoader, n_classes: int) -> float:
    """The run folder's val_mIoU: IoU from the Dice of each case and structure, averaged over cases, then structures."""
    metric = DiceMetric(include_background=False, reduction="none")
    segment, encode = AsDiscrete(argmax=True, to_onehot=n_classes), AsDiscrete(to_onehot=n_classes)
    for batch in loader:
        logits = network(batch["image"].as_tensor())
        prediction, reference = decollate_batch(logits), decollate_batch(batch["label"].as_tensor())
        metric([torch.as_tensor(segment(x)) for x in prediction], [torch.as_tensor(encode(y)) for y in reference])
    return mean_iou(torch.as_tensor(metric.aggregate()))[0]


def _loaders(config: Config, dataset: ListedDataset) -> tuple[DataLoader, DataLoader]:
    keys, size = ["image", "label"], list(config.data.target_size)
    chain = Compose(
        [
            LoadImaged(keys, reader="NibabelReader"),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=RAS),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True),
            Resized(keys, spatial_size=size, mode=["trilinear", "nearest-exact"]),
        ]
    )
    assert dataset.split is not None  # _write_list says it
    items = {case.id: {"image": str(case.image[0]), "label": str(case.label)} for case in dataset.cases}
    parts = [[items[case] for case in cases] for cases in (dataset.split.train, dataset.split.val)]
    training, validation = (CacheDataset(part, chain, progress=False, num_workers=1) for part in parts)
    augmented = Dataset(training, monai_chain(size, spatial=0.75, intensity=0.2))  # type: ignore[arg-type]  # typed as a Sequence, only indexed
    return DataLoader(augmented, batch_size=config.data.batch_size, shuffle=True), DataLoader(validation)


def _write_list(folder: str, dataset_root: str) -> Path:
    """Write a list that splits the cases for both methods alike: 80 % to train, 10 % to validate."""
    dataset, path = list_cases(dataset_root), Path(folder, "cases.json")
    order, n_cases = np.random.default_rng(0).permutation(len(dataset.cases)), len(dataset.cases)
    splits = ["train"] * round(0.8 * n_cases) + ["val"] * round(0.1 * n_cases)
    split_of = dict(zip(order.tolist(), splits, strict=False))
    cases = [
        {"case": case.id, "image": [str(file.resolve()) for file in case.image], "split": split_of.get(n, "test")}
        | {"label": str(Path(str(case.label)).resolve())}
        for n, case in enumerate(dataset.cases)
    ]
    labels = dict(zip(dataset.classes.names, dataset.classes.values, strict=True))
    listed = {"cases": cases, "labels": labels, "channel_names": list(dataset.channel_names)}
    path.write_text(json.dumps(listed), encoding="utf-8")
    return path


def _config(folder: str, dataset_root: str, n_epochs: int, base_channels: int) -> Config:
    """The shipped settings of the small data set, for a few epochs; a new folder for every run, its cache included."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(dir=folder)
    config = from_mapping(load_mapping(CONFIG))
    listed = str(_write_list(folder, dataset_root))
    data = dataclasses.replace(config.data, dataset_root=listed, cache_dir=str(Path(folder, "cache")))
    # AdamW on both sides, at a rate of its own.
    training = dataclasses.replace(
        config.training, optimizer="adamw", lr=2e-3, weight_decay=1e-4, max_epochs=n_epochs, warmup_epochs=0
    )
    experiment = dataclasses.replace(config.experiment, log_dir=str(Path(folder, "logs")))
    model = dataclasses.replace(config.model, base_channels=base_channels)
    return dataclasses.replace(config, model=model, data=data, training=training, experiment=experiment)


def _facts(val_miou: float, precision: str) -> dict[str, Any]:
    return {"precision": precision, "val_mIoU": float(val_miou)}


def _measurement(finished: dict[int, float], before: int, facts: dict[str, Any]) -> Measurement:
    """Epochs from the second on, from when each ended: the first one also sets up."""
    peak = peak_memory_bytes()
    if sorted(finished) != list(range(1, len(finished) + 1)):
        raise ValueError(f"epochs: expected each to be seen once as it ended, found {list(finished)}")
    ends = [finished[epoch] for epoch in sorted(finished)]
    return Measurement([b - a for a, b in pairwise(ends)], max(0, peak - before), peak, [], facts)
