"""From settings to what learns: network and module, the same for a training and for its trial step. Knows no data."""

from __future__ import annotations

import numpy as np
import torch

from networks.registry import build_network
from pipeline.config.settings import Config
from pipeline.training.lightning_module import SegmentationModule
from transforms.io import label_values


def configured_network(config: Config, *, in_channels: int, n_classes: int, trust: bool = False) -> torch.nn.Module:
    """Build the network that the settings ask for, with weights drawn from torch's generator.

    `trust` takes classes outside the registry's allow-list, too: the caller's word, never the settings' own.
    Raises NetworkError.
    """
    return build_network(
        config.model.network,
        in_channels=in_channels,
        n_classes=n_classes,
        base_channels=config.model.base_channels,
        light=config.model.use_light_model,
        target_size=config.data.target_size,
        checkpointing=config.model.checkpointing,
        trust=trust,
    )


def configured_module(
    config: Config,
    network: torch.nn.Module,
    *,
    n_classes: int,
    class_weights: np.ndarray | None,
    ignores_voxels: bool = False,
) -> SegmentationModule:
    """Put a network into the module that trains it as the settings say.

    Args:
        config: the settings.
        network: what is trained.
        n_classes: with the background.
        class_weights: (n_classes,) weights of the loss; None: all alike.
        ignores_voxels: whether the labels mark voxels that count for nothing.
    """
    training = config.training
    return SegmentationModule(
        network,
        n_classes=n_classes,
        class_weights=None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32),
        lr=training.lr,
        weight_decay=training.weight_decay,
        warmup_epochs=training.warmup_epochs,
        max_epochs=training.max_epochs,
        schedule=training.schedule,
        seed=training.seed,
        ignore_index=label_values.ignore_index(n_classes) if ignores_voxels else None,
        compile_features=training.compile,
        skip_undefined=training.on_nan_loss == "skip",
    )
