"""The command "cross-validate": train a network for each fold, and score every case by the one that did not see it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from pipeline.checks.screening import Screened, choose_scaling, list_configured, screen
from pipeline.compute.launcher import variables
from pipeline.compute.ranks import THIS_PROGRAM, is_first_process, read_rank
from pipeline.compute.signals import Stopped
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config, ConfigError
from pipeline.console.progress import Bar
from pipeline.console.terminal import standard_error
from pipeline.console.text import some_of
from pipeline.datasets.dataset import Folds
from pipeline.datasets.joined import list_own_folds
from pipeline.evaluate import evaluate_study
from pipeline.evaluation.metrics_file import refused_cases, write_files
from pipeline.evaluation.options import ScoringOptions
from pipeline.evaluation.summary import Evaluation
from pipeline.files.atomic import FileError, make_folder, write_error
from pipeline.files.lock import alone, is_locked, lock_holder, take_lock
from pipeline.runs.run_folder import RunFolder, run_name
from pipeline.runs.seen_cases import seen_before
from pipeline.runs.setting_differences import changed_settings, who_augmented
from pipeline.runs.stored_scores import scores_of_study
from pipeline.runs.study import StudyFolder, StudyRecord, is_study_folder
from pipeline.train import train
from pipeline.training.resume import MAY_CHANGE_ON_RESUME, changes_since
from pipeline.training.signals import StopRequest
from pipeline.training.start_from import keep_scaling
from pipeline.training.start_source import read_source

log = logging.getLogger(__name__)

USUAL_FOLDS = 5
"""Folds where neither the settings nor the data set say how many: as in nnU-Net."""

ARRAY_VARIABLE = "SLURM_ARRAY_TASK_ID"
"""The number of a task of a SLURM job array: which fold it trains."""

MAY_CHANGE = MAY_CHANGE_ON_RESUME - {
    "training.max_epochs",
    "training.early_stopping_patience",
    "training.on_nan_loss",
}
"""Settings that may change between two calls: those of resuming, but for what would make folds unlike each other."""

_FOLD_IN_TRAINING = "BODYSEG_FOLD"
"""Environment variable for the further processes of a training, which repeat this command: the fold they train."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class FoldState:
    """How far a fold is."""

    number: int
    run: RunFolder
    status: Literal["finished", "unfinished", "not begun"]
    n_epochs: int
    best_val_miou: float | None


@dataclass(frozen=True)
class StudyReport:
    """What a call of `cross_validate` leaves."""

    folder: StudyFolder
    folds: tuple[FoldState, ...]
    evaluation: Evaluation | None
    """Scores of all cases; None while a fold is missing, or where another process scores."""
    incomplete: str = ""
    """Which cases could not be scored, and what to do, in one line; "": all were."""

    @property
    def unfinished(self) -> tuple[int, ...]:
        """The folds that have not been trained to their end."""
        return tuple(fold.number for fold in self.folds if fold.status != "finished")

    def to_document(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "study": str(self.folder.path),
            "folds": [
                {
                    "fold": fold.number,
                    "run": str(fold.run.path),
                    "status": fold.status,
                    "epochs": fold.n_epochs,
                    "best_val_mIoU": fold.best_val_miou,
                }
                for fold in self.folds
            ],
            "is_finished": not self.unfinished,
            "metrics": str(self.folder.metrics) if self.evaluation is not None else None,
            "refused": [] if self.evaluation is None else refused_cases(self.evaluation),
        }


