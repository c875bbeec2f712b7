"""Read the records that bodyseg predict leaves beside its results: their classes, masks and networks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.console.text import first_lines, some_of
from pipeline.datasets.class_table import ClassTable, parse_table
from pipeline.evaluation.options import EvaluationError, Kind
from pipeline.files.json_files import read_json


@dataclass(frozen=True)
class PredictionRecord:
    """What a record says of the results of its case."""

    path: Path
    classes: tuple[tuple[int, str], ...]
    """Value and name of each class, in the order of its masks."""
    masks: tuple[str, ...]
    """File names of its masks, without suffix: one for each class but the background, or none."""
    networks: tuple[str, ...]
    """Names of the runs."""
    made_by: str
    """Equal for results of the same weights and settings; "" where nothing says of which."""

    @property
    def class_of_mask(self) -> dict[str, str]:
        """The class of each mask by the name of its file, which need not be the class's."""
        structures = [name for value, name in self.classes if value]
        return dict(zip(self.masks, structures, strict=True)) if len(self.masks) == len(structures) else {}


def read_records(folder: Path, cases: Iterable[str]) -> list[PredictionRecord]:
    """Read the records of cases; those without one, or with another document of that name, are left out.

    Raises:
        EvaluationError: a record whose classes have no value or name. FileError: one that cannot be read.
    """
    found = (_read_record(folder / f"{case}.json") for case in cases)
    return [record for record in found if record is not None]


def _read_record(path: Path) -> PredictionRecord | None:
    document = read_json(path) if path.is_file() else {}
    if not document.get("classes"):
        return None
    try:
        classes = tuple((int(item["value"]), str(item["name"])) for item in document["classes"])
    except (TypeError, KeyError, ValueError, OverflowError):
        raise EvaluationError(f"{path}: expected classes with value and name; predict this case again") from None
    files, made_by = document.get("files"), document.get("made_by")
    paths = [PurePosixPath(str(name)) for name in (files if isinstance(files, list) else [])]
    masks = (file.name.removesuffix(".nii.gz") for file in paths if file.parts[:-1] == (path.stem, "segmentations"))
    runs = made_by.get("runs") if isinstance(made_by, dict) else None
    return PredictionRecord(
        path,
        classes,
        tuple(masks),
        tuple(str(run.get("name")) for run in runs if isinstance(run, dict)) if isinstance(runs, list) else (),
        json.dumps([runs, made_by.get("settings")], sort_keys=True) if isinstance(made_by, dict) else "",
    )


def table_of_records(records: Sequence[PredictionRecord]) -> ClassTable | None:
    """The classes that records agree on; None without any record.

    Raises:
        EvaluationError: two that differ. DatasetError: classes that make no table.
    """
    if not records:
        return None
    first = records[0]
    for record in records:
        if sorted(record.classes) != sorted(first.classes):
            raise EvaluationError(
                f"{record.path}: its classes differ from those in {first.path}; evaluate predictions of different runs "
                "apart"
            )
    return parse_table({str(value): name for value, name in first.classes}, first.path)


def notes_on_networks(records: Iterable[PredictionRecord], kind: Kind) -> tuple[str, ...]:
    """Say which networks made the results, where there were several: the scores are averaged over all of them."""
    cases: dict[str, list[str]] = defaultdict(list)
    runs: dict[str, str] = {}
    for record in records:
        cases[record.made_by].append(record.path.stem)
        runs[record.made_by] = " + ".join(record.networks) or "a network without name"
    if len(cases) < 2:
        return ()
    lines = [f"the {kind}s of {some_of(cases[key], 3)} were made by {run}" for key, run in runs.items()]
    warning = f"the {kind}s were made by {len(cases)} different networks or settings, and are scored as if by one"
    return (warning, *first_lines(lines, f"and {kind}s of {{}} more networks or settings", most=5))
