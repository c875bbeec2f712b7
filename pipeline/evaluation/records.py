"""Read the records that bodyseg predict leaves beside its results: their classes, masks and networks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from networks.sliding_window import STEP
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
    networks: str
    """Names of the runs, and the settings that are not the usual ones; "" where nothing says them."""
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
    made_by = made_by if isinstance(made_by, dict) else {}
    runs, settings = made_by.get("runs"), made_by.get("settings")
    names = [str(run.get("name")) for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []
    words = _settings_in_words(settings, [name for _, name in classes]) if isinstance(settings, dict) else []
    return PredictionRecord(
        path,
        classes,
        tuple(masks),
        ", ".join([" + ".join(names) or "a network without name", *words]) if made_by else "",
        json.dumps([runs, settings], sort_keys=True) if made_by else "",
    )


def _settings_in_words(settings: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """How a network was applied, and what was done with its result, where that is not the usual."""
    passes, largest = settings.get("passes"), settings.get("keep_largest")
    passes = passes if isinstance(passes, dict) else {}
    window = passes["roi"] if isinstance(passes.get("roi"), list) else []
    kept = [name for c, name in enumerate(names) if isinstance(largest, list) and c in largest]
    found = {
        f"mirrored along {passes.get('mirrored')}": passes.get("mirrored"),
        f"in windows of {'×'.join(map(str, window))} voxels": window,
        f"windows {passes.get('step')} of their size apart": passes.get("step", STEP) != STEP,
        f"in precision {passes.get('precision')}": passes.get("precision", "auto") != "auto",
        f"only the largest piece of {some_of(kept)}": kept,
        f"without pieces below {settings.get('min_volume_ml')} ml": settings.get("min_volume_ml"),
    }
    return [words for words, is_said in found.items() if is_said]


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
    """Say which networks made the results, and how; where there were several, the scores are averaged over all."""
    cases: dict[str, list[str]] = defaultdict(list)
    runs: dict[str, str] = {}
    for record in records:
        cases[record.made_by].append(record.path.stem)
        runs[record.made_by] = record.networks or "a network without name"
    if len(cases) < 2:
        return tuple(f"the {kind}s were made by {run}" for made_by, run in runs.items() if made_by)
    lines = [f"the {kind}s of {some_of(cases[key], 3)} were made by {run}" for key, run in runs.items()]
    warning = f"the {kind}s were made by {len(cases)} different networks or settings, and are scored as if by one"
    return (warning, *first_lines(lines, f"and {kind}s of {{}} more networks or settings", most=5))