def cross_validate(
    config: Config,
    *,
    folds: Sequence[int] | Literal["all"] | None = None,
    trust: bool = False,
    workers: int | None = 1,
    auto_is_new: bool = False,
    say: Say = log.info,
    console: Console | None = None,
) -> StudyReport:
    """Train the folds that are missing, and score every case once all folds are trained.

    Called again, it goes on where it stood: finished folds are kept, an interrupted one is resumed. Several processes
    may work on one study, each on folds of its own; the one that finishes last predicts and scores.

    Args:
        config: the settings of all folds; without data.folds there are 5, or the data set's own.
        folds: those that this call may train; None: that of the job array's variable, if set, else all.
        trust: as `train` has it.
        workers: processes that score, see `ScoringOptions`.
        auto_is_new: as `train` has it.
        say: takes the lines that are printed.
        console: where progress goes.

    Raises:
        ConfigError: settings or folds that differ from those the study was begun with, or a finished fold was trained
            with; no such fold.
        FileError: the folder holds something else, or the disk refuses. What `train` and `evaluate_study` raise.
        Stopped: a signal asked to stop; the same call goes on.
    """
    _refuse_fold(config)
    console = console or standard_error()
    if not is_first_process():
        say, console.quiet = log.debug, True
    study = StudyFolder(config.experiment.log_dir, config.experiment.name)
    study.refuse_other_contents()
    if config.training.start_from is not None and not auto_is_new:
        config = keep_scaling(config, read_source(config.training.start_from))
    if read_rank().started_by == THIS_PROGRAM:
        _join_training(config, study, trust=trust, console=console)
        return StudyReport(study, (), None)
    with _advice_to_go_on():
        record = _begin(config, study, say, console)
        _train_folds(config, study, record, _chosen(folds, list(record.folds), say), trust=trust, say=say, out=console)
        if not is_first_process():
            return StudyReport(study, (), None)
        states = tuple(_state(number, run) for number, run in study.runs_of(record).items())
        report = StudyReport(study, states, None)
        if report.unfinished:
            return report
        _refuse_folds_of_other_settings(config, study, record)  # other processes may have trained some since
        evaluation = _score(study, workers, trust=trust, say=say, console=console)
        stored = None if evaluation is None else scores_of_study(study)
        return replace(report, evaluation=evaluation, incomplete="" if stored is None else stored.incomplete)


def _refuse_fold(config: Config) -> None:
    """Raise ConfigError for the settings of one fold, as its training_config.json has them."""
    log_dir = config.experiment.log_dir
    if is_study_folder(Path(log_dir)):
        raise ConfigError(
            f"experiment.log_dir {log_dir} is a cross-validation, of which these may be the settings of a fold: give "
            "the settings that it was begun with to go on with it, or another --log_dir to begin another one"
        )
    if config.data.fold:
        raise ConfigError(f"data.fold is {config.data.fold}: leave it out, and name folds to train with --folds")


@contextmanager
def _advice_to_go_on() -> Iterator[None]:
    try:
        yield
    except Stopped as stop:
        stop.advice = stop.advice or "the same command goes on"
        raise


def _state(number: int, run: RunFolder) -> FoldState:
    history = run.read_log()
    status: Literal["finished", "unfinished", "not begun"] = "finished" if run.has_ended else "unfinished"
    if run.state == "absent":
        status = "not begun"
    return FoldState(number, run, status, len(history), history.best_val_miou)


# The beginning: which folds, of which cases ---------------------------------------------------------------------------


def _begin(config: Config, study: StudyFolder, say: Say, console: Console) -> StudyRecord:
    """Check the data once for all folds, and write the study's record, or hold an earlier one against it."""
    data = config.data
    own = list_own_folds(data.dataset_root, data.layout, split_file=data.split_file)
    if own and data.folds not in (0, len(own)):
        source = data.split_file or " and ".join(data.dataset_roots)
        raise ConfigError(
            f"data.folds is {data.folds}, but {source} has {len(own)} folds of its own; "
            "leave data.folds out to use these, or take them away"
        )
    # The data set's own folds may be numbered from 1 on, and need no number.
    config = replace(config, data=replace(data, folds=0 if own else data.folds or USUAL_FOLDS))
    first = own[0] if own else 0
    make_folder(study.path)
    with _alone(study.preparing_lock, console) if is_first_process() else nullcontext():
        earlier = study.read_record() if study.record.exists() else None
        if earlier is not None and not any(run.path.exists() for run in study.runs_of(earlier).values()):
            earlier = None  # nothing was trained yet: other settings are welcome
        if earlier is not None:
            _refuse_changed_settings(study, earlier, config)
        with Bar("Checking", console) as bar:
            screened = screen(replace(config, data=replace(config.data, fold=first)), bar.update)
        for number in own[1:]:  # what is wrong with the last fold is said before the first one is trained
            list_configured(replace(config, data=replace(config.data, fold=number)))
        assert screened.folds is not None  # the cases were divided into folds, or refused
        _refuse_cases_scored_twice(screened.folds)
        record = _record(config, screened, screened.folds)
        if earlier is not None:
            _refuse_changed_folds(study, earlier, record)
            record = earlier
        _refuse_folds_of_other_settings(config, study, record)
        if earlier is None and is_first_process():
            study.write_record(record)
    for note in record.notes:
        say(note)
    sizes = ", ".join(str(len(parts["val"])) for parts in record.folds.values())
    say(f"Cross-validation: {study.path}")
    say(f"Folds: {record.source}; cases that are scored: {sizes}")
    for key, value in record.shared.items():
        if value != "none":
            say(f"data.{key} of all folds: {value}, from the labelled voxels of all their cases")
    return record


