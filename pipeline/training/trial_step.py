"""Take one real training step and validation at the configured size, on random voxels, and measure time and memory.

Runs as a program of its own, `python -m pipeline.training.trial_step`, with a JSON object on its input and one on its
output, see `compute.measuring`. Reads no data set.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from pipeline.compute.devices import choose_devices, shared_threads
from pipeline.compute.measuring import begin_measurement, clock_s, peak_bytes
from pipeline.config.files import from_mapping
from pipeline.config.settings import Config
from pipeline.console.text import one_line
from pipeline.training.build import build_module
from pipeline.training.cost import Trial
from pipeline.training.network import refuse_network
from transforms.slabs import segmentation_dtype

N_STEPS = 3  # the first one warms up: kernels are chosen, the optimiser's state is made


class _Clock(pl.Callback):
    """Measures every training step and the last validation."""

    def __init__(self) -> None:
        self.started = 0.0
        self.validation_s = 0.0
        self.steps_s: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = clock_s()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps_s.append(clock_s() - self.started)

    def on_validation_batch_start(self, *_: Any) -> None:
        self.started = clock_s()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validation_s = clock_s() - self.started


def take_step(config: Config, *, in_channels: int, n_classes: int, trust: bool = False) -> Trial:
    """Train for three batches and validate one case as `config` says, on one device; smaller patches before the final
    ones are tried by their shapes alone.

    Args:
        config: the settings.
        in_channels: image channels.
        n_classes: classes with the background.
        trust: take network classes from any package.

    Raises:
        NetworkError: the network is unknown, not allowed, its arguments are wrong, or it cannot be trained on patches
            of a stage.
        ConfigError: more GPUs are asked for than the machine has.
    """
    training = config.training
    if config.data.patch_growth:
        refuse_network(config, in_channels=in_channels, n_classes=n_classes, trust=trust)
    chosen = choose_devices(training.n_gpus, training.n_processes, training.precision)
    devices = replace(chosen, per_machine=1, n_machines=1)
    module = build_module(
        config,
        in_channels=in_channels,
        n_classes=n_classes,
        class_weights=np.ones(n_classes) if config.loss.use_class_weights else None,
        trust=trust,
    )
    item = _random_item(config.data.target_size, in_channels, n_classes)
    items: Any = [item] * (N_STEPS * config.data.batch_size)  # a list will do for a Dataset
    clock = _Clock()
    trainer = pl.Trainer(
        **devices.trainer_arguments(),
        plugins=[LightningEnvironment()],
        max_epochs=1,
        gradient_clip_val=config.training.gradient_clip or None,
        callbacks=[clock],
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with shared_threads(chosen.per_machine):
        trainer.fit(module, DataLoader(items, batch_size=config.data.batch_size), DataLoader(items[:1]))
        return Trial(min(clock.steps_s[1:]), clock.validation_s, peak_bytes(), _device_name(), devices.precision)


def _random_item(size: tuple[int, int, int], in_channels: int, n_classes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((in_channels, *size), generator=generator)
    return {
        "image": image,
        "label": torch.randint(n_classes, (1, *size), generator=generator, dtype=segmentation_dtype(n_classes)),
        "case": "trial",
    }


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else f"{torch.get_num_threads()} CPU threads"


def main() -> int:
    """Read {"config", "in_channels", "n_classes", "trust"}, print the trial or {"error": one line}."""
    request = begin_measurement()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    try:
        trial = take_step(from_mapping(request.pop("config")), **request)
    except Exception as error:
        print(json.dumps({"error": one_line(f"{type(error).__name__}: {error}")}))
        return 1
    print(json.dumps(asdict(trial)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
