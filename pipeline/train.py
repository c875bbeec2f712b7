"""The verb "train": from settings to a finished run folder. Knows the order of things; the rooms below know how."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from rich.console import Console

from networks.registry import check_network, network_settings
from pipeline.cache.folder import one_at_a_time
from pipeline.compute.devices import choose_devices
from pipeline.compute.launcher import companions
from pipeline.compute.ranks import THIS_PROGRAM, is_first_process, place
from pipeline.config.settings import Config
from pipeline.console.progress import Bar
from pipeline.losses.class_weights import median_frequency_weights
from pipeline.runs.run_folder import RunFolder, run_name
from pipeline.runs.run_lock import only_training_in
from pipeline.training.build import configured_module, configured_network
from pipeline.training.datamodule import BodyData
from pipeline.training.ending import RULE, record_ending, record_lost, say_end
from pipeline.training.prepared_data import PreparedData, prepare_data
from pipeline.training.recorder import RunRecorder
from pipeline.training.resume import read_resume, refuse_changed_data, refuse_changed_settings, refuse_other_best
from pipeline.training.run_record import classes_that_never_occur, run_record, weight_stats
from pipeline.training.signals import RunStopped, stop_at_once_on_signals
from pipeline.training.trainer import configured_trainer, quiet_lightning

log = logging.getLogger(__name__)


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    say: Callable[[str], None] = log.info,
    console: Console | None = None,
) -> Path:
    """Train a network and leave the documented run folder.

    Where the settings ask for several processes and neither torchrun nor SLURM has started them, the others are
    started with this program's own command line. All of them call this; the first alone writes and says anything.

    Args:
        config: every setting.
        resume: go on where the last finished epoch of an interrupted run stood.
        overwrite: delete an earlier run of the same name first.
        trust: take network classes outside the registry's allow-list, too; their package's code then runs.
        say: takes the lines that training prints.
        console: where the progress bar goes.

    Returns:
        The run folder.

    Raises:
        FileError: the folder holds a run and neither `resume` nor `overwrite` is given, another process trains
            there, or the disk refuses.
        DatasetError, VolumeError, CacheError, NetworkError, ConfigError: what cannot be trained, in one line; nothing
            was written, and an earlier run not touched.
        TrainingError: the loss is no longer a number, memory ran out, a data worker failed; the summary says "failed".
        ProcessError: another process of the training has ended, or cannot be started.
        RunStopped: a signal asked to stop; the summary, if a batch was to be trained, says "interrupted".
    """
    console = console or _LastingConsole(file=sys.stderr)
    if not is_first_process():
        say = log.debug
    devices = choose_devices(config)
    check_network(config.model.network, trust=trust)
    folder = RunFolder(Path(config.experiment.log_dir), name_of(config))
    with stop_at_once_on_signals(), only_training_in(folder) if is_first_process() else nullcontext():
        state = _state_to_resume(folder, config, resume=resume, overwrite=overwrite)
        _say_beginning(folder, state, resume, say)
        pl.seed_everything(config.training.seed, verbose=False)
        say("Setting up data...")
        with _alone_on_this_machine(config, console), Bar("Preprocessing", console) as bar:
            prepared = prepare_data(
                config,
                lambda what, done, total: bar.update(done, total, what),
                skipped_before=folder.read_config()["data"].get("skipped_cases") if state else None,
            )
        _say_data(prepared, say)
        weights = _class_weights(config, prepared, say)
        say("Creating model...")
        network = configured_network(
            config, in_channels=prepared.in_channels, n_classes=prepared.n_classes, trust=trust
        )
        _say_parameters(network, say)
        record = run_record(config, prepared, weights, network, devices)
        module = configured_module(
            config,
            network,
            n_classes=prepared.n_classes,
            class_weights=weights,
            ignores_voxels=prepared.dataset.classes.ignore_value is not None,
        )
        recorder = _build_recorder(config, folder, prepared, network, state)
        data = BodyData(
            prepared,
            batch_size=config.data.batch_size,
            num_workers=config.data.num_workers,
            seed=config.training.seed,
            epoch=state["epochs_finished"] if state else 0,
        )
        _clear_folder(folder, record, resumes=state is not None)
        with (
            record_ending(folder, recorder, config),
            companions(devices["devices"], partial(record_lost, folder, recorder), orderly=RunStopped),
            quiet_lightning(),
        ):
            _write_record(folder, record, say)
            for line in (RULE, "Starting training...", RULE):
                say(line)
            configured_trainer(config, folder, recorder, devices, console).fit(module, datamodule=data)
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


class _LastingConsole(Console):
    """Goes on without a reader (`bodyseg train 2>&1 | head`), where rich would end the program."""

    def on_broken_pipe(self) -> None:
        """Print no more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


