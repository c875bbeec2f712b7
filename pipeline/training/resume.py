"""Continue an interrupted run: which settings may change, what is kept after an epoch, and how it is put back."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from pipeline.checks.modality import IntensityChoice
from pipeline.compute.measuring import NOTHING_MEASURED, PeakMemory
from pipeline.config.settings import Config, ConfigError
from pipeline.console.text import one_line, some_of
from pipeline.files.atomic import FileError
from pipeline.files.json_files import null_for_undefined
from pipeline.files.lock import is_locked
from pipeline.files.regular import open_regular
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import START_AGAIN, RunFolder
from pipeline.runs.setting_differences import changed_settings
from pipeline.training.lightning_module import SegmentationModule

RESUME_FORMAT = 2
"""Version of resume/last.ckpt."""

MAY_CHANGE_ON_RESUME = frozenset(
    {
        "experiment.log_dir",
        "experiment.logger",
        "data.num_workers",
        "data.cache_dir",
        "data.cache_limit_gb",
        "training.max_epochs",
        "training.n_gpus",
        "training.n_processes",
        "training.on_nan_loss",
        "training.early_stopping_patience",
        "training.overlay_every",
        "training.compile",
        "model.checkpointing",
    }
)
"""Settings that do not change what the run is; the others are refused by name when a run is resumed."""


def refuse_interrupted_neighbours(folder: RunFolder, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError where the run to resume is not in `folder`, but interrupted under other settings beside it.

    A changed batch size or learning rate changes the folder's name, and the training would begin from nothing. A run
    that failed counts where it can be resumed; one that stopped early, or is trained now, does not.
    """
    found = []
    for path in sorted(folder.path.parent.glob(f"{glob.escape(settings['experiment']['name'])}_bs*")):
        with contextlib.suppress(FileError, OSError):  # damaged runs are not asked for
            other = RunFolder.at(path)
            if other.name == folder.name or other.state not in ("interrupted", "failed"):
                continue
            if other.has_ended or is_locked(other.lock) or not other.resume_checkpoint.exists():
                continue
            before = other.read_config()
            if before["experiment"].get("name") == settings["experiment"]["name"]:
                found.append(f"{other.name} ({'; '.join(changes_since(before, settings))})")
    if found:
        raise ConfigError(
            f"--resume: there is no run in {folder.path}, but interrupted ones beside it: {some_of(found, 3)}; "
            "give one's settings to resume it, or leave --resume out to start this one"
        )


def refuse_changed_settings(
    folder: RunFolder, settings: Mapping[str, Mapping[str, Any]], *, may_move_data: bool = False
) -> None:
    """Raise ConfigError with all settings of this start that would make another run of the one in `folder`.

    Args:
        folder: the run's.
        settings: as `config.files.as_mapping` gives them.
        may_move_data: accept another data.dataset_root; the cases are compared by content, see `refuse_changed_cases`.
    """
    if changes := changes_since(folder.read_config(), settings, may_move_data=may_move_data):
        raise ConfigError(
            f"{folder.path} was begun with other settings: {'; '.join(changes)}; a resumed run keeps them: give the "
            "old values, or start another run with another --exp_name"
        )


def changes_since(
    before: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Mapping[str, Any]],
    may_change: Collection[str] = MAY_CHANGE_ON_RESUME,
    *,
    may_move_data: bool = False,
) -> list[str]:
    """What no longer is as when a run was begun, in words; before: its training_config.json."""
    changes = []
    for changed in changed_settings(before, settings, may_change):
        # What is left open or to be found: see `keep_what_was_found`
        is_left_open = changed.now is None and changed.name in {"model.n_classes", "training.n_gpus"}
        is_found = changed.now == "auto" and changed.name in {"data.window", "data.mean_std"}
        is_moved = may_move_data and changed.name == "data.dataset_root"
        if not (is_left_open or is_found or is_moved):
            changes.append(changed.in_words)
    return changes


def refuse_changed_cases(folder: RunFolder, state: ResumeState, contents: Mapping[str, str]) -> None:
    """Raise ConfigError where the files of a case no longer hold what they did when the run was started.

    contents: what `PreparedData.contents` says now. States of earlier versions hold none and are not compared.
    """
    changed = [case for case, content in state.contents.items() if contents.get(case, content) != content]
    if changed:
        raise ConfigError(
            f"case {some_of(changed, 3)}: image, label or annotated classes changed since the run in {folder.path} was "
            "started; a resumed run keeps its data: restore the files, or start another run"
        )


def keep_what_was_found(config: Config, run_config: Mapping[str, Mapping[str, Any]]) -> Config:
    """Put the numbers that the run found for CT when it began in the place of "auto", and keep who was told to augment.

    run_config: the run's training_config.json; earlier versions had no data.mean_std and scaled by the window alone.
    """
    before = run_config["data"]
    data = config.data.with_scaling({"mean_std": "none", **before})
    if data.augment_on_device is None:
        data = replace(data, augment_on_device=before.get("augment_on_device"))
    return replace(config, data=data)


