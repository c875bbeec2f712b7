"""The command "compare": several runs or studies in one table, best first, with the settings in which they differ."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console.tables import in_parts, wrapped
from pipeline.console.terminal import screen_width
from pipeline.console.text import (
    counted,
    first_lines,
    fitted,
    one_line,
    printable,
    shortened_apart,
    some_of,
    spreadsheet_text,
)
from pipeline.files.atomic import FileError
from pipeline.files.json_files import null_for_undefined
from pipeline.runs.run_folder import RunFolder, distinct_names, folders_in, is_run_folder, list_runs
from pipeline.runs.seen_cases import seen_at_start
from pipeline.runs.setting_differences import SELDOM_COMPARED, differing_settings, flat_settings
from pipeline.runs.stored_scores import ALSO_INCOMPLETE, ALSO_LEFT_OUT, StoredScores, scores_of
from pipeline.runs.study import StudyFolder, is_study_folder
from pipeline.runs.time_stamps import in_hours, training_time

COLUMNS = {
    "run": "run",
    "best_val_mIoU": "best mIoU",
    "best_epoch": "best epoch",
    "total_epochs": "epochs",
    "status": "status",
    "base_channels": "channels",
    "total_parameters": "parameters",
    "time": "time",
}
"""The columns that every comparison has, and their headings on the screen."""

MORE_COLUMNS = {"peak_memory_gb": "memory GB", "peak_memory_of": "memory of"}
"""Further columns of files and of `--all`: the most memory of a process of the training, and what it belongs to."""

SCORES = {f"{split}_dice": f"{split} Dice" for split in ("train", "val", "test")}
"""Columns of runs that were evaluated: the mean over structures of `bodyseg evaluate RUN --split …`."""

LONGEST_CELL = 60
"""Characters of a setting's name or value that the screen shows; files get all of them."""

LEAST_CELL = 22
"""Of a value those that a narrow screen shows at least: any number, and several runs beside each other."""

