"""Which weights an evaluation scored, and whether they are those that a run or a cross-validation has now.

Scores of weights that were replaced since are never shown as the run's, and never left out without a word. Nor are
those of some of the cases shown as those of all.
"""

from __future__ import annotations

import hashlib
import shlex
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console.text import counted, some_of
from pipeline.files.json_files import read_json
from pipeline.files.regular import open_regular
from pipeline.runs.run_folder import RunFolder, is_run_folder
from pipeline.runs.study import StudyFolder, is_study_folder

SPLITS = ("test", "val", "train")
"""Evaluations that a run's folder may hold, the most telling first."""

ALSO_LEFT_OUT = "and the scores of {} more evaluations, too"
"""Stands for further lines on scores that are left out."""

ALSO_INCOMPLETE = "and {} more evaluations are of some of their cases alone, too"
"""Stands for further lines on evaluations without all of their cases."""


@dataclass(frozen=True)
class TrainedWeights:
    """The weights of one training, as metrics.json names those that it scored."""

    run: str
    """Name of the run."""
    epoch: int | None
    """After which they were kept, counted from 0; None where the checkpoint does not say."""
    val_miou: float | None
    """Their validation score; None where it was undefined."""
    weights_id: str
    """See `weights_id`."""

    def to_document(self) -> dict[str, Any]:
        """Return it as metrics.json has it."""
        return {"run": self.run, "epoch": self.epoch, "val_mIoU": self.val_miou, "weights_id": self.weights_id}

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any], run: str, weights_id: str) -> TrainedWeights:
        """Take what a best_model.ckpt, as it was read, says of its weights."""
        epoch, score = checkpoint.get("epoch"), checkpoint.get("val_mIoU")
        return cls(
            run,
            epoch if isinstance(epoch, int) else None,
            float(score) if isinstance(score, int | float) else None,
            weights_id,
        )

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> TrainedWeights:
        """Take what `to_document` made. Raises KeyError or TypeError for anything else."""
        return cls(document["run"], document["epoch"], document["val_mIoU"], document["weights_id"])


@dataclass(frozen=True)
class StoredScores:
    """An evaluation in the folder of a run or a cross-validation."""

    metrics: Path
    """Its metrics.json."""
    document: Mapping[str, Any]
    """The content of that."""
    outdated: str = ""
    """Why they are not, or may not be, the scores of the present weights, and what to do, as the end of a line; "":
    they are."""
    incomplete: str = ""
    """Of how many of how many cases they are, and what to do, in one line; "": of all."""

    @property
    def left_out(self) -> str:
        """The line that stands in place of scores that are `outdated`; "": they are shown."""
        return f"{self.metrics}: its scores are left out, since {self.outdated}" if self.outdated else ""


def weights_id(checkpoint: Path) -> str:
    """Identify the weights in a best_model.ckpt, in less than a millisecond: none of them is read.

    torch.save writes a zip archive, whose table of contents has the CRC-32 of every tensor. Equal weights have the same
    id however often, when and with which description they are written. "" where there is no such file.
    """
    try:
        with open_regular(checkpoint) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile):
        return ""
    tensors = (entry for entry in entries if entry.filename.split("/")[1:-1] == ["data"])
    rows = sorted((entry.filename.rpartition("/")[2], entry.file_size, entry.CRC) for entry in tensors)
    return hashlib.sha256(repr(rows).encode()).hexdigest() if rows else ""


def scores_of_run(run: RunFolder, split: str) -> StoredScores | None:
    """What an evaluation of one of a run's splits found; None without one. Raises FileError for a damaged file."""
    metrics = run.evaluation(split) / "metrics.json"
    if not metrics.is_file():
        return None
    document = read_json(metrics, largest=None)
    command = _command(run.path, "--split", split)
    outdated = _outdated(metrics, document, [run], command, f"{command} --overwrite")
    return StoredScores(metrics, document, outdated, about_missing(document, metrics, f"{run.name}: {split}", command))


def scores_of_study(study: StudyFolder, split: str = "val") -> StoredScores | None:
    """What the evaluation of a cross-validation found: of all cases, each by the network that has not seen it.

    With the split "test": of those of no fold, by all networks. Whatever else lies beside the runs of its folds does
    not matter. None without one; raises FileError for a damaged file.
    """
    is_of_folds = split == "val"
    metrics = study.metrics if is_of_folds else RunFolder.at(study.path).evaluation(split) / "metrics.json"
    if not metrics.is_file():
        return None
    document, runs = read_json(metrics, largest=None), study.runs_of(study.read_record())
    command = _command(study.path) if is_of_folds else _command(study.path, "--split", split)
    again = command if is_of_folds else f"{command} --overwrite"
    if missing := [number for number, run in runs.items() if not run.has_ended]:
        advice = "which then scores all cases again" if is_of_folds else f"then score these by {again}"
        outdated = (
            f"fold {some_of(missing, 5)} is not trained to its end; finish it with bodyseg cross-validate, {advice}"
        )
        return StoredScores(metrics, document, outdated)
    outdated = _outdated(metrics, document, list(runs.values()), command, again)
    about = about_missing(document, metrics, f"{study.name}: {split}", command)
    return StoredScores(metrics, document, outdated, about)


def scores_of(folder: RunFolder | StudyFolder, split: str) -> StoredScores | None:
    """What an evaluation of a run or of a cross-validation found, see `scores_of_run` and `scores_of_study`.

    None without one; a cross-validation has none of its training cases.
    """
    if isinstance(folder, RunFolder):
        return scores_of_run(folder, split)
    return None if split == "train" else scores_of_study(folder, split)