def kept_intensity(run_config: Mapping[str, Mapping[str, Any]]) -> IntensityChoice | None:
    """How the run scaled each channel when it began; None where its version did not say.

    run_config: the run's training_config.json.
    """
    found = run_config["data"].get("intensity_found")
    if not found:
        return None
    ways = found["intensity"]
    n_channels = len(run_config["data"]["channel_names"])
    return IntensityChoice((ways,) * n_channels if isinstance(ways, str) else tuple(ways), found["because"])


def refuse_changed_data(folder: RunFolder, record: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError where the data or the network are no longer those that the run in `folder` was started with.

    The settings may be the same although cases have come or gone.

    record: the document of training_config.json as it would be written now.
    """
    before = folder.read_config()
    for group, key, what in (
        ("data", "split", "the division into train, val and test"),
        ("data", "cross_validation", "the division into folds"),
        ("data", "channel_names", "the channels"),
        ("data", "intensity_found", "how intensities are scaled"),
        ("model", "class_names", "the classes"),
        ("model", "network_settings", "the network"),
    ):
        old, now = (_without_source(document[group].get(key)) for document in (before, record))
        if key == "cross_validation" and key not in before[group]:
            continue  # earlier versions used a data set's own folds and recorded the split alone
        if old != null_for_undefined(now):
            raise ConfigError(
                f"{group}.{key}: {what} of {folder.path} changed since it was started ({_difference(old, now)}); "
                "a resumed run keeps them: put the data back as they were, or start another run"
            )


def _without_source(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "source"} if isinstance(value, Mapping) else value


def _difference(old: Any, now: Any) -> str:
    """Name the first cases or entries that came or went; else show both."""
    if isinstance(old, dict) and isinstance(now, dict):
        for key in ("train", "val", "test", *now):
            if old.get(key) != now.get(key):
                return f"{key}: {_difference(old.get(key), now.get(key))}"
    if isinstance(old, list) and isinstance(now, list):
        parts = []
        for word, ours, others in (("gone", old, now), ("new", now, old)):
            known = {str(entry) for entry in others}
            only_here = [str(entry) for entry in ours if str(entry) not in known]
            if only_here:
                parts.append(f"{word} {', '.join(only_here[:3])}")
        return "; ".join(parts) or "another order"
    return f"was {old!r:.60}, is {now!r:.60}"


@dataclass(frozen=True)
class ResumeState:
    """What continuing a training needs: everything as it was after the last finished epoch, on the CPU."""

    epochs_finished: int
    """Number of finished epochs."""
    network: dict[str, Any]
    """The network's state_dict."""
    optimizer: dict[str, Any]
    """The optimiser's state_dict."""
    precision: dict[str, Any]
    """State of the float16 gradient scaler; empty where gradients are not scaled."""
    log: TrainingLog
    """The history."""
    skipped_steps: int = 0
    """Steps that were left out because their loss or gradient was NaN or infinite."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """What the files of every case held, by case id; empty in states of earlier versions."""
    coarse_heads: Mapping[str, Any] = field(default_factory=dict)
    """The state_dict of the heads of deep supervision; empty where there are none."""
    average: Mapping[str, Any] = field(default_factory=dict)
    """The state of the moving average of the weights; empty where there is none."""
    pictures: Mapping[str, Any] = field(default_factory=dict)
    """What TensorBoard's pictures of the best and the last epoch show, see `ValidationPictures.state`."""
    peak_memory: PeakMemory = NOTHING_MEASURED
    """The most memory of any process so far."""

    @property
    def holds_best(self) -> bool:
        """Whether its weights are the run's best, so that best_model.ckpt can be written from it again."""
        return self.log.best_epoch == self.epochs_finished - 1

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain containers and tensors, which torch.load reads with weights_only=True."""
        tables = {name: dict(getattr(self, name)) for name in ("contents", "coarse_heads", "average", "pictures")}
        others = {"format": RESUME_FORMAT, "log": self.log.to_dict(), "peak_memory": self.peak_memory._asdict()}
        return vars(self) | others | tables


def resume_state(
    trainer: pl.Trainer,
    module: SegmentationModule,
    log: TrainingLog,
    contents: Mapping[str, str] | None = None,
    *,
    pictures: Mapping[str, Any] | None = None,
    peak_memory: PeakMemory = NOTHING_MEASURED,
) -> ResumeState:
    """Return the state of a training right after an epoch; `log` already counts that epoch."""
    return ResumeState(
        epochs_finished=trainer.current_epoch + 1,
        network=module.network.state_dict(),
        optimizer=trainer.optimizers[0].state_dict(),
        precision=trainer.precision_plugin.state_dict(),
        log=log,
        skipped_steps=module.skipped_steps,
        contents=contents or {},
        coarse_heads=module.coarse_heads.state_dict() if module.coarse_heads is not None else {},
        average=module.average.state_dict() if module.average is not None else {},
        pictures=pictures or {},
        peak_memory=peak_memory,
    )


def read_resume(path: Path) -> ResumeState:
    """Read resume/last.ckpt.

    Raises:
        FileError: the file is missing, damaged or holds more than data.
    """
    try:
        with open_regular(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the safe loader raises many kinds for a damaged file
        reason = one_line(error, 160)
        raise FileError(f"{path}: cannot be resumed from ({reason}); {START_AGAIN}") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != RESUME_FORMAT:
        raise FileError(f"{path}: expected format {RESUME_FORMAT}, found {found}; {START_AGAIN}")
    kinds = {"epochs_finished": int, "network": dict, "optimizer": dict, "precision": dict, "log": dict}
    for key, kind in kinds.items():
        if not isinstance(state.get(key), kind):
            raise FileError(f"{path}: expected {', '.join(kinds)}, found no {key}; {START_AGAIN}")
    known = {key: state[key] for key in kinds}
    for key, default, expected in (
        ("skipped_steps", 0, "a number"),
        ("contents", {}, "a table of cases"),
        ("coarse_heads", {}, "a table of weights"),
        ("average", {}, "a table of weights"),
        ("pictures", {}, "a table of slices"),
        ("peak_memory", {}, "a table of bytes and device"),
    ):
        known[key] = state.get(key, default)  # states of earlier versions have none
        if not isinstance(known[key], type(default)):
            raise FileError(f"{path}: {key}: expected {expected}, found {known[key]!r:.40}; {START_AGAIN}")
    try:
        known["log"] = TrainingLog.from_dict(known["log"])
    except FileError as error:
        raise FileError(f"{path}: {error}; {START_AGAIN}") from error
    peak = known["peak_memory"]
    try:
        known["peak_memory"] = PeakMemory(int(peak["n_bytes"]), str(peak["device"])) if peak else NOTHING_MEASURED
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise FileError(f"{path}: peak_memory: expected bytes and device, found {peak!r:.40}; {START_AGAIN}") from error
    return ResumeState(**known)


def refuse_other_best(folder: RunFolder, state: ResumeState) -> None:
    """Raise FileError where best_model.ckpt is not from the history's best epoch and `state` cannot restore it."""
    best = state.log.best_epoch
    if best is None or state.holds_best:
        return
    try:
        with open_regular(folder.best_checkpoint):  # refuses what torch.load would read for ever
            checkpoint = torch.load(folder.best_checkpoint, map_location="cpu", weights_only=True, mmap=True)
        found = f"epoch {checkpoint['epoch']}"
    except FileNotFoundError:
        found = "no file"
    except Exception:  # the safe loader raises many kinds for a damaged file
        found = "a damaged file"
    if found != f"epoch {best}":
        raise FileError(
            f"{folder.best_checkpoint}: expected the weights of epoch {best}, the best one so far, found {found}; "
            f"restore the file from a copy, or {START_AGAIN}"
        )


def restore(state: ResumeState, trainer: pl.Trainer, module: SegmentationModule) -> None:
    """Put a resume state back into network, optimiser, scaler and epoch count.

    Raises FileError where it is of another network, or the scaler's part is damaged.
    """
    try:
        module.network.load_state_dict(state.network)
        if module.coarse_heads is not None:
            module.coarse_heads.load_state_dict(dict(state.coarse_heads))
        if module.average is not None:
            module.average.load_state_dict(state.average, module.network)
        trainer.optimizers[0].load_state_dict(state.optimizer)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error, 200)
        raise FileError(f"the state to resume does not fit the network ({reason}); {START_AGAIN}") from error
    module.skipped_steps = state.skipped_steps
    _restore_precision(state.precision, trainer)
    # Lightning's own checkpoints skip on_train_epoch_start in the first resumed epoch when they were written at an
    # epoch's end (2.6.6, FitLoop.on_advance_start); counting on from a fresh start has no such corner.
    progress: Any = trainer.fit_loop.epoch_progress.current
    progress.ready = progress.started = progress.processed = progress.completed = state.epochs_finished


def _restore_precision(state: dict[str, Any], trainer: pl.Trainer) -> None:
    """Put the gradient scaler back. Only float16 has one: a run that changes its device may gain or lose it."""
    expected = trainer.precision_plugin.state_dict()
    if not state or not expected:
        return  # a new scaler finds its scale within some steps
    try:
        trainer.precision_plugin.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"the gradient scaler's state cannot be put back: expected {', '.join(expected)}, "
            f"found {', '.join(map(str, state))[:200]}; restore resume/last.ckpt from a copy, or {START_AGAIN}"
        ) from error
