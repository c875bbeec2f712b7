"""Build the network and its LightningModule from the settings, for a training and for its trial step."""

from __future__ import annotations

import numpy as np
import torch

from networks.deep_supervision import CoarseHeads
from pipeline.config.settings import Config
from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.training.lightning_module import SegmentationModule
from pipeline.training.network import network_of_settings
from pipeline.training.optimisation import Optimisation
from pipeline.training.schedule import Schedule
from transforms.io import label_values


def build_module(
    config: Config,
    *,
    in_channels: int,
    n_classes: int,
    class_weights: np.ndarray | None = None,
    ignores_voxels: bool = False,
    trust: bool = False,
) -> SegmentationModule:
    """Build the network, with weights drawn from torch's generator, inside the module that trains it.

    Args:
        config: which network, on which volumes or patches, and how it is trained.
        in_channels: image channels.
        n_classes: classes, background included.
        class_weights: (n_classes,) weights of the loss; None weighs all classes alike.
        ignores_voxels: whether labels mark voxels that the loss and the metric leave out.
        trust: import network classes from outside the registry's allow-list. The caller decides, never the settings.

    Raises:
        NetworkError: the network is unknown, not allowed, its arguments are wrong, or it has no levels to supervise.
    """
    data, training = config.data, config.training
    network = network_of_settings(config, in_channels=in_channels, n_classes=n_classes, trust=trust)
    return SegmentationModule(
        network,
        n_classes=n_classes,
        criterion=SlabDiceCELoss(
            None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32),
            label_values.ignore_index(n_classes) if ignores_voxels else None,
        ),
        # Drawn after the network's weights, which are thereby the same with and without them
        coarse_heads=CoarseHeads(network, n_classes) if training.deep_supervision else None,
        schedule=Schedule(training.lr, training.warmup_epochs, training.max_epochs, training.schedule),
        optimisation=Optimisation(training.optimizer, training.weight_decay, training.ema),
        seed=training.seed,
        compile_features=training.compile,
        skip_undefined=training.on_nan_loss == "skip",
        window=data.target_size if data.mode == "patch" else None,
    )
