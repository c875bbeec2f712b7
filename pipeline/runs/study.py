"""logs/<study>/, what a cross-validation leaves behind: a run folder for each fold, its record, predictions, scores.

study.json                 every setting, the folds case by case with a hash, what all folds share; written before the
                           first fold begins
fold_0_bs2_lr0.0001_ch32/  … fold_4_bs2_lr0.0001_ch32/: run folders, named as those of any training are
predictions/               every case, segmented by the network that has not seen it
metrics.json, .csv         their scores
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files.atomic import FileError
from pipeline.files.json_files import now, read_json, write_json
from pipeline.runs.run_folder import RunFolder, check_name, is_run_folder, parent_and_name

FORMAT = 2
"""Of study.json. In format 1 the run folders were called fold_0, fold_1, …"""

_PARTS = ("train", "val", "test")
_SHARED = ("window", "mean_std")


@dataclass(frozen=True)
class StudyRecord:
    """What a study was begun with; every fold, also one that another machine trains, must be of it."""

    settings: Mapping[str, Mapping[str, Any]]
    """Every setting, as `config.files.as_mapping` gives them."""
    source: str
    """Where the division into folds comes from, in words."""
    hash: str
    """Of the division, as the folds' training_config.json have it."""
    folds: Mapping[int, Mapping[str, tuple[str, ...]]]
    """By the number of each fold its case ids under "train", "val" and "test"."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Settings under data whose "auto" was decided once for all folds: the window of CT, its mean and deviation."""
    notes: tuple[str, ...] = ()
    """What a reader of the scores has to know about how the networks began."""
    created: str = field(default_factory=now)
    run_names: Mapping[int, str] = field(default_factory=dict)
    """By the number of each fold the name of its run folder; empty in format 1."""

    @property
    def cases(self) -> set[str]:
        """The ids of all cases of all folds."""
        return {case for parts in self.folds.values() for ids in parts.values() for case in ids}

    def to_document(self) -> dict[str, Any]:
        """Return the content of study.json."""
        return {
            "format": FORMAT if self.run_names else 1,
            "created": self.created,
            "settings": self.settings,
            "shared": self.shared,
            "notes": list(self.notes),
            "runs": {str(number): name for number, name in self.run_names.items()},
            "cross_validation": {
                "source": self.source,
                "hash": self.hash,
                "folds": {str(number): dict(parts) for number, parts in self.folds.items()},
            },
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], path: Path) -> StudyRecord:
        """Take a record as `to_document` made it. Raises FileError, with its path, for any other document."""
        try:
            division = document["cross_validation"]
            folds = {
                int(number): {part: tuple(map(str, lists[part])) for part in _PARTS}
                for number, lists in division["folds"].items()
            }
            settings = {str(group): dict(values) for group, values in document["settings"].items()}
            source, digest = str(division["source"]), str(division["hash"])
            shared, created = _checked_shared(document["shared"]), str(document["created"])
            notes = tuple(map(str, document.get("notes", ())))
            if document["format"] not in (1, FORMAT) or not folds:
                raise ValueError(f"format {document['format']!r:.20} with {len(folds)} folds")
            run_names = {}
            if document["format"] == FORMAT:
                run_names = {number: str(document["runs"][str(number)]) for number in folds}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise FileError(
                f"{path}: expected the record of a cross-validation, found another document ({reason}); restore the "
                "file from a copy, or begin another one, with another --exp_name"
            ) from error
        return cls(settings, source, digest, folds, shared, notes, created, run_names)


def _checked_shared(found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all folds share. Raises ValueError, TypeError or OverflowError for others than a study's."""
    for name, value in found.items():
        numbers = isinstance(value, list) and len(value) == 2 and all(map(math.isfinite, value))
        if name not in _SHARED or not (numbers or value == "none"):
            raise ValueError(f"shared {name!r:.40}: {value!r:.40}")
    return dict(found)


class StudyFolder:
    """One study's folder, log_dir/name, which need not exist yet. Raises FileError for an unsafe name."""

    def __init__(self, log_dir: str | Path, name: str) -> None:
        check_name(name)
        self.name = name
        self.path = Path(log_dir) / name
        self.record = self.path / "study.json"
        self.predictions = self.path / "predictions"
        self.metrics = self.path / "metrics.json"
        self.preparing_lock = self.path / ".preparing.lock"
        """Held by the process that divides the cases."""
        self.scoring_lock = self.path / ".scoring.lock"
        """Held by the process that predicts and scores."""

    @classmethod
    def at(cls, path: str | Path) -> StudyFolder:
        """Take an existing folder for a study, "." included."""
        return cls(*parent_and_name(path))

    def runs_of(self, record: StudyRecord) -> dict[int, RunFolder]:
        """The run folder of each fold of the study's record by number. Raises FileError for an unsafe name."""
        return {n: RunFolder(self.path, record.run_names.get(n, f"fold_{n}")) for n in record.folds}

    def read_record(self) -> StudyRecord:
        """Read study.json; raises FileError when it is missing or damaged."""
        return StudyRecord.from_document(read_json(self.record), self.record)

    def write_record(self, record: StudyRecord) -> None:
        """Write study.json, atomically."""
        write_json(self.record, record.to_document())

    def refuse_other_contents(self) -> None:
        """Raise FileError where the folder is a run's, which must not become a study."""
        if is_run_folder(self.path):
            raise FileError(
                f"{self.path}: expected a cross-validation or nothing, found the run of one training; give "
                "this one another --exp_name"
            )

    def ended_runs(self) -> dict[int, RunFolder]:
        """The runs of all folds by number; raises FileError where one has not been trained to its end."""
        runs = self.runs_of(self.read_record())
        if unfinished := [number for number, run in runs.items() if not run.has_ended]:
            raise FileError(
                f"{self.path}: expected {len(runs)} trained folds, found that fold "
                f"{', '.join(map(str, unfinished))} is not finished; run bodyseg cross-validate again, or name the "
                "finished folds' own folders"
            )
        return runs


def is_study_folder(path: Path) -> bool:
    """Whether a path is the folder of a cross-validation."""
    return (path / "study.json").is_file()


def runs_at(path: Path) -> list[Path]:
    """The run folders of a study; of any other path itself. Raises FileError for a study that is not finished."""
    if not is_study_folder(path):
        return [path]
    return [run.path for run in StudyFolder.at(path).ended_runs().values()]


def metrics_at(path: Path) -> Path:
    """The metrics.json of a study; any other path itself. Raises FileError for a study without one."""
    if not is_study_folder(path):
        return path
    metrics = StudyFolder.at(path).metrics
    if not metrics.is_file():
        raise FileError(
            f"{metrics}: expected the scores of a cross-validation, found none; finish it with bodyseg cross-validate"
        )
    return metrics