def _record(config: Config, screened: Screened, folds: Folds) -> StudyRecord:
    shared: dict[str, Any] = {}
    if "ct" in screened.intensity.by_channel:
        # One window for all folds, so that they share the prepared cases: nnU-Net's fingerprint is of all cases, too.
        of_folds = {case for split in folds.splits.values() for case in (*split.train, *split.val)}
        scaling = choose_scaling(screened.cases, screened.intensity, config.data, of_folds)
        if config.data.window == "auto":
            shared["window"] = list(scaling.window)
        if config.data.mean_std == "auto":
            shared["mean_std"] = list(scaling.mean_std) if scaling.mean_std else "none"
    return StudyRecord(
        settings=as_mapping(config),
        source=folds.source,
        hash=folds.hash,
        folds={number: dict(split.items()) for number, split in folds.splits.items()},
        shared=shared,
        notes=_about_start(config, folds),
        run_names={number: run_name(_named_as_fold(config, number)) for number in folds.splits},
    )


def _about_start(config: Config, folds: Folds) -> tuple[str, ...]:
    """Say what the weights that all networks begin with may have seen of the cases that are scored."""
    if config.training.start_from is None:
        return ()
    source = read_source(config.training.start_from)
    cases = [case for split in folds.splits.values() for case in split.val]
    warning = seen_before(source.name, source.trained_on, cases)
    known = (
        "which cases these were trained on is not known" if not source.trained_on else "of other cases by their names"
    )
    return (f"Warning: {warning}" if warning else f"all networks began with the weights of {source.name}, {known}",)


def _refuse_cases_scored_twice(folds: Folds) -> None:
    if twice := folds.twice_validated():
        case, one, other = twice
        raise ConfigError(
            f"case {case} validates in fold {one} and in fold {other} of {folds.source}; a cross-validation scores "
            "every case once: correct the folds, or train the folds by bodyseg train --data.fold N"
        )


def _refuse_changed_settings(study: StudyFolder, record: StudyRecord, config: Config) -> None:
    """Raise ConfigError with every setting that would make the next fold unlike those before."""
    changed = [setting.in_words for setting in changed_settings(record.settings, as_mapping(config), MAY_CHANGE)]
    if changed:
        raise ConfigError(
            f"{study.path} was begun with other settings: {'; '.join(changed)}; give the old values to go on with it, "
            "or another --exp_name to begin another cross-validation"
        )


def _refuse_changed_folds(study: StudyFolder, before: StudyRecord, now: StudyRecord) -> None:
    if before.hash == now.hash:
        return
    then, today = before.cases, now.cases
    words = [("gone", then - today), ("new", today - then)]
    found = "; ".join(f"{word} {some_of(sorted(ids), 3)}" for word, ids in words if ids)
    raise ConfigError(
        f"{study.path} was begun with other folds ({found or 'the same cases, divided otherwise'}); put the data and "
        "their folds back as they were, or begin another cross-validation with another --exp_name"
    )


@contextmanager
def _alone(path: Path, console: Console) -> Iterator[None]:
    """Let one process in at a time, and leave no folder that nothing was put into."""

    def waiting() -> None:
        holder = f"{lock_holder(path)} prepares this cross-validation; waiting for it"
        console.print(holder, highlight=False, markup=False)

    try:
        with alone(path, waiting):
            yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _chosen(folds: Sequence[int] | Literal["all"] | None, there: Sequence[int], say: Say) -> list[int]:
    """The folds that this call may train. Raises ConfigError for one that is not there."""
    what = "--folds"
    if folds is None and os.environ.get(ARRAY_VARIABLE):
        text = os.environ[ARRAY_VARIABLE]
        what = ARRAY_VARIABLE
        folds = [int(text)] if text.isdecimal() else [-1]
        say(f"Job array of SLURM: this task trains fold {text} ({ARRAY_VARIABLE}); --folds all trains all of them")
    chosen = list(there) if folds in (None, "all") else list(map(int, folds or ()))
    unknown = [number for number in chosen if number not in there]
    if unknown or not chosen:
        found = f"{os.environ[ARRAY_VARIABLE]!r}" if what == ARRAY_VARIABLE else some_of(list(map(str, unknown)), 3)
        array = f" (sbatch --array={there[0]}-{there[-1]})" if what == ARRAY_VARIABLE else ""
        raise ConfigError(f"{what}: expected some of the folds {', '.join(map(str, there))}{array}, found {found}")
    if read_rank().world_size > 1 and len(chosen) > 1:
        raise ConfigError(
            f"{read_rank().world_size} processes that {read_rank().started_by} started train one fold at a time: name "
            f"it with --folds {chosen[0]}, or use a job array (docs/cluster.md)"
        )
    return chosen


