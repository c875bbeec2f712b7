"""The command "train": from settings to a finished run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from rich.console import Console

from networks.registry import network_settings
from pipeline.checks.findings import errors
from pipeline.checks.screening import list_configured
from pipeline.compute.devices import Devices, choose_devices, shared_threads
from pipeline.compute.launcher import Others, launch, others_ready
from pipeline.compute.measuring import begin_peak
from pipeline.compute.memory import available_cores, shared_memory
from pipeline.compute.ranks import is_first_process
from pipeline.compute.signals import Stopped, stop_at_once_on_signals
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config, ConfigError, DataConfig
from pipeline.console.progress import Bar
from pipeline.console.terminal import standard_error
from pipeline.console.text import some_of
from pipeline.losses.class_weights import median_frequency_weights
from pipeline.runs.console_log import ConsoleLog
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder, run_name
from pipeline.runs.run_lock import only_training_in
from pipeline.runs.study import is_study_folder
from pipeline.training.build import build_module
from pipeline.training.checkpoint import CheckpointDescription
from pipeline.training.data_workers import DataWorkers, batch_bytes, choose_data_workers
from pipeline.training.datamodule import BodyData
from pipeline.training.early_stopping import early_stop_reason
from pipeline.training.ending import RULE, record_ending, record_lost, say_end
from pipeline.training.handed_over import HandOver, in_turn
from pipeline.training.lightning_module import SegmentationModule
from pipeline.training.network import check_settings, refuse_network
from pipeline.training.patch_schedule import PatchSchedule
from pipeline.training.prepared_data import PreparedData, prepare_data, say_who_augments
from pipeline.training.recorder import RunRecorder
from pipeline.training.resume import (
    ResumeState,
    keep_what_was_found,
    kept_intensity,
    read_resume,
    refuse_changed_cases,
    refuse_changed_data,
    refuse_changed_settings,
    refuse_interrupted_neighbours,
    refuse_other_best,
)
from pipeline.training.run_record import absent_classes, run_document, weight_stats
from pipeline.training.signals import StopRequest
from pipeline.training.start_from import Start, keep_scaling, plan_start, take_over, treatment
from pipeline.training.start_source import Fitting, read_source, refuse_other_network
from pipeline.training.trackers import refuse_missing
from pipeline.training.trainer import build_trainer, quiet_lightning
from transforms.axes import LEFT_RIGHT
from transforms.left_right import find_sides

log = logging.getLogger(__name__)

Say = Callable[[str], None]


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    folder: RunFolder | None = None,
    auto_is_new: bool = False,
    asked: StopRequest | None = None,
    say: Say = log.info,
    console: Console | None = None,
) -> Path:
    """Train a network and leave the documented run folder.

    Where the settings ask for several processes and neither torchrun nor SLURM has started them, the others are
    started with this program's own command line. All of them call this; only the first writes files and prints.

    Args:
        config: every setting.
        resume: continue an interrupted run after its last finished epoch.
        overwrite: delete an earlier run of the same name first.
        trust: import network classes from outside the registry's allow-list; their package's code then runs.
        folder: the run's; None: as the settings name it.
        auto_is_new: whether "auto" in data.window and data.mean_std asks for another choice than that of the run which
            training.start_from names, as it does on the command line, where what is not given is that run's already.
        asked: takes the signal that came as the training ended anyway, too late to stop it.
        say: takes the lines that training prints.
        console: where the progress bar goes.

    Returns:
        The run folder.

    Raises:
        FileError: the folder holds a run and neither `resume` nor `overwrite` is given, another process trains
            there, or the disk refuses.
        DatasetError, VolumeError, CacheError, NetworkError, ConfigError: what cannot be trained, in one line; nothing
            was written, and an earlier run not touched.
        TrainingError: the loss is NaN or infinite, memory ran out, a data worker failed; the summary says "failed".
        ProcessError: another process of the training has ended, or cannot be started.
        Stopped: a signal asked to stop; once training has begun, the summary says "interrupted".
    """
    console = console or standard_error()
    if not is_first_process():
        say = log.debug
    begin_peak()
    folder = folder or RunFolder(Path(config.experiment.log_dir), run_name(config))
    devices = choose_devices(config.training.n_gpus, config.training.n_processes, config.training.precision)
    check_settings(config, trust=trust)
    if is_first_process():
        refuse_missing(config.experiment.logger)
    alone = only_training_in(folder) if is_first_process() else nullcontext()
    console_log = ConsoleLog(folder.console_log if is_first_process() else None)
    say = console_log.beside(say)
    with (
        console_log.recording(),
        stop_at_once_on_signals(),
        alone,
        shared_threads(devices.per_machine),
        others_ready(devices.per_machine) as others,
        HandOver(devices.per_machine) as handed,
    ):
        state = _state_to_resume(folder, config, resume=resume, overwrite=overwrite)
        fitting = _weights_to_start_from(folder, config, trust=trust) if state is None else None
        if fitting is not None and not auto_is_new:
            config = keep_scaling(config, fitting.source)
        _say_beginning(folder, state, resume, say)
        if state is not None and folder.has_ended and (early_stop := early_stop_reason(state.log, config)):
            say("Nothing is left to train; a larger --training.early_stopping_patience lets it go on")
            say_end(folder, state.log, early_stop, say)
            return folder.path
        try:
            setup = _set_up(config, devices, folder, state, fitting, handed, trust=trust, say=say, console=console)
        except Stopped as stop:
            raise Stopped(str(stop), "nothing was trained yet: repeat the command; prepared cases are kept") from stop
        del fitting  # its weights are the network's now
        if state is not None:
            refuse_changed_data(folder, setup.document)
            refuse_changed_cases(folder, state, setup.recorder.contents)
            _say_other_threads(folder, setup.document, say)
        if is_first_process():
            folder.make_ready(keep=state is not None)
        console_log.begin()
        _fit(devices, setup, others, say=say, console=console, record=console_log.line)
        _say_smaller_patches(config.data, setup.recorder.history, say)
        say_end(folder, setup.recorder.history, setup.recorder.early_stop, say)
    if asked is not None:
        asked.reason = setup.recorder.stop_request.reason
    return folder.path


# The beginning: what the run folder holds -----------------------------------------------------------------------------


def _state_to_resume(folder: RunFolder, config: Config, *, resume: bool, overwrite: bool) -> ResumeState | None:
    """Return the state to resume from, None for a new training; raises FileError or ConfigError for neither."""
    if is_first_process():
        if not overwrite:
            folder.tidy()
        continues = folder.may_start(resume=resume, overwrite=overwrite)
        if resume and folder.state == "absent":
            _refuse_study(config, folder)
            refuse_interrupted_neighbours(folder, as_mapping(config))
    else:
        continues = resume and folder.resume_checkpoint.exists()
    if not continues:
        return None
    state = read_resume(folder.resume_checkpoint)
    refuse_changed_settings(folder, as_mapping(config), may_move_data=bool(state.contents))
    if config.training.max_epochs < state.epochs_finished:
        raise ConfigError(
            f"training.max_epochs is {config.training.max_epochs}, but {folder.path} has finished "
            f"{state.epochs_finished} epochs already; give the number of all epochs, {state.epochs_finished} or more"
        )
    validated = state.log.validated_epochs
    if validated and validated[-1] + 1 < config.training.max_epochs == state.epochs_finished:
        raise ConfigError(
            f"training.max_epochs is {state.epochs_finished}, and {folder.path} has finished as many, the last of them "
            f"without a validation, so that its weights would be lost; give {state.epochs_finished + 1} or more"
        )
    if is_first_process():
        refuse_other_best(folder, state)
    return state


def _refuse_study(config: Config, folder: RunFolder) -> None:
    """Raise ConfigError where the run to resume may be a fold of a cross-validation, as earlier versions named them."""
    study = Path(config.experiment.log_dir, config.experiment.name)
    if is_study_folder(study) and folder.path.parent != study:
        raise ConfigError(
            f"--resume: there is no run in {folder.path}, but a cross-validation in {study}: go on with its folds by "
            "bodyseg cross-validate and the settings it was begun with; leave --resume out to start a run beside it"
        )


def _weights_to_start_from(folder: RunFolder, config: Config, *, trust: bool) -> Fitting | None:
    """Read what a new training starts from; None: nothing. Raises NetworkError or ConfigError where it cannot."""
    if config.training.start_from is None:
        return None
    source = read_source(config.training.start_from)
    if source.path.resolve().is_relative_to(folder.path.resolve()):
        raise ConfigError(
            f"training.start_from {config.training.start_from}: the new run would replace the one that it starts from; "
            "give it another --exp_name"
        )
    return refuse_other_network(source, config, trust=trust)


def _say_other_threads(folder: RunFolder, document: dict[str, dict[str, Any]], say: Say) -> None:
    """A sum over other shares is another in its last bits, and trainings that differ in a bit drift apart."""
    before, now = folder.read_config()["system"].get("threads"), document["system"]["threads"]
    if before not in (None, now):
        say(f"Started with {before} threads, now {now}: the results may differ from those of an uninterrupted run")


def _say_smaller_patches(data: DataConfig, history: TrainingLog, say: Say) -> None:
    """Warn where the best epoch is one of smaller patches than the final ones, although these were trained, too."""
    best, grown = history.best_epoch, PatchSchedule.from_settings(data).n_growth_epochs
    if best is not None and best < grown < len(history):
        say(
            f"Warning: the best epoch, {best}, had smaller patches than data.target_size, the size from epoch {grown} "
            "on: train more epochs at that size"
        )


def _say_beginning(folder: RunFolder, state: ResumeState | None, resume: bool, say: Say) -> None:
    for line in (RULE, f"Experiment: {folder.name}", f"Log directory: {folder.path}", RULE):
        say(line)
    if state is not None:
        say(f"Resuming after {state.epochs_finished} finished epochs")
    elif resume:
        say("Nothing to resume in that folder: beginning with epoch 0")
    if state is None and (curves := sorted(path.name for path in folder.path.glob("version_*"))):
        say(f"TensorBoard curves of earlier trainings are kept: {some_of(curves, 3)}; delete what is not wanted")


# Setup: data, network, recorder; nothing is written into the run folder -----------------------------------------------


@dataclass(frozen=True)
class _Setup:
    """What a training consists of."""

    module: SegmentationModule
    data: BodyData
    recorder: RunRecorder
    document: dict[str, dict[str, Any]]
    """training_config.json."""


def _set_up(
    config: Config,
    devices: Devices,
    folder: RunFolder,
    state: ResumeState | None,
    fitting: Fitting | None,
    handed: HandOver,
    *,
    trust: bool,
    say: Say,
    console: Console,
) -> _Setup:
    pl.seed_everything(config.training.seed, verbose=False)
    say("Setting up data...")
    before = folder.read_config() if state is not None else None
    if before is not None:
        config = keep_what_was_found(config, before)
    data = say_who_augments(config.data, on_gpu=devices.n_gpus > 0, before=before and before["data"])
    prepared, start = _prepare(replace(config, data=data), before, fitting, handed, console, trust=trust)
    _say_data(prepared, say)
    if LEFT_RIGHT in config.data.flips:
        names = prepared.dataset.classes.names
        say(f"Mirrored from left to right: {find_sides(names, config.data.sided_pairs).in_words(names)}")
    class_weights = None
    if config.loss.use_class_weights:
        class_weights = _class_weights(prepared, float(config.loss.weight_alpha or 0.0), say)
    module = _build(config, prepared, class_weights, trust=trust, say=say)
    started_from = _take_over(start, before, module, prepared, config, say)
    epoch = state.epochs_finished if state is not None else 0
    document = run_document(
        config, prepared, module.network, devices, class_weights, started_from, before=before, epoch=epoch
    )
    return _Setup(
        module=module,
        data=BodyData(
            prepared,
            batch_size=config.data.batch_size,
            workers=_data_workers(config, devices, prepared, say),
            seed=config.training.seed,
            epoch=epoch,
        ),
        recorder=RunRecorder(
            folder,
            CheckpointDescription(
                run=folder.name,
                network=network_settings(module.network),
                preprocessing=prepared.preprocessing,
                class_names=prepared.dataset.classes.names,
                channel_names=prepared.dataset.channel_names,
                flips=config.data.flips,
                sided_pairs=config.data.sided_pairs,
                precision=devices.precision,
                scans=prepared.scans,
            ),
            config,
            resume=state,
            contents=prepared.contents(),
        ),
        document=document,
    )


def _prepare(
    config: Config,
    before: Mapping[str, Any] | None,
    fitting: Fitting | None,
    handed: HandOver,
    console: Console,
    *,
    trust: bool,
) -> tuple[PreparedData, Start | None]:
    """Take the data that another process of this machine has prepared, else prepare them and leave them for others."""
    with in_turn(Path(config.data.cache_dir), console), Bar("Preprocessing", console) as bar:
        prepared = handed.take(config)
        if prepared is not None:
            return prepared, None if fitting is None else plan_start(fitting, config, prepared.dataset)
        listed = dataset, findings = list_configured(config)
        start = None if fitting is None else plan_start(fitting, config, dataset)
        if all(finding.case for finding in errors(findings)):  # else the data set is refused, which says more
            n_classes = len(dataset.classes.names)
            refuse_network(config, in_channels=len(dataset.channel_names), n_classes=n_classes, trust=trust)
        prepared = prepare_data(config, bar.update, listed=listed, **_as_before(before, start))
        handed.leave(config, prepared)
    return prepared, start


def _as_before(before: Mapping[str, Any] | None, start: Start | None) -> dict[str, Any]:
    """What a resumed run, or one that starts from another, keeps beside its settings; arguments of `prepare_data`.

    before: training_config.json of the run that is resumed.
    """
    if before is not None:
        return {
            "skipped_before": before["data"].get("skipped_cases"),
            "kept": kept_intensity(before),
            # Runs of earlier versions scaled to 0…1 and did not say so.
            "scaling": before["data"].get("intensity_scaling", "unit"),
        }
    if start is not None:
        return {"kept": start.intensity, "scaling": start.source.scaling}
    return {}


def _take_over(
    start: Start | None,
    before: Mapping[str, Any] | None,
    module: SegmentationModule,
    prepared: PreparedData,
    config: Config,
    say: Say,
) -> Mapping[str, Any] | None:
    """Put trained weights into the network, say what was taken, and set how it learns; returns the record.

    before: training_config.json of the run that is resumed: its record is kept, its weights are restored later.
    """
    document = before["training"].get("started_from") if before else None
    if start is not None:
        started = take_over(start, module.network, config)
        document = started.document
        for line in started.lines:
            say(line)
        for warning in start.source.seen_in(prepared.split):
            say(f"Warning: {warning}")
    if document is not None:
        module.taken = treatment(document, module.network, config, in_channels=prepared.in_channels)
    return document


def _build(
    config: Config, prepared: PreparedData, class_weights: np.ndarray | None, *, trust: bool, say: Say
) -> SegmentationModule:
    say("Creating model...")
    module = build_module(
        config,
        in_channels=prepared.in_channels,
        n_classes=prepared.n_classes,
        class_weights=class_weights,
        ignores_voxels=prepared.dataset.classes.ignores_voxels,
        trust=trust,
    )
    parameters = list(module.network.parameters())
    say(f"Total parameters: {sum(p.numel() for p in parameters):,}")
    say(f"Trainable parameters: {sum(p.numel() for p in parameters if p.requires_grad):,}")
    return module


def _say_data(prepared: PreparedData, say: Say) -> None:
    for case, reason in prepared.skipped.items():
        say(f"Skipping case {case}: {reason}")
    if prepared.findings:
        say(f"Warnings about the data: {len(prepared.findings)}; bodyseg check explains them")
    counts = {"train": len(prepared.train), "val": len(prepared.val)}
    for name, count in counts.items():
        say(f"BodyDataset [{name}]: {count} samples")
    say(f"Train samples: {counts['train']}")
    say(f"Val samples: {counts['val']}")
    for part in prepared.dataset.parts:
        say(f"Data set {part.in_words}")
    if prepared.dataset.is_partly_labelled:
        shown = prepared.dataset.n_annotated(prepared.split.train)
        counts_of_classes = some_of([f"{name} in {n}" for name, n in shown.items()], 12)
        say(f"Partly labelled: the training cases annotate {counts_of_classes}")
    spacing = prepared.preprocessing.spacing_mm
    grid = "×".join(map(str, spacing or prepared.preprocessing.target_size))
    grid += " mm; choose a finer data.spacing_mm" if spacing else "; raise --target_size"
    for name, n_cases in prepared.lost_classes().items():
        say(f"Warning: of class {name}, which {n_cases} cases hold, nothing is left at {grid}")
    if not counts["val"]:
        say("No case validates: val_loss and val_mIoU stay undefined, the last weights are kept, nothing stops early")
    elif not prepared.val_class_voxels[:, 1:].any():
        say("No validation case holds a structure: val_mIoU stays undefined, the lowest val_loss decides which is best")
    say(f"Intensities: {prepared.intensity.in_words}")
    if "ct" in prepared.intensity.by_channel:
        low, high = prepared.preprocessing.window
        say(f"CT window: {low:g} to {high:g} HU")
        if prepared.preprocessing.mean_std:
            say(
                "CT mean and deviation, which become 0 and 1: {:g} and {:g} HU".format(*prepared.preprocessing.mean_std)
            )


def _data_workers(config: Config, devices: Devices, prepared: PreparedData, say: Say) -> DataWorkers:
    batches: list[tuple[Sequence[int], int]] = [(config.data.target_size, config.data.batch_size)]
    if prepared.patches is not None:  # an early stage may have larger batches than the last; validation has whole cases
        batches = [prepared.patches.largest_batch, *((prepared.val.size(i), 1) for i in range(len(prepared.val)))]
    n_bytes = max(
        batch_bytes(size, batch_size=n, in_channels=prepared.in_channels, n_classes=prepared.n_classes)
        for size, n in batches
    )
    shared = shared_memory()
    shared_free = shared[0] // devices.per_machine if shared else None
    workers = choose_data_workers(config.data.num_workers, n_bytes, cores=available_cores(), shared_free=shared_free)
    if workers.note:
        say(workers.note)
    return workers


def _class_weights(prepared: PreparedData, alpha: float, say: Say) -> np.ndarray:
    say("Computing class frequencies...")
    weights = median_frequency_weights(prepared.class_voxels, alpha, prepared.dataset.classes.names)
    stats = weight_stats(weights)
    say(f"Class weights - min: {stats['min']:.3f}, max: {stats['max']:.3f}, mean: {stats['mean']:.3f}")
    absent = absent_classes(prepared)
    if absent:
        say(f"No training case holds {', '.join(absent)}: weight 0")
    return weights


# Fit: from the first file in the run folder to the summary ------------------------------------------------------------


def _fit(
    devices: Devices,
    setup: _Setup,
    others: Others | None,
    *,
    say: Say,
    console: Console,
    record: Say,
) -> None:
    recorder = setup.recorder
    with (
        recorder.trackers.closing(),
        record_ending(recorder),
        launch(others, partial(record_lost, recorder)),
        quiet_lightning(),
    ):
        say("Saving training configuration...")
        if is_first_process():
            recorder.folder.write_config(setup.document)
        say(f"Training configuration saved to: {recorder.folder.config}")
        for line in (*recorder.trackers.in_words, RULE, "Starting training...", RULE):
            say(line)
        validates = len(setup.data.prepared.val) > 0
        trainer = build_trainer(recorder, devices, console, validates=validates, record=record)
        trainer.fit(setup.module, datamodule=setup.data)
