"""logs/<run>/, what one training leaves behind: its name, paths and JSON files, and how a training starts in it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.compute.measuring import NOTHING_MEASURED, PeakMemory
from pipeline.config.files import with_roots_apart, with_roots_together
from pipeline.config.settings import Config, ConfigError
from pipeline.console.text import BYTES_PER_GB
from pipeline.files.atomic import FileError, remove_half_written, write_error
from pipeline.files.json_files import RESTORE_ADVICE, kind_of, now, read_json, write_json
from pipeline.runs.history import TrainingLog

log = logging.getLogger(__name__)

Status = Literal["completed", "interrupted", "failed"]
"""How a training ended, as training_summary.json says it."""

State = Literal["absent", "finished", "interrupted", "failed"]
"""What a run folder holds; "interrupted" is all that neither completed nor failed, a running training included."""

START_AGAIN = "start again with --overwrite (a fold of a cross-validation: remove its folder)"
"""What is left to do where a run cannot go on."""


def run_name(config: Config) -> str:
    """Compose the folder's documented name, as in ``body_unet_bs2_lr0.0001_ch32_cw0.5_aug``.

    Raises FileError for a name that would leave the log folder, hide the run or garble a terminal.
    """
    data, model, loss = config.data, config.model, config.loss
    check_name(config.experiment.name)
    folder = f"{config.experiment.name}_bs{data.batch_size}_lr{config.training.lr}_ch{model.base_channels}"
    folder += f"_cw{loss.weight_alpha}" if loss.use_class_weights else ""
    folder += ("_aug" if data.data_aug else "") + ("_light" if model.use_light_model else "")
    check_name(folder)
    return folder


def check_name(name: str) -> None:
    """Raise FileError for a name of a folder that would leave the log folder, hide it or garble a terminal."""
    faults = {
        "is empty": not name.strip(),
        "holds a slash": "/" in name or "\\" in name,
        'holds ".."': ".." in name,
        "starts with a dot": name.startswith("."),
        "starts or ends with a space": name != name.strip(),
        "holds a control or invisible character": not name.isprintable(),
        "is longer than the 255 bytes of a file name": len(name.encode(errors="replace")) > 255,
    }
    for fault in (fault for fault, present in faults.items() if present):
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:80])
        raise FileError(f'run name "{shown}" {fault}; choose a plain one, as in --exp_name body_unet')


def parent_and_name(path: str | Path) -> tuple[Path, str]:
    """Return the folder that holds an existing folder, and its name there, that of "." included."""
    path = Path(path)
    path = path if path.name not in ("", "..") else path.resolve()
    return path.parent, path.name


class RunFolder:
    """One run's folder, log_dir/name, which need not exist yet; its paths are relative where log_dir is.

    Raises FileError for an unsafe name.
    """

    def __init__(self, log_dir: str | Path, name: str) -> None:
        check_name(name)
        self.name = name
        self.path = Path(log_dir) / name
        self.config = self.path / "training_config.json"
        self.log = self.path / "training_log.json"
        self.summary = self.path / "training_summary.json"
        self.curves = self.path / "training_curves.png"
        self.console_log = self.path / "console.log"
        self.trackers = self.path / "trackers.json"
        """What trackers call the run; there only where experiment.logger names some."""
        self.epoch_table = self.path / "csv" / "metrics.csv"
        """The tracker csv."""
        self.checkpoints = self.path / "checkpoints"
        self.best_checkpoint = self.checkpoints / "best_model.ckpt"
        self.resume = self.path / "resume"
        """What resuming needs beyond the best weights; there only while the run is unfinished."""
        self.resume_checkpoint = self.resume / "last.ckpt"
        """Everything as it was after the last finished epoch. Write resume_checkpoint, best_checkpoint and log in
        this order: after a kill in between, the other two are written from it."""

        self.lock = self.resume / "lock"
        """Held by the process that trains here; see run_lock."""

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        """Take an existing folder for a run, "." included."""
        return cls(*parent_and_name(path))

    @property
    def state(self) -> State:
        """What the folder holds; raises FileError for a damaged summary."""
        if self.summary.exists():
            states: dict[Any, State] = {"completed": "finished", "failed": "failed"}
            return states.get(self.read_summary()["status"], "interrupted")
        ours = (self.config, self.log, self.best_checkpoint, self.resume_checkpoint)
        return "interrupted" if any(path.exists() for path in ours) else "absent"

    def evaluation(self, split: str) -> Path:
        """The folder of what `bodyseg evaluate` finds on one of the run's splits."""
        return self.path / "evaluation" / split

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to train: completed, or stopped early; raises FileError for a damaged summary."""
        if not self.summary.exists():
            return False
        summary = self.read_summary()
        return summary["status"] == "completed" or summary.get("stopped_early") is True

    def may_start(self, *, resume: bool = False, overwrite: bool = False) -> bool:
        """Say how a training would start here, touching nothing; True: from resume_checkpoint, False: from nothing.

        A training is never overwritten unasked: FileError then says what is there and what can be done. `resume`
        of an absent run, or of one killed in its first epoch, begins: a requeued job repeats its command line.
        """
        if resume and overwrite:
            raise FileError("--resume and --overwrite exclude each other; give one of them")
        state = "absent" if overwrite else self.state
        if not resume and state != "absent":
            raise FileError(self._occupied(state))
        return resume and state != "absent" and self._can_continue(state)

    def make_ready(self, *, keep: bool) -> None:
        """Clear the folder for a training, as late as possible: what is removed here is gone.

        keep: go on from resume_checkpoint, so that only the ending and what a kill left half written is removed;
        otherwise all files of the run before are. TensorBoard's version_X stay, since X counts the starts.
        """
        # In this order: what a kill leaves in between never claims more than is there, see _occupied.
        state = (self.resume_checkpoint, self.summary, self.best_checkpoint, self.log, self.config)
        old = (*state, self.curves, self.console_log, self.trackers, self.epoch_table)
        try:
            for path in (self.summary,) if keep else old:
                path.unlink(missing_ok=True)
            for folder in (self.checkpoints, self.resume):
                folder.mkdir(parents=True, exist_ok=True)
            self._remove_half_written()
        except OSError as error:
            raise write_error(self.path, error) from error

    def tidy(self) -> None:
        """Remove from a completed run what resuming needed and what a kill left half written; raises FileError."""
        try:
            if self.state == "finished":
                self._remove_half_written()
                self._remove_resume()
        except OSError as error:
            raise FileError(f"{self.resume}: cannot be removed ({error}); remove it by hand") from error

    def _occupied(self, state: State) -> str:
        kind = "an interrupted (or still running)" if state == "interrupted" else f"a {state}"
        log = self.read_log()
        best = "" if log.best_val_miou is None else f", best val mIoU {log.best_val_miou:.4f}"
        if state == "finished":
            resuming = f"nothing is left to --resume; {self._going_on()}; or"
        elif len(log) and not self.resume_checkpoint.exists():
            resuming = f"{self.resume_checkpoint} is missing, so that it cannot be resumed,"
        else:
            resuming = "continue it with --resume,"
        remedy = f"{resuming} give the new one another --exp_name, or replace this one with --overwrite"
        return f"{self.path} holds {kind} training ({len(log)} finished epochs{best}); {remedy}"

    def _going_on(self) -> str:
        """Say what to type to train on from the weights of a finished run, as another one."""
        with contextlib.suppress(FileError, KeyError):
            name = self.read_config()["experiment"]["name"]
            taken = [path.name for path in self.path.parent.glob("*_bs*")]
            number = next(n for n in itertools.count(2) if not any(t.startswith(f"{name}_{n}_bs") for t in taken))
            flags = f"--training.start_from {shlex.quote(str(self.path))} --exp_name {shlex.quote(f'{name}_{number}')}"
            return f"to train on from its weights as a new run, give {flags} instead"
        return "to train on from its weights, give --training.start_from and another --exp_name instead"

    def _can_continue(self, state: State) -> bool:
        if state == "finished":
            raise FileError(self._occupied(state))
        if not self.resume_checkpoint.exists() and (len(self.read_log()) or self.best_checkpoint.exists()):
            raise FileError(
                f"{self.resume_checkpoint}: expected the state after the last epoch, found nothing; "
                f"restore the file from a copy, or {START_AGAIN}"
            )
        return self.resume_checkpoint.exists()

    def _remove_resume(self) -> None:
        """Remove the state to resume from, unless its weights are the only ones of the run.

        Where resume/ is a link to a folder elsewhere, what is not the run's stays there.
        """
        if not self.best_checkpoint.exists():
            return
        if self.resume.is_symlink():
            self.resume_checkpoint.unlink(missing_ok=True)
            self.lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # gone, or not empty
                self.resume.resolve().rmdir()
            self.resume.unlink()
        elif self.resume.exists():
            shutil.rmtree(self.resume)

    def _remove_half_written(self) -> None:
        for folder in (self.path, self.checkpoints, self.resume, self.epoch_table.parent):
            if folder.exists():
                remove_half_written(folder)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write training_config.json from its groups."""
        write_json(self.config, {**config, "data": with_roots_apart(config["data"])})

    def write_log(self, log: TrainingLog) -> None:
        """Write training_log.json."""
        write_json(self.log, log.to_dict())

    def write_summary(
        self,
        status: Status,
        log: TrainingLog,
        *,
        reason: str | None = None,
        skipped_steps: int = 0,
        stopped_early: bool = False,
        peak: PeakMemory = NOTHING_MEASURED,
    ) -> None:
        """Write training_summary.json; "completed" removes what resuming needed, "failed" needs a reason.

        Args:
            status: how the training ended.
            log: its history.
            reason: why it did not complete.
            skipped_steps: steps that were left out.
            stopped_early: an interruption by the run's own settings, after which nothing is left to train.
            peak: the most memory of any of its processes, over all parts of a resumed training.

        "training_seconds" is what the finished epochs took. "best_by" is there where val_mIoU was undefined in all
        epochs: what else decided which weights were kept.
        """
        if status == "failed" and not reason:
            raise FileError(f'{self.summary}: status "failed" needs a reason')
        summary = {
            "status": status,
            "completion_time": now(),
            "best_checkpoint": self.best_checkpoint.as_posix() if self.best_checkpoint.exists() else None,
            "best_val_mIoU": log.best_val_miou,
            "total_epochs": len(log),
        }
        if len(log) and log.best_by != "val_mIoU":
            summary["best_by"] = log.best_by
        summary |= {"reason": reason} if reason else {}
        summary |= {"skipped_steps": skipped_steps} if skipped_steps else {}
        summary |= {"stopped_early": True} if stopped_early else {}
        if log.training_seconds is not None:
            summary["training_seconds"] = log.training_seconds
        if peak.n_bytes:
            summary |= {"peak_memory_gb": round(peak.n_bytes / BYTES_PER_GB, 3), "peak_memory_of": peak.device}
        write_json(self.summary, summary)
        if status == "completed":
            self.tidy()

    def read_config(self) -> dict[str, Any]:
        """Read training_config.json: its groups, each a dict; raises FileError when it is missing or damaged."""
        config = read_json(self.config)
        for name in ("experiment", "data", "model", "training", "loss", "system"):
            if not isinstance(group := config.get(name), dict):
                raise FileError(f"{self.config}: {name}: expected a group, found {kind_of(group)}; {RESTORE_ADVICE}")
        try:
            return config | {"data": with_roots_together(config["data"])}
        except ConfigError as error:
            raise FileError(f"{self.config}: {error}; {RESTORE_ADVICE}") from error

    def read_log(self) -> TrainingLog:
        """Read training_log.json, an empty history before the first epoch; raises FileError when damaged or missing."""
        if not self.log.exists():
            n_epochs = self.read_summary().get("total_epochs") if self.summary.exists() else 0
            if n_epochs:
                raise FileError(
                    f"{self.log}: expected the {n_epochs!r:.20} epochs of {self.summary.name}, found no file; "
                    f"{RESTORE_ADVICE}"
                )
            return TrainingLog()
        document = read_json(self.log)
        try:
            return TrainingLog.from_dict(document)
        except FileError as error:
            raise FileError(f"{self.log}: {error}; {RESTORE_ADVICE}") from error

    def read_summary(self) -> dict[str, Any]:
        """Read training_summary.json; raises FileError when it is missing or damaged."""
        summary = read_json(self.summary)
        if (status := summary.get("status")) not in ("completed", "interrupted", "failed"):
            found = f'"{status:.40}"' if isinstance(status, str) else kind_of(status)
            raise FileError(f"{self.summary}: status: expected completed, interrupted or failed, found {found}")
        return summary