# Training -------------------------------------------------------------------------------------------------------------


def _train_folds(
    config: Config,
    study: StudyFolder,
    record: StudyRecord,
    chosen: Sequence[int],
    *,
    trust: bool,
    say: Say,
    out: Console,
) -> None:
    runs = study.runs_of(record)
    for number in chosen:
        run = runs[number]
        if run.has_ended:
            say(f"Fold {number}: finished, kept")
            continue
        if is_first_process() and _is_in_training(run):
            say(f"Fold {number}: {lock_holder(run.lock)} trains it; left to that")
            continue
        parts = record.folds[number]
        say(f"Fold {number}: {len(parts['train'])} cases train, {len(parts['val'])} validate and are scored")
        asked = StopRequest()
        try:
            with variables({_FOLD_IN_TRAINING: str(number)}):
                fold = of_fold(config, record, number)
                train(fold, resume=True, trust=trust, folder=run, auto_is_new=True, asked=asked, say=say, console=out)
            if asked.reason:  # in the moment in which the fold ended
                raise Stopped(asked.reason)
        except FileError:
            if not (run.has_ended or _is_in_training(run)):
                raise
            say(f"Fold {number}: another process has begun it in the meantime; left to that")
        except Stopped as stop:
            n_ended = sum(other.has_ended for other in runs.values())
            goes_on = "goes on" if run.has_ended else f"goes on with fold {number}"
            advice = f"{n_ended} of {len(record.folds)} folds are finished; the same command {goes_on}"
            raise Stopped(str(stop), advice) from stop


def _refuse_folds_of_other_settings(config: Config, study: StudyFolder, record: StudyRecord) -> None:
    """Raise ConfigError for a finished fold whose training_config.json is not of the study's settings."""
    for number, run in study.runs_of(record).items():
        if not run.has_ended:
            continue  # `train` compares the settings of what it resumes
        settings = as_mapping(of_fold(config, record, number))
        if changes := changes_since(run.read_config(), settings, MAY_CHANGE):
            raise ConfigError(
                f"fold {number} in {run.path} was trained with other settings: {'; '.join(changes)}; give the old "
                "values, another --exp_name to begin another cross-validation, or remove that folder to train it again"
            )


def _is_in_training(run: RunFolder) -> bool:
    try:
        return is_locked(run.lock)
    except OSError as error:
        raise write_error(run.path, error) from error


def of_fold(config: Config, record: StudyRecord, number: int) -> Config:
    """The settings of one fold's training, which name its folder as those of any training do.

    What is left open now, but was not when the study was begun, is as it was: all folds are trained alike.
    """
    began = record.settings["data"]
    data = replace(config.data.with_scaling(record.shared), folds=began.get("folds", 0), fold=number)
    if data.augment_on_device is None:
        data = replace(data, augment_on_device=who_augmented(began))
    if record.run_names:
        config = _named_as_fold(config, number)
    return replace(config, data=data)


def _named_as_fold(config: Config, number: int) -> Config:
    log_dir = Path(config.experiment.log_dir, config.experiment.name)
    return replace(config, experiment=replace(config.experiment, name=f"fold_{number}", log_dir=str(log_dir)))


def _join_training(config: Config, study: StudyFolder, *, trust: bool, console: Console) -> None:
    """Be one more process of a training that the first process of this machine has begun."""
    number, record = int(os.environ[_FOLD_IN_TRAINING]), study.read_record()
    fold, run = of_fold(config, record, number), study.runs_of(record)[number]
    train(fold, resume=True, trust=trust, folder=run, auto_is_new=True, console=console)


# The end: every case by the network that has not seen it --------------------------------------------------------------


def _score(study: StudyFolder, workers: int | None, *, trust: bool, say: Say, console: Console) -> Evaluation | None:
    say("All folds are trained: every case is segmented by the network that has not seen it")
    try:
        lock = take_lock(study.scoring_lock)
    except OSError as error:
        raise write_error(study.path, error) from error
    if lock is None:
        say(f"All folds are finished; {lock_holder(study.scoring_lock)} predicts and scores")
        return None
    try:
        with Bar("Predicting", console) as bar:
            evaluation = evaluate_study(
                study.path,
                ScoringOptions(workers=workers),
                trust=trust,
                progress=bar.update,
                case_progress=bar.update_part,
            )
        write_files(evaluation, study.path)
    finally:
        with contextlib.suppress(OSError):
            lock.release()
    return evaluation
