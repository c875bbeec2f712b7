"""The verb "train": from settings to a finished run folder. Knows the order of things; the rooms below know how."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from rich.console import Console

from networks.registry import build_network, network_settings
from pipeline.class_weights import median_frequency_weights
from pipeline.config import Config, ConfigError, as_mapping
from pipeline.data import BodyData, PreparedData, prepare_data
from pipeline.devices import choose_devices, is_first_process
from pipeline.live import LiveProgress
from pipeline.module import SegmentationModule
from pipeline.progress import Bar
from pipeline.recorder import EventsLogger, RunRecorder, RunStopped, read_resume
from pipeline.run_folder import RunFolder, Status, now, run_name
from transforms import label_values

log = logging.getLogger(__name__)

RULE = "=" * 60
PACKAGES = ("torch", "monai", "pytorch-lightning", "numpy", "nibabel")
MAY_CHANGE_ON_RESUME = frozenset(
    {
        "experiment.log_dir",
        "data.num_workers",
        "data.cache_dir",
        "data.cache_limit_gb",
        "training.max_epochs",
        "training.n_gpus",
        "training.early_stopping_patience",
        "training.overlay_every",
        "training.compile",
        "model.checkpointing",
    }
)
"""Settings that do not change what the run is; the others are refused by name when a run is resumed."""


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
    network = _build_network(config, prepared)
    _say_parameters(network, say)
    devices = choose_devices(config)
    _write_config(folder, config, prepared, weights, network, devices, say)
    for line in (RULE, "Starting training...", RULE):
        say(line)

    module = _build_module(config, prepared, weights, network)
    recorder = _build_recorder(config, folder, prepared, network, state)
    data = BodyData(
        prepared,
        batch_size=config.data.batch_size,
        num_workers=config.data.num_workers,
        seed=config.training.seed,
        epoch=state["epochs_finished"] if state else 0,
    )
    _fit(config, folder, module, data, recorder, devices, console)
    _say_end(folder, recorder, say)
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
        _refuse_changed_settings(folder, config)
    if is_first_process():
        continues = folder.start(resume=resume, overwrite=overwrite)
    else:
        continues = resume and folder.resume_checkpoint.exists()
    return read_resume(folder.resume_checkpoint) if continues else None


def _refuse_changed_settings(folder: RunFolder, config: Config) -> None:
    before, wanted = folder.read_config(), as_mapping(config)
    for group, settings in wanted.items():
        for key, value in settings.items():
            old = before[group].get(key, value)
            if f"{group}.{key}" in MAY_CHANGE_ON_RESUME or old == value:
                continue
            if value is None and (group, key) in {("model", "n_classes"), ("training", "n_gpus")}:
                continue  # left to the data and the machine, then as now
            raise ConfigError(
                f"{group}.{key} is {value!r}, but the run in {folder.path} was started with {old!r}; "
                "a resumed run keeps it: give the old value, or start another run"
            )


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
    absent = _never_occurring(prepared)
    if absent:
        say(f"No training case holds {', '.join(absent)}: weight 0")
    return weights


def weight_stats(weights: np.ndarray) -> dict[str, float]:
    """Smallest, largest, mean and standard deviation over the classes that occur (the others weigh 0)."""
    used = weights[weights > 0]
    return {"min": float(used.min()), "max": float(used.max()), "mean": float(used.mean()), "std": float(used.std())}


def _never_occurring(prepared: PreparedData) -> list[str]:
    voxels = prepared.class_voxels().sum(axis=0)
    return [name for name, count in zip(prepared.dataset.class_names, voxels, strict=True) if count == 0]


def _build_network(config: Config, prepared: PreparedData) -> torch.nn.Module:
    return build_network(
        config.model.network,
        in_channels=prepared.in_channels,
        n_classes=prepared.n_classes,
        base_channels=config.model.base_channels,
        light=config.model.use_light_model,
        target_size=config.data.target_size,
        checkpointing=config.model.checkpointing,
    )


def _say_parameters(network: torch.nn.Module, say: Callable[[str], None]) -> None:
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    say(f"Total parameters: {sum(size for size, _ in sizes):,}")
    say(f"Trainable parameters: {sum(size for size, trains in sizes if trains):,}")


def _write_config(
    folder: RunFolder,
    config: Config,
    prepared: PreparedData,
    weights: np.ndarray | None,
    network: torch.nn.Module,
    devices: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    say("Saving training configuration...")
    document = as_mapping(config)
    # A resumed run started when it first started.
    before = folder.read_config()["experiment"] if folder.config.exists() else {}
    document["experiment"]["start_time"] = before.get("start_time", now())
    document["data"] |= {
        "intensity_found": prepared.intensity_found,
        "channel_names": list(prepared.dataset.channel_names),
        "split": {
            "source": prepared.split.source,
            "hash": prepared.split.hash,
            "sizes": {side: len(getattr(prepared.split, side)) for side in ("train", "val", "test")},
            **{side: list(getattr(prepared.split, side)) for side in ("train", "val", "test")},
        },
    }
    document["model"] |= {
        "n_classes": prepared.n_classes,
        "total_parameters": sum(p.numel() for p in network.parameters()),
        "network_settings": network_settings(network),
        "in_channels": prepared.in_channels,
        "class_names": list(prepared.dataset.class_names),
    }
    document["training"] |= {
        "n_gpus": devices["devices"] if devices["accelerator"] == "gpu" else 0,
        "effective_precision": devices["precision"],
    }
    document["loss"]["class_weights_stats"] = None if weights is None else weight_stats(weights)
    if weights is not None:
        document["loss"]["classes_that_never_occur"] = _never_occurring(prepared)
    document["system"] = {
        "pytorch_version": torch.__version__,
        "cuda_available": torch.cuda.is_available(),
        "cuda_version": torch.version.cuda,
        "python_version": sys.version.split()[0],
        "packages": {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
    }
    if is_first_process():
        folder.write_config(document)
    say(f"Training configuration saved to: {folder.config}")


# Training ---------------------------------------------------------------------------------------------------------


def _build_module(
    config: Config, prepared: PreparedData, weights: np.ndarray | None, network: torch.nn.Module
) -> SegmentationModule:
    training = config.training
    ignore_index = None
    if prepared.dataset.ignore_value is not None:
        ignore_index = label_values.ignore_index(prepared.n_classes)
    return SegmentationModule(
        network,
        n_classes=prepared.n_classes,
        class_weights=None if weights is None else torch.as_tensor(weights, dtype=torch.float32),
        lr=training.lr,
        weight_decay=training.weight_decay,
        warmup_epochs=training.warmup_epochs,
        max_epochs=training.max_epochs,
        schedule=training.schedule,
        seed=training.seed,
        ignore_index=ignore_index,
        compile_features=training.compile,
    )


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
    try:
        with _quiet_lightning(), _stop_on_signals(recorder):
            _trainer(config, folder, recorder, devices, console).fit(module, datamodule=data)
    except BaseException as error:
        if recorder.stop_reason:
            # Lightning also watches SIGTERM and may end the training first, with its own exception.
            _write_summary(folder, recorder, "interrupted", f"stopped by {recorder.stop_reason}")
            raise RunStopped(recorder.stop_reason) from error
        status: Status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
        _write_summary(folder, recorder, status, f"{type(error).__name__}: {error}")
        raise
    if recorder.stopped_early:
        patience = config.training.early_stopping_patience
        _write_summary(folder, recorder, "interrupted", f"val_mIoU has not risen for {patience} epochs")
    else:
        _write_summary(folder, recorder, "completed", None)


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


def _write_summary(folder: RunFolder, recorder: RunRecorder, status: Status, reason: str | None) -> None:
    if is_first_process():
        folder.write_summary(status, recorder.history, reason=reason)


@contextmanager
def _stop_on_signals(recorder: RunRecorder) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the training after the batch at hand; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if recorder.stop_reason:
            raise KeyboardInterrupt
        recorder.stop_reason = signal.Signals(number).name

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _say_end(folder: RunFolder, recorder: RunRecorder, say: Callable[[str], None]) -> None:
    best = recorder.history.best_val_miou
    for line in (
        RULE,
        "Training complete!" if not recorder.stopped_early else "Training stopped early: val mIoU no longer rises.",
        RULE,
        f"Best checkpoint: {folder.best_checkpoint}",
        f"Best val mIoU: {best:.4f}" if best is not None else "Best val mIoU: undefined",
        f"Training log: {folder.log}",
        f"Config file: {folder.config}",
        RULE,
        f"Training summary saved to: {folder.summary}",
        f"Training log saved to: {folder.log}",
    ):
        say(line)