# Before the first batch -------------------------------------------------------------------------------------------


def _state_to_resume(folder: RunFolder, config: Config, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """Give the state to resume from, or None for a fresh start; FileError or ConfigError for neither."""
    if is_first_process():
        if not overwrite:
            folder.tidy()
        continues = folder.may_start(resume=resume, overwrite=overwrite)
    else:
        continues = resume and folder.resume_checkpoint.exists()
    if not continues:
        return None
    refuse_changed_settings(folder, config)
    state = read_resume(folder.resume_checkpoint)
    if is_first_process():
        refuse_other_best(folder, state)
    return state


def _say_beginning(folder: RunFolder, state: dict[str, Any] | None, resume: bool, say: Callable[[str], None]) -> None:
    for line in (RULE, f"Experiment: {folder.name}", f"Log directory: {folder.path}", RULE):
        say(line)
    if state:
        say(f"Resuming after {state['epochs_finished']} finished epochs")
    elif resume:
        say("Nothing to resume in that folder: beginning with epoch 0")


def _clear_folder(folder: RunFolder, record: dict[str, dict[str, Any]], *, resumes: bool) -> None:
    """Make the folder ready, now that nothing of the data or the settings can be refused any more."""
    if resumes:
        refuse_changed_data(folder, record)
        # A resumed run started when it first started.
        record["experiment"]["start_time"] = folder.read_config()["experiment"]["start_time"]
    if is_first_process():
        folder.make_ready(keep=resumes)


@contextmanager
def _alone_on_this_machine(config: Config, console: Console) -> Iterator[None]:
    """Let one process of a training prepare the data while those that torchrun or SLURM started beside it wait.

    Each machine has its own turn: its cache may lie on its own disk. Nobody waits in a collective meanwhile, which
    would give up after half an hour. What one has prepared the next one finds, and it has nothing to show for it.
    """
    here = place()
    if here.world_size == 1 or here.started_by == THIS_PROGRAM:
        console.quiet |= here.rank > 0
        yield
        return

    def waiting() -> None:
        console.print(f"Process {here.rank} waits for another one that prepares the data", highlight=False)
        console.quiet = True

    group = f"{socket.gethostname()} {here.address}:{here.port}"
    with one_at_a_time(Path(config.data.cache_dir), group, waiting):
        yield
    console.quiet = here.rank > 0


def _say_data(prepared: PreparedData, say: Callable[[str], None]) -> None:
    for case, reason in prepared.skipped.items():
        say(f"Skipping case {case}: {reason}")
    if prepared.n_warnings:
        say(f"Warnings about the data: {prepared.n_warnings}; bodyseg check explains them")
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


def _write_record(folder: RunFolder, record: dict[str, dict[str, Any]], say: Callable[[str], None]) -> None:
    say("Saving training configuration...")
    if is_first_process():
        folder.write_config(record)
    say(f"Training configuration saved to: {folder.config}")


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
            "class_names": list(prepared.dataset.classes.names),
            "channel_names": list(prepared.dataset.channel_names),
            "flips": list(config.data.flips),
        },
        class_names=prepared.dataset.classes.names,
        overlay_every=config.training.overlay_every,
        patience=config.training.early_stopping_patience,
        resume=state,
    )