_Read = tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]
"""The row of a run or a cross-validation, its settings, and its training_config.json or that of each fold."""


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other, best first."""

    rows: tuple[dict[str, Any], ...]
    """One a run: a value under every key of COLUMNS, `more`, `scores` and `settings`; None where a run has none."""
    settings: tuple[str, ...]
    """The settings that differ between the runs, as "training.lr"."""
    scores: tuple[str, ...]
    """The keys of SCORES that any run has; every row has all of these."""
    more: tuple[str, ...]
    """The keys of MORE_COLUMNS that any run has."""
    skipped: tuple[str, ...]
    """One line for each run, and each folder beside runs, that could not be read."""
    left_out: tuple[str, ...] = ()
    """One line for each evaluation whose scores are not, or may not be, those of a run's present weights."""
    incomplete: tuple[str, ...] = ()
    """One line for each evaluation whose scores are of some of its cases alone."""
    seen: tuple[str, ...] = ()
    """One line for each run whose validation or test cases the weights that it began with were trained on."""


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Read the runs at the paths, each a run folder or a folder of runs, and set them beside each other.

    A cross-validation is a row of its own: the mean of its folds' best val mIoU, its epochs and time in all. A run that
    cannot be read is named in `skipped`, an evaluation of weights that were replaced since in `left_out`, one of some
    of its cases alone in `incomplete`, one whose first weights had seen the cases that it is scored on in `seen`.

    Raises:
        FileError: a path without a run, or no run that can be read.
    """
    rows: list[dict[str, Any]] = []
    configs: list[dict[str, Any]] = []
    skipped: list[str] = []
    left_out: list[str] = []
    incomplete: list[str] = []
    seen: list[str] = []
    if not paths:
        raise FileError("expected run folders to compare, found none; name one")
    folders = _list(paths, skipped)
    for name, folder in zip(distinct_names(folders), folders, strict=True):
        try:
            read = _read_study(name, folder) if isinstance(folder, StudyFolder) else _read_row(name, folder)
            row, config, documents = read
            scores, lines, lines_of_incomplete = _read_scores(folder)
        except (FileError, OSError, RecursionError) as error:
            file = folder.record if isinstance(folder, StudyFolder) else folder.config
            named = error if isinstance(error, FileError) else f"{file}: cannot be compared ({error})"
            skipped.append(one_line(named))
            continue
        rows.append(row | scores)
        left_out += lines
        incomplete += lines_of_incomplete
        lines_of_seen = seen_at_start(documents, "val"), seen_at_start(documents, "test")
        seen += [f"{name}: {line}" for line in lines_of_seen if line]
        configs.append(config)
    if not rows:
        raise FileError(f"none of the {len(skipped)} runs can be read; the first: {skipped[0]}")
    settings = differing_settings(configs)
    for row, config in zip(rows, configs, strict=True):
        row["time"] = None if row["time"] is None else in_hours(row["time"])
        row.update({key: config.get(key) for key in settings})
    empty = {key for key in (*SCORES, *MORE_COLUMNS) if all(row[key] is None for row in rows)}
    rows = [{key: value for key, value in row.items() if key not in empty} for row in rows]
    return Comparison(
        tuple(sorted(rows, key=_best_first)),
        tuple(settings),
        scores=tuple(key for key in SCORES if key not in empty),
        more=tuple(key for key in MORE_COLUMNS if key not in empty),
        skipped=tuple(skipped),
        left_out=tuple(left_out),
        incomplete=tuple(incomplete),
        seen=tuple(seen),
    )


def _read_row(name: str, folder: RunFolder) -> _Read:
    """The row of a run without scores, its time in seconds, and its settings and facts."""
    config, log = folder.read_config(), folder.read_log()
    summary = folder.read_summary() if folder.summary.exists() else {}
    row = {
        "run": name,
        "best_val_mIoU": log.best_val_miou,
        "best_epoch": log.best_epoch,
        "total_epochs": len(log),
        "status": summary.get("status", "unfinished"),
        "base_channels": config["model"].get("base_channels"),
        "total_parameters": config["model"].get("total_parameters"),
        "time": training_time(config, log, summary),
        **{key: summary.get(key) for key in MORE_COLUMNS},
    }
    return null_for_undefined(row), dict(flat_settings(null_for_undefined(config))), [config]


def _read_scores(folder: RunFolder | StudyFolder) -> tuple[dict[str, float | None], list[str], list[str]]:
    """The mean Dice under every key of SCORES, a line for each evaluation left out, and one for each incomplete one."""
    means: dict[str, float | None] = dict.fromkeys(SCORES)
    left_out, incomplete = [], []
    for split, key in zip(("train", "val", "test"), SCORES, strict=True):
        try:
            stored = scores_of(folder, split)
        except FileError as error:
            left_out.append(one_line(error))
            continue
        if stored is not None and stored.left_out:
            left_out.append(stored.left_out)
        elif stored is not None:
            means[key] = _mean_dice(stored)
            incomplete += [stored.incomplete] if stored.incomplete else []
    return means, left_out, incomplete


def _mean_dice(scores: StoredScores) -> float | None:
    """The mean over structures; None where it is undefined."""
    try:
        mean = scores.document["summary"]["left_out"]["mean_over_classes"]["dice"]
        return float(mean) if isinstance(mean, int | float) else None
    except (KeyError, TypeError, OverflowError):
        return None


def _list(paths: Sequence[str | Path], skipped: list[str]) -> list[RunFolder | StudyFolder]:
    """The runs and the cross-validations at the paths; of a cross-validation's folder not its runs.

    Entries that cannot be read are named in `skipped`.
    """
    found: dict[Path, RunFolder | StudyFolder] = {}
    for path in map(Path, paths):
        inside: list[Path] = []
        with contextlib.suppress(OSError):  # list_runs says what is wrong
            is_one = is_study_folder(path) or is_run_folder(path)
            inside = [path] if is_one else folders_in(path, lambda line: skipped.append(one_line(line)))
        entries: list[RunFolder | StudyFolder] = [StudyFolder.at(study) for study in filter(is_study_folder, inside)]
        runs = list(filter(is_run_folder, inside))
        if runs or not entries:
            entries = sorted([*entries, *list_runs(runs or [path])], key=lambda entry: entry.path)
        for entry in entries:
            found.setdefault(entry.path.resolve(), entry)
    return list(found.values())


def _read_study(name: str, study: StudyFolder) -> _Read:
    """The row of a cross-validation without scores, its time in seconds, and the settings in which its folds agree."""
    runs = study.runs_of(study.read_record()).values()
    begun = [run for run in runs if run.config.exists()]
    if not begun:
        raise FileError(f"{study.path}: expected a fold that was begun, found none; run bodyseg cross-validate")
    read = [_read_row(name, run) for run in begun]
    rows, configs = [row for row, _, _ in read], [config for _, config, _ in read]
    scores = [row["best_val_mIoU"] for row in rows if row["best_val_mIoU"] is not None]
    times = [row["time"] for row in rows if row["time"] is not None]
    largest = max(rows, key=lambda row: _number(row["peak_memory_gb"]))
    n_ended = sum(run.has_ended for run in begun)
    row = rows[0] | {
        "best_val_mIoU": sum(scores) / len(scores) if scores else None,
        "best_epoch": None,
        "total_epochs": sum(row["total_epochs"] for row in rows),
        "status": f"{n_ended} of {len(runs)} folds",
        "time": sum(times) if times else None,
        **{key: largest[key] for key in MORE_COLUMNS},
    }
    shared = {
        key: value
        for key, value in configs[0].items()
        if all(config.get(key) == value for config in configs)
        and not (key == "data.fold" or key.startswith("data.split."))  # of a fold, also where one alone was begun
    }
    return row, shared, [document for _, _, documents in read for document in documents]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _best_first(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    best = row["best_val_mIoU"]
    return best is None, -(best or 0.0), row["run"]


def to_json(comparison: Comparison) -> str:
    """Write the comparison as a JSON object with runs, settings, skipped, left_out, incomplete and seen."""
    document = {"runs": comparison.rows, "settings": comparison.settings}
    document |= {"skipped": comparison.skipped, "left_out": comparison.left_out}
    document |= {"incomplete": comparison.incomplete, "seen": comparison.seen}
    return json.dumps(null_for_undefined(document), indent=2, allow_nan=False)


def to_csv(comparison: Comparison) -> str:
    """Write one line a run after a line of keys; an empty field is null, a list is JSON."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    keys = [*COLUMNS, *comparison.more, *comparison.scores, *comparison.settings]
    writer.writerow([_csv_field(key) for key in keys])
    writer.writerows([_csv_field(row[key]) for key in keys] for row in comparison.rows)
    return stream.getvalue().rstrip("\n")


