"""The verb "train": from settings to a finished run folder. Knows the order of things; the rooms below know how."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from rich.console import Console

from networks.registry import network_settings
from pipeline.class_weights import median_frequency_weights
from pipeline.config import Config
from pipeline.data import BodyData, PreparedData, prepare_data
from pipeline.devices import choose_devices, is_first_process
from pipeline.ending import RULE, record_ending, say_end
from pipeline.learner import configured_module, configured_network
from pipeline.live import LiveProgress
from pipeline.module import SegmentationModule
from pipeline.progress import Bar
from pipeline.recorder import EventsLogger, RunRecorder
from pipeline.resume import read_resume, refuse_changed_settings
from pipeline.run_folder import RunFolder, run_name
from pipeline.run_record import classes_that_never_occur, run_record, weight_stats

log = logging.getLogger(__name__)


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = log.info,
    console: Console | None = None,
) -> Path:
    """Train a network and leave the documented run folder.

    Args:
        config: every setting.
        resume: go on where the last finished epoch of an interrupted run stood.
        overwrite: delete an earlier run of the same name first.
        say: takes the lines that training prints.
        console: where the progress bar goes.

    Returns:
        The run folder.

    Raises:
        RunFolderError: the folder holds a run and neither `resume` nor `overwrite` is given.
        DatasetError, VolumeError, CacheError, NetworkError, ConfigError: what cannot be trained, in one line.
        TrainingError: the loss is no longer a number; the summary says "failed".
        RunStopped: a signal asked to stop; the summary says "interrupted".
    """
    if not is_first_process():
        say = log.debug
    console = console or Console(file=sys.stderr)
    folder = RunFolder(Path(config.experiment.log_dir), name_of(config))
    state = _open_folder(folder, config, resume=resume, overwrite=overwrite)
    for line in (RULE, f"Experiment: {folder.name}", f"Log directory: {folder.path}", RULE):
        say(line)
    if state:
        say(f"Resuming after {state['epochs_finished']} finished epochs")

    pl.seed_everything(config.training.seed, verbose=False)
    say("Setting up data...")
    with Bar("Preprocessing", console) as bar:
        prepared = prepare_data(config, lambda what, done, total: bar.update(done, total, what))
    _say_data(prepared, say)
    weights = _class_weights(config, prepared, say)
    say("Creating model...")
    network = configured_network(config, in_channels=prepared.in_channels, n_classes=prepared.n_classes)
    _say_parameters(network, say)
    devices = choose_devices(config)
    say("Saving training configuration...")
    _write_record(folder, run_record(config, prepared, weights, network, devices))
    say(f"Training configuration saved to: {folder.config}")
    for line in (RULE, "Starting training...", RULE):
        say(line)

    module = configured_module(
        config,
        network,
        n_classes=prepared.n_classes,
        class_weights=weights,
        ignores_voxels=prepared.dataset.ignore_value is not None,
    )
    recorder = _build_recorder(config, folder, prepared, network, state)
    data = BodyData(
        prepared,
        batch_size=config.data.batch_size,
        num_workers=config.data.num_workers,
        seed=config.training.seed,
        epoch=state["epochs_finished"] if state else 0,
    )
    _fit(config, folder, module, data, recorder, devices, console)
    say_end(folder, recorder, say)
    return folder.path


def name_of(config: Config) -> str:
    """The run folder's name, from the documented parts."""
    return run_name(
        name=config.experiment.name,
        batch_size=config.data.batch_size,
        lr=config.training.lr,
        base_channels=config.model.base_channels,
        weight_alpha=config.loss.weight_alpha if config.loss.use_class_weights else None,
        data_aug=config.data.data_aug,
        light=config.model.use_light_model,
    )


# Before the first batch -------------------------------------------------------------------------------------------


