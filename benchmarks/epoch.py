"""A whole epoch on a small real data set: `bodyseg train` against a plain MONAI and PyTorch loop.

Both train the same network on as many cases of the same size, augment and validate; ours also writes its run folder.
"""

from __future__ import annotations

import dataclasses
import json
import threading
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
from benchmarks.measure import Measurement, forget_peak, peak_bytes, resident_bytes
from networks.body_net import BodyNet
from pipeline.cases import list_cases
from pipeline.config import Config, from_mapping, load_mapping
from pipeline.train import name_of, train
from transforms.chains import RAS

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "hippocampus.yaml"
LOOK_EVERY_S = 0.01


def ours(folder: str, dataset_root: str, n_epochs: int, base_channels: int = 16) -> Measurement:
    """Time between the epochs' entries in training_log.json, which a thread follows as a person would."""
    config = _config(folder, dataset_root, n_epochs, base_channels)
    log = Path(config.experiment.log_dir, name_of(config), "training_log.json")
    finished: dict[int, float] = {}
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(log, finished, done))
    forget_peak()
    before = resident_bytes()
    follower.start()
    try:
        train(config, overwrite=True)
        _note(log, finished)
    finally:
        done.set()
        follower.join()
    history = json.loads(log.read_text())["training_history"]
    return _measurement(list(finished.values()), before, {"val_mIoU": history["val_mIoU"][-1]})


def _follow(log: Path, finished: dict[int, float], done: threading.Event) -> None:
    while not done.wait(LOOK_EVERY_S):
        _note(log, finished)


def _note(log: Path, finished: dict[int, float]) -> None:
    """Note when the log first tells of an epoch."""
    if log.exists():
        n_epochs = len(json.loads(log.read_text())["training_history"]["epoch"])
        if n_epochs:
            finished.setdefault(n_epochs, time.perf_counter())


def plain(folder: str, dataset_root: str, n_epochs: int, base_channels: int = 16) -> Measurement:
    """Logits, DiceCELoss and AdamW in float32 on a CacheDataset; DiceMetric on one-hot maps, as MONAI's tutorials."""
    config = _config(folder, dataset_root, n_epochs, base_channels)
    dataset = list_cases(Path(dataset_root))
    n_classes, size = len(dataset.class_names), config.data.target_size
    forget_peak()
    before = resident_bytes()
    train_loader, val_loader = _loaders(config, [_item(case) for case in dataset.cases])
    torch.manual_seed(config.training.seed)
    network = BodyNet(1, n_classes, config.model.base_channels)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.training.lr)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    finished, dice = [], float("nan")
    for _ in range(n_epochs):
        network.train()
        for batch in train_loader:
            optimiser.zero_grad()
            criterion(network(batch["image"].as_tensor()), batch["label"].as_tensor()).backward()
            optimiser.step()
        dice = _validate(network.eval(), val_loader, n_classes)
        finished.append(time.perf_counter())
    return _measurement(finished, before, {"val_dice": dice, "size": list(size)})


@torch.no_grad()
def _validate(network: torch.nn.Module, loader: DataLoader, n_classes: int) -> float:
    metric = DiceMetric(include_background=False)
    segment, encode = AsDiscrete(argmax=True, to_onehot=n_classes), AsDiscrete(to_onehot=n_classes)
    for batch in loader:
        logits = network(batch["image"].as_tensor())
        prediction, reference = decollate_batch(logits), decollate_batch(batch["label"].as_tensor())
        metric([torch.as_tensor(segment(x)) for x in prediction], [torch.as_tensor(encode(y)) for y in reference])
    return float(torch.as_tensor(metric.aggregate()))


def _loaders(config: Config, items: list[dict[str, str]]) -> tuple[DataLoader, DataLoader]:
    """80 % of the cases to train and 10 % to validate, as ours."""
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
    order = np.random.default_rng(0).permutation(len(items))
    n_train, n_val = round(0.8 * len(items)), round(0.1 * len(items))
    parts = [[items[i] for i in order[:n_train]], [items[i] for i in order[n_train : n_train + n_val]]]
    training, validation = (CacheDataset(part, chain, progress=False, num_workers=1) for part in parts)
    augmented = Dataset(training, monai_chain(size, spatial=0.75, intensity=0.2))  # type: ignore[arg-type]  # it wants a Sequence, and indexes only
    return DataLoader(augmented, batch_size=config.data.batch_size, shuffle=True), DataLoader(validation)


def _item(case: Any) -> dict[str, str]:
    return {"image": str(case.image[0]), "label": str(case.label)}


def _config(folder: str, dataset_root: str, n_epochs: int, base_channels: int) -> Config:
    """The shipped settings of the small data set, for a few epochs in a folder of its own."""
    config = from_mapping(load_mapping(CONFIG))
    data = dataclasses.replace(config.data, dataset_root=dataset_root, cache_dir=str(Path(folder, "cache")))
    training = dataclasses.replace(config.training, max_epochs=n_epochs, warmup_epochs=0)
    experiment = dataclasses.replace(config.experiment, log_dir=str(Path(folder, "logs")))
    model = dataclasses.replace(config.model, base_channels=base_channels)
    return dataclasses.replace(config, model=model, data=data, training=training, experiment=experiment)


def _measurement(finished: list[float], before: int, facts: dict[str, Any]) -> Measurement:
    """Epochs from the second on: the first one also sets up."""
    peak = peak_bytes()
    return Measurement([b - a for a, b in pairwise(finished)], max(0, peak - before), peak, [], facts)