def _csv_field(value: Any) -> Any:
    if isinstance(value, list | dict | bool):
        return json.dumps(value)
    return spreadsheet_text(value) if isinstance(value, str) else value


def to_text(comparison: Comparison, width: int | None = None, *, all_settings: bool = False) -> str:
    """Write an aligned table for a screen of `width` columns; where it is too wide, in parts with the runs numbered.

    Width None: the terminal's; where the output is not a terminal, as wide as it takes, one line a run. Settings that
    seldom explain a score (SELDOM_COMPARED) are only counted, and MORE_COLUMNS left out, unless all are asked for.
    """
    width = width or screen_width()
    is_shown = {key: all_settings or not key.startswith(SELDOM_COMPARED) for key in comparison.settings}
    settings = [key for key, shown in is_shown.items() if shown]
    beside_miou = {"run": "run", "best_val_mIoU": COLUMNS["best_val_mIoU"]}
    headings = beside_miou | {key: SCORES[key] for key in comparison.scores} | COLUMNS
    if all_settings:
        headings |= {key: MORE_COLUMNS[key] for key in comparison.more}
    parts = [_table({**headings, **{key: key for key in settings}}, comparison.rows, None)]
    if width is not None and max(map(len, parts[0].split("\n"))) > width:
        parts = _narrow_tables(comparison, headings, settings, width)
    notes = [f"skipped: {printable(line)}" for line in comparison.skipped]
    notes += map(printable, first_lines(comparison.seen, "and {} more lines on cases that were seen before"))
    notes += map(printable, first_lines(comparison.incomplete, ALSO_INCOMPLETE))
    notes += map(printable, first_lines(comparison.left_out, ALSO_LEFT_OUT))
    if len(settings) < len(is_shown):
        left_out = [key for key, shown in is_shown.items() if not shown]
        settings_in_words = f"{counted(len(left_out), 'more setting')} ({some_of(left_out, 3)})"
        notes.insert(0, f"{settings_in_words} differ{'s' if len(left_out) == 1 else ''}: --all shows everything")
    if "data.split.hash" in comparison.settings:
        notes.insert(0, "the runs divided the cases in different ways: their scores are not of the same scans")
    listed = (row.get("model.class_names") for row in comparison.rows)
    if len({frozenset(map(str, names[1:])) for names in listed if isinstance(names, list)}) > 1:
        notes.insert(0, "the runs segment different structures: their scores are means over different ones")
    return "\n\n".join([*parts, *(fitted(note, width) for note in notes)])