def _open_folder(folder: RunFolder, config: Config, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """Make the folder ready; give the state to resume from, or None for a fresh start."""
    if resume and folder.config.exists():
        refuse_changed_settings(folder, config)
    if is_first_process():
        continues = folder.start(resume=resume, overwrite=overwrite)
    else:
        continues = resume and folder.resume_checkpoint.exists()
    return read_resume(folder.resume_checkpoint) if continues else None


def _say_data(prepared: PreparedData, say: Callable[[str], None]) -> None:
    counts = {"train": len(prepared.train), "val": len(prepared.val)}
    for side, count in counts.items():
        say(f"BodyDataset [{side}]: {count} samples")
    say(f"Train samples: {counts['train']}")
    say(f"Val samples: {counts['val']}")
    found = prepared.intensity_found
    say(f"Intensities: {found['intensity']} ({found['because']})")


def _class_weights(config: Config, prepared: PreparedData, say: Callable[[str], None]) -> np.ndarray | None:
    if not config.loss.use_class_weights:
        return None
    say("Computing class frequencies...")
    weights = median_frequency_weights(prepared.class_voxels(), float(config.loss.weight_alpha or 0.0))
    stats = weight_stats(weights)
    say(f"Class weights - min: {stats['min']:.3f}, max: {stats['max']:.3f}, mean: {stats['mean']:.3f}")
    absent = classes_that_never_occur(prepared)
    if absent:
        say(f"No training case holds {', '.join(absent)}: weight 0")
    return weights


def _say_parameters(network: torch.nn.Module, say: Callable[[str], None]) -> None:
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    say(f"Total parameters: {sum(size for size, _ in sizes):,}")
    say(f"Trainable parameters: {sum(size for size, trains in sizes if trains):,}")


def _write_record(folder: RunFolder, record: dict[str, dict[str, Any]]) -> None:
    if folder.config.exists():
        # A resumed run started when it first started.
        record["experiment"]["start_time"] = folder.read_config()["experiment"]["start_time"]
    if is_first_process():
        folder.write_config(record)


# Training ---------------------------------------------------------------------------------------------------------


def _build_recorder(
    config: Config,
    folder: RunFolder,
    prepared: PreparedData,
    network: torch.nn.Module,
    state: dict[str, Any] | None,
) -> RunRecorder:
    return RunRecorder(
        folder,
        checkpoint={
            "run": folder.name,
            "network": network_settings(network),
            "preprocessing": prepared.preprocessing,
            "class_names": list(prepared.dataset.class_names),
            "channel_names": list(prepared.dataset.channel_names),
        },
        class_names=prepared.dataset.class_names,
        overlay_every=config.training.overlay_every,
        patience=config.training.early_stopping_patience,
        resume=state,
    )


def _fit(
    config: Config,
    folder: RunFolder,
    module: SegmentationModule,
    data: BodyData,
    recorder: RunRecorder,
    devices: dict[str, Any],
    console: Console,
) -> None:
    """Run Lightning; whatever happens, write how it ended."""
    with record_ending(folder, recorder, config.training.early_stopping_patience), _quiet_lightning():
        _trainer(config, folder, recorder, devices, console).fit(module, datamodule=data)


def _trainer(
    config: Config, folder: RunFolder, recorder: RunRecorder, devices: dict[str, Any], console: Console
) -> pl.Trainer:
    return pl.Trainer(
        **devices,
        max_epochs=config.training.max_epochs,
        accumulate_grad_batches=config.training.accumulate,
        gradient_clip_val=config.training.gradient_clip or None,
        logger=EventsLogger(save_dir=folder.path.parent, name=folder.name),
        callbacks=[recorder, LiveProgress(console)],
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice where this pipeline has decided otherwise for a reason."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # How many workers prepare batches is the user's setting, and the cache makes few enough.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # An epoch of a small data set may have fewer steps than Lightning's logging interval.
            warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
            # Lightning 2.6 asks torch 2.13's pytree in a way that torch has since renamed.
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        logger.setLevel(level)
