"""A SegmentationModule of a few weights, batches for it, and a bare Trainer of one epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from networks.registry import build_network
from pipeline.training.lightning_module import SegmentationModule
from pipeline.training.optimisation import Optimisation
from pipeline.training.schedule import Schedule

SIZE = (8, 8, 8)

QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
]
"""Marks of tests that use the bare Trainer: it says what `quiet_lightning` silences in a training."""


def batches(n: int, *, broken: str | None = None) -> Iterator[dict[str, Any]]:
    """Batches of one case each; every voxel of the one named `broken` is infinite."""
    generator = torch.Generator().manual_seed(1)
    for number in range(n):
        image = torch.rand((1, 1, *SIZE), generator=generator)
        name = f"body_{number:02d}"
        yield {
            "image": image * (math.inf if name == broken else 1.0),
            "label": (image > 0.5).to(torch.uint8),
            "case": [name],
        }


def loader(n: int, *, broken: str | None = None) -> torch.utils.data.DataLoader:
    """The batches as Lightning takes them."""
    return torch.utils.data.DataLoader(list(batches(n, broken=broken)), batch_size=None)  # type: ignore[arg-type]


def module(n_classes: int = 2, **settings: Any) -> SegmentationModule:
    """Always the same weights."""
    torch.manual_seed(0)
    network = build_network(None, in_channels=1, n_classes=n_classes, base_channels=2, light=False, target_size=SIZE)
    chosen = {"schedule": Schedule(1e-2), "optimisation": Optimisation(weight_decay=0.1)} | settings
    return SegmentationModule(network, n_classes=n_classes, **chosen)


def trainer(folder: Path, *callbacks: pl.Callback, half: bool = False, **settings: Any) -> pl.Trainer:
    """A Trainer for one epoch on the CPU: in float32, or with scaled gradients as a GPU has them by default."""
    precision: dict[str, Any] = {"precision": "32-true"}
    if half:
        precision = {"plugins": [MixedPrecision("16-mixed", "cpu")]}
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        default_root_dir=folder,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **precision,
        **settings,
    )