def _narrow_tables(
    comparison: Comparison, headings: Mapping[str, str], settings: Sequence[str], width: int
) -> list[str]:
    """Lay out names, results and settings one below the other; settings have a line each if they outnumber the runs."""
    rows = [{"#": number} | row for number, row in enumerate(comparison.rows, start=1)]
    results = {"#": "#"} | {key: heading for key, heading in headings.items() if key != "run"}
    names = [[str(row["#"]), _cell("run", row["run"])] for row in rows]  # go on in the next line rather than being cut
    tables = [wrapped(("#", "run"), names, width, left=(1,)), _table(results, rows, width)]
    if len(settings) > len(rows):
        tables.append(_turned_table(settings, rows, width))
    elif settings:
        tables.append(_table({key: key for key in ("#", *settings)}, rows, width))
    return tables


def _table(headings: Mapping[str, str], rows: Sequence[Mapping[str, Any]], width: int | None) -> str:
    """A table with a line a run."""
    left = {n for n, key in enumerate(headings) if key != "time" and not _are_numbers(row[key] for row in rows)}
    cells = zip(*(_cells(key, rows, _longest(width)) for key in headings), strict=True)
    shown = shortened_apart(list(map(printable, headings.values())), _longest(width))
    return in_parts(shown, list(cells), width, left=left)


def _turned_table(settings: Sequence[str], rows: Sequence[Mapping[str, Any]], width: int) -> str:
    """A table with a line a setting, whose name stays whole where the screen is wide enough; values are shortened."""
    longest = max(LEAST_CELL, (width - max(map(len, settings)) - 2) // len(rows) - 2)
    names = shortened_apart(list(map(printable, settings)), _longest(width))
    left = {0, *(n for n, row in enumerate(rows, start=1) if not _are_numbers(row[key] for key in settings))}
    cells = [
        [name, *_cells(key, rows, min(longest, _longest(width)))] for name, key in zip(names, settings, strict=True)
    ]
    return in_parts(["setting", *(f"#{row['#']}" for row in rows)], cells, width, left=left)


def _longest(width: int | None) -> int:
    """Characters of a name or value that a screen of this width shows."""
    return LONGEST_CELL if width is None else min(LONGEST_CELL, width - 8)


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float | None) and not isinstance(value, bool) for value in values)


def _cells(key: str, rows: Sequence[Mapping[str, Any]], longest: int) -> list[str]:
    """What the runs have under a key; values that differ are never shortened to the same text."""
    texts = [_cell(key, row[key]) for row in rows]
    return texts if key == "run" else shortened_apart(texts, longest)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key == "best_val_mIoU" or key in SCORES:
        return f"{value:.4f}"
    if key == "total_parameters" and isinstance(value, int):
        return f"{value:,}"
    if key == "peak_memory_gb":
        return f"{value:.2f}" if isinstance(value, int | float) else "–"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