def scores_at(metrics: Path) -> StoredScores | None:
    """What a metrics.json holds that lies where evaluations of a run or of a cross-validation lie; of any other None.

    Raises FileError for a damaged file.
    """
    for path in dict.fromkeys((metrics, metrics.resolve())):  # a link to one, a path from inside of the run
        if path.name != "metrics.json":
            continue
        folder, split = path.parent, path.parent.name
        if is_study_folder(folder):
            return scores_of_study(StudyFolder.at(folder))
        owner = folder.parent.parent
        if folder.parent.name != "evaluation" or split not in SPLITS:
            continue
        if is_study_folder(owner) and split == "test":
            return scores_of_study(StudyFolder.at(owner), split)
        if is_run_folder(owner):
            return scores_of_run(RunFolder.at(owner), split)
    return None


def about_missing(document: Mapping[str, Any], metrics: Path, what: str = "", command: str = "") -> str:
    """Say in one line that an evaluation lacks cases, which were refused or not predicted; "" where it has all.

    Args:
        document: the content of its metrics.json.
        metrics: that file.
        what: the run and the split that were evaluated, as "RUN: val"; "": named by the file alone.
        command: what evaluates them again; "": not known.
    """
    refused, without = document.get("refused"), document.get("labels_without_prediction")
    cases = [str(one.get("case")) for one in refused if isinstance(one, dict)] if isinstance(refused, list) else []
    labels = list(map(str, without)) if isinstance(without, list) else []
    if not cases and not labels:
        return ""
    n_scored, name = document.get("n_cases"), what or metrics
    verb = "has" if len(labels) == 1 else "have"
    not_predicted = f"{name}: {counted(len(labels), 'label')} {verb} no prediction ({some_of(labels, 3)})"
    if not cases:  # the predictions may be meant to be of some alone; those of a run are of all its cases
        predicted = f"the {n_scored} cases that have one" if isinstance(n_scored, int) else "those that have one"
        predicted = "the 1 case that has one" if n_scored == 1 else predicted
        return f"{not_predicted}: Dice is the mean of {predicted}" + (f"; score all by {command}" if command else "")
    of_all = f"{n_scored} of {n_scored + len(cases)} cases" if isinstance(n_scored, int) else "some of the cases"
    begin = f"{not_predicted}; of the others " if labels else f"{name}{' ' if what else ': '}"
    lacks = f"{some_of(cases, 3)} could not be scored, for reasons that {metrics} gives"
    return (
        f"{begin}Dice is the mean of {of_all} alone: {lacks}; mend these, then "
        f"score all by {command or 'evaluating again'}"
    )


def _command(folder: Path, *flags: str) -> str:
    return " ".join(["bodyseg evaluate", shlex.quote(str(folder)), *flags])


def _outdated(metrics: Path, document: Mapping[str, Any], runs: Sequence[RunFolder], command: str, again: str) -> str:
    """See `StoredScores.outdated`; `command` reuses the predictions there are, `again` none of other weights."""
    scored = _scored_weights(document)
    changed = list(runs)
    if not scored:
        changed = [run for run in runs if _may_be_newer(run, metrics, document)]
    elif len(scored) == len(runs):
        changed = [run for one, run in zip(scored, runs, strict=True) if not _has(run, one)]
    if not changed:
        return ""
    if damaged := _about_damaged(changed):
        return damaged
    if not scored:
        found = "an earlier version did not say of which weights they are and the present ones may be newer"
        return f"{found}; score these by {command}"
    names = some_of([run.name for run in changed], 3)
    if any(not run.best_checkpoint.exists() for run in changed):
        return f"{names} no longer has the weights that were scored; when there are others, score these by {again}"
    return f"they are of other weights than {names} has now; score the present ones by {again}"


def _about_damaged(runs: Sequence[RunFolder]) -> str:
    """Say which of the runs' checkpoints do not tell their weights, as one does not that was cut short; "" for none."""
    files = [
        run.best_checkpoint for run in runs if run.best_checkpoint.exists() and not weights_id(run.best_checkpoint)
    ]
    if not files:
        return ""
    verb, which, whose = ("is", "it", "the run") if len(files) == 1 else ("are", "them", "the runs")
    advice = f"restore {which} from a copy of {whose}, or train {whose} again where there is none"
    return f"{some_of(files, 3)} {verb} damaged or cannot be read; {advice}"


def _scored_weights(document: Mapping[str, Any]) -> list[TrainedWeights]:
    """The weights that were scored; none where the file does not say, as those of earlier versions."""
    networks = document.get("networks")
    try:
        return [TrainedWeights.from_document(one) for one in networks] if isinstance(networks, list) else []
    except (KeyError, TypeError):
        return []


def _has(run: RunFolder, weights: TrainedWeights) -> bool:
    """Whether a run's best weights are these; of a run that was copied without them its history tells."""
    if run.best_checkpoint.exists():
        return weights.weights_id != "" and weights_id(run.best_checkpoint) == weights.weights_id
    log = run.read_log()
    best = log.best_epoch
    return best is not None and (best, log.history["val_mIoU"][best]) == (weights.epoch, weights.val_miou)


def _may_be_newer(run: RunFolder, metrics: Path, document: Mapping[str, Any]) -> bool:
    """Whether a run's weights may have been written after a metrics.json.

    Both times have to speak against it: those of files change with a copy, those that are written down with the zone.
    """
    log = run.read_log()
    if not len(log) or str(document.get("created") or "") < log.last_update:
        return True
    try:
        return metrics.stat().st_mtime_ns < run.best_checkpoint.stat().st_mtime_ns
    except OSError:  # a copy without weights
        return False
