"""What the page says of runs: how they ended, their curves, what differs, their data, time, and how to repeat them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pipeline.report_page.charts import RUN_COLOURS, Line, curves
from pipeline.report_page.data_sections import data_section, split_sizes
from pipeline.report_page.markup import Facts, legend, section, side_by_side, text
from pipeline.runs.history import TrainingLog
from pipeline.runs.seen_cases import seen_at_start
from pipeline.runs.setting_differences import differing_settings, flat_settings
from pipeline.runs.time_stamps import in_hours, training_time

_LONGEST_VALUE = 300
_LONGEST_HASH = 12


@dataclass(frozen=True)
class RunFacts:
    """What the three files of a run say."""

    name: str
    config: Mapping[str, Any]
    """training_config.json."""
    log: TrainingLog
    summary: Mapping[str, Any]
    """training_summary.json; empty while the run trains."""
    path: str
    """Of its folder, as it was given."""


def sections_before_scores(runs: Sequence[RunFacts]) -> str:
    """How the runs ended, their curves, and what differs between them."""
    return "".join(
        [
            section("Runs", _in_columns(runs, _ending)),
            section("Curves", _curves(runs)),
            section("What differs between the runs", _differences(runs)),
        ]
    )


def sections_after_scores(runs: Sequence[RunFacts]) -> str:
    """The data, time and machine, and how to repeat the runs."""
    return "".join(
        [
            data_section({run.name: run.config for run in runs}),
            section("Time, memory and machine", _in_columns(runs, _time_and_machine)),
            section("How to repeat it", _repeat(runs)),
        ]
    )


def _in_columns(runs: Sequence[RunFacts], of: Any) -> str:
    return side_by_side({run.name: of(run) for run in runs}) if runs else ""


def _ending(run: RunFacts) -> Facts:
    model, training, sizes = run.config["model"], run.config["training"], split_sizes(run.config)
    best = run.log.best_val_miou
    status = run.summary.get("status", "unfinished")
    reason = run.summary.get("reason")
    parameters = model.get("total_parameters")
    return [
        ("how it ended", f"{status}: {reason}" if reason else status),
        ("best validation mIoU", None if best is None else f"{best:.4f} after epoch {run.log.best_epoch} (from 0)"),
        ("epochs", f"{len(run.log)} of {training.get('max_epochs')}"),
        ("trained on", f"{_roots(run)} ({sizes})" if sizes else None),
        *_beginning(run),
        ("structures", max(0, len(model.get("class_names", [])) - 1) or None),
        ("network", _network(model)),
        ("parameters", f"{parameters:,}" if isinstance(parameters, int) else None),
    ]


def _beginning(run: RunFacts) -> Facts:
    """The weights with which it began, and which of its cases these were trained on."""
    started = run.config["training"].get("started_from")
    seen = seen_at_start([run.config], "val"), seen_at_start([run.config], "test")
    return [
        ("began with the weights of", started.get("run") if isinstance(started, dict) else None),
        ("seen before", "; ".join(filter(None, seen))),
    ]


def _roots(run: RunFacts) -> str:
    found = run.config["data"].get("dataset_root")
    return " and ".join(map(str, found)) if isinstance(found, list) else str(found)


def _network(model: Mapping[str, Any]) -> str:
    network = model.get("network_settings")
    return str(network.get("_target_", "")) if isinstance(network, dict) else ""


def _curves(runs: Sequence[RunFacts]) -> str:
    shown = [run for run in runs if len(run.log)]
    epochs = [run.log.history["epoch"] for run in shown]
    colours = [RUN_COLOURS[n % len(RUN_COLOURS)] for n in range(len(shown))]

    def lines(key: str, kind: str, *, dashed: bool = False, marked: bool = False) -> list[Line]:
        return [
            Line(
                f"{run.name}, {kind}" if len(shown) > 1 else kind,
                run.log.history[key],
                colour,
                dashed,
                run.log.best_epoch if marked else None,
            )
            for run, colour in zip(shown, colours, strict=True)
        ]

    charts = [
        curves(
            "loss (dashed: training, solid: validation)",
            epochs * 2,
            [*lines("train_loss", "training", dashed=True), *lines("val_loss", "validation")],
        ),
        curves("validation mIoU (ringed: the best)", epochs, lines("val_mIoU", "mIoU", marked=True)),
        curves("training accuracy", epochs, lines("train_accuracy", "accuracy")),
        curves("learning rate", epochs, lines("learning_rate", "rate")),
    ]
    if not any(charts):
        return ""
    names = legend((run.name, colour) for run, colour in zip(shown, colours, strict=True)) if len(shown) > 1 else ""
    return f'{names}<div class="curves">{"".join(charts)}</div>'


def _differences(runs: Sequence[RunFacts]) -> str:
    if len(runs) < 2:
        return ""
    configs = [dict(flat_settings(run.config)) for run in runs]
    keys = differing_settings(configs)
    if not keys:
        return "<p>Their settings are the same.</p>"
    pairs = ([(key, _value(key, config.get(key))) for key in keys] for config in configs)
    return side_by_side(dict(zip((run.name for run in runs), pairs, strict=True)))


def _value(key: str, value: Any) -> str:
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    longest = _LONGEST_HASH if key.endswith("hash") else _LONGEST_VALUE
    return written if len(written) <= longest else f"{written[:longest]}…"


def _time_and_machine(run: RunFacts) -> Facts:
    training, system = run.config["training"], run.config["system"]
    seconds = training_time(run.config, run.log, run.summary)
    is_known = run.log.training_seconds is not None  # else pauses are among it
    peak, of = run.summary.get("peak_memory_gb"), run.summary.get("peak_memory_of")
    names = {"n_gpus": "GPUs", "n_nodes": "machines", "n_processes": "processes", "effective_precision": "precision"}
    return [
        ("started", run.config["experiment"].get("start_time")),
        ("ended", run.summary.get("completion_time")),
        ("last epoch", run.log.last_update if len(run.log) and not run.summary else None),
        ("time in training" if is_known else "from start to end", None if seconds is None else in_hours(seconds)),
        ("for each epoch", f"{seconds / len(run.log):.1f} s" if seconds is not None and len(run.log) else None),
        ("most memory of a process", None if peak is None else f"{peak:.3g} GB of {_memory(of)}"),
        *((name, training.get(key)) for key, name in names.items()),
        *((str(name).replace("_", " "), value) for name, value in system.items()),
    ]


def _memory(device: object) -> str:
    return "main memory" if device == "CPU" else f"the GPU, {device}"


def _repeat(runs: Sequence[RunFacts]) -> str:
    if not runs:
        return ""
    studies: dict[str, list[RunFacts]] = {}
    for run in runs:
        studies.setdefault(_study(run), []).append(run)
    lines = [f"bodyseg train --config {_config(run)}" for run in studies.pop("", ())]
    for study, folds in studies.items():
        command = "cross-validate --data.fold 0" if len(folds) > 1 else "train"
        log_dir = shlex.quote(str(PurePath(study).parent))  # beside the study: it is full of its folds
        lines.append(f"bodyseg {command} --config {_config(folds[0])} --log_dir {log_dir}")
    lines = [f"{line} --exp_name again{f'_{n}' if n > 1 else ''}" for n, line in enumerate(lines, start=1)]
    seeds = ", ".join(dict.fromkeys(str(run.config["training"].get("seed")) for run in runs))
    relative = [root for run in runs if not PurePath(root := _roots(run)).is_absolute()]
    where = f" Start it where {relative[0]} lies: that path is relative." if relative else ""
    about = (
        f"<p>training_config.json holds every setting and the split; seed {text(seeds)} decides everything random."
        f"{text(where)}{text(''.join(map(_about_resuming, runs)))}</p>"
    )
    return about + "".join(f"<pre>{text(line)}</pre>" for line in lines)


def _about_resuming(run: RunFacts) -> str:
    """Say of a run that was resumed with other settings what its training_config.json does not repeat."""
    parts = run.config["training"].get("resumed")
    if not parts:
        return ""
    changed = [key for key in parts[0] if key != "epoch" and len({part[key] for part in parts}) > 1]
    held = [f"from epoch {part['epoch']} on {' and '.join(f'{key} {part[key]}' for key in changed)}" for part in parts]
    return (
        f" {run.name} was resumed with other settings ({'; '.join(held)}): repeated, it has the last ones throughout."
    )


def _study(run: RunFacts) -> str:
    """The folder of the cross-validation that a run is a fold of; "" of other runs."""
    experiment, folds = run.config["experiment"], run.config["data"].get("cross_validation")
    if isinstance(folds, dict) and experiment.get("name") == f"fold_{folds.get('fold')}":
        return str(experiment.get("log_dir") or "")
    return ""


def _config(run: RunFacts) -> str:
    return shlex.quote(f"{run.path}/training_config.json")