def is_run_folder(path: Path) -> bool:
    """Whether a path is a run: a folder with one of a run's JSON files or with its best weights."""
    files = ("training_config.json", "training_log.json", "training_summary.json", "checkpoints/best_model.ckpt")
    return any((path / file).is_file() for file in files)


def folders_in(path: Path, unreadable: Callable[[str], object]) -> list[Path]:
    """What lies in a folder of runs and may be one, by name; hidden entries are left out, and those of others' that
    this user may not enter, each with a line for `unreadable`. Raises OSError.
    """
    found = []
    for entry in sorted(path.glob("[!.]*")):
        try:
            is_run_folder(entry)
        except OSError as error:
            unreadable(f"{entry}: cannot be read ({error.strerror}); check its permissions")
        else:
            found.append(entry)
    return found


def list_runs(paths: Iterable[str | Path]) -> list[RunFolder]:
    """Name the runs at the given paths, each a run folder or a folder of several; each run once, in order.

    Entries of a folder that cannot be read are left out with a warning. Raises FileError for a path that holds none or
    cannot be read.
    """
    found: dict[Path, RunFolder] = {}
    for path in map(Path, paths):
        try:
            folders = [path] if is_run_folder(path) else [*filter(is_run_folder, folders_in(path, log.warning))]
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        if not folders:
            what = "no training_config.json in it" if path.is_dir() else "no such folder"
            raise FileError(f"{path}: expected a run folder or a folder of runs, found {what}; check the path")
        for folder in folders:
            found.setdefault(folder.resolve(), RunFolder.at(folder))
    return list(found.values())


class Named(Protocol):
    """What has a name and lies somewhere: a run, a study."""

    name: str
    path: Path


def distinct_names(folders: Sequence[Named]) -> list[str]:
    """The folders' names, or their paths where two of one name would be mistaken for each other."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder.path) for folder in folders]
