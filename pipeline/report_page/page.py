"""Put the page together: what the file holds, runs, curves, scores, worst cases, data, time, and how to repeat it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from pipeline.console.text import decimals, first_lines
from pipeline.report_page.charts import RUN_COLOURS, Line, curves, distribution
from pipeline.report_page.markup import Cell, data, facts, number, section, table, text, words
from pipeline.runs.history import TrainingLog
from pipeline.runs.setting_differences import differing_settings, flat_settings
from pipeline.visualisation.class_colours import class_colours

_LONGEST_VALUE = 300
_MOST_NOTES = 40


@dataclass(frozen=True)
class RunFacts:
    """What the three files of a run say."""

    name: str
    config: Mapping[str, Any]
    """training_config.json."""
    log: TrainingLog
    summary: Mapping[str, Any]
    """training_summary.json; empty while the run trains."""


@dataclass(frozen=True)
class CaseView:
    """A case that can be looked at."""

    case: str
    structure: str
    """What is shown of it: its worst structure."""
    dice: float | None
    """Of that structure."""
    volumes: Mapping[str, Any] | None
    """See `case_volumes.viewer_data`; None where it cannot be shown."""
    reason: str = ""
    """Why not."""


@dataclass(frozen=True)
class Scores:
    """What a metrics.json says, and pictures of its worst cases."""

    name: str
    document: Mapping[str, Any]
    views: Sequence[CaseView] = field(default_factory=tuple)


def page(runs: Sequence[RunFacts], scores: Sequence[Scores]) -> str:
    """The whole page as HTML."""
    n_views = sum(view.volumes is not None for one in scores for view in one.views)
    title = ", ".join([run.name for run in runs] or [one.name for one in scores])
    css, script = (files("pipeline.report_page").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    allowed = f"style-src '{_hash(css)}'; script-src '{_hash(script)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    volumes = {
        f"volumes-{n}-{m}": view.volumes
        for n, one in enumerate(scores)
        for m, view in enumerate(one.views)
        if view.volumes
    }
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{text(title)}</title><style>{css}</style></head><body>",
            _holds(n_views, runs, scores),
            f"<h1>{text(title)}</h1>",
            section("Runs", *(_run_facts(run) for run in runs)),
            section("Curves", _curves(runs)),
            section("What differs between the runs", _differences(runs)),
            *(_score_sections(n, one) for n, one in enumerate(scores)),
            section("Data", *(_data_facts(run) for run in runs)),
            section("Time and machine", *(_machine_facts(run) for run in runs)),
            section("How to repeat it", *(_repeat(run) for run in runs)),
            *(data(name, content) for name, content in volumes.items()),
            f"<script>{script}</script></body></html>\n",
        ]
    )


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _holds(n_views: int, runs: Sequence[RunFacts], scores: Sequence[Scores]) -> str:
    n_cases = sum(len(one.document["cases"]) for one in scores)
    others = f"the names{' and scores' if n_cases else ''} of cases, settings and paths"
    if n_views:
        what = f"This file holds images of {n_views} case{'s' * (n_views > 1)}, and {others}: treat it as patient data."
        return f'<p class="holds">{what}</p>'
    return f'<p class="holds clean">This file holds no images; it holds {others}.</p>'


def _run_facts(run: RunFacts) -> str:
    model, training, sizes = run.config["model"], run.config["training"], _sizes(run)
    best = run.log.best_val_miou
    status = run.summary.get("status", "unfinished")
    reason = run.summary.get("reason")
    return f"<h3>{text(run.name)}</h3>" + facts(
        [
            ("how it ended", f"{status}: {reason}" if reason else status),
            ("best validation mIoU", None if best is None else f"{best:.4f} after epoch {run.log.best_epoch} (from 0)"),
            ("epochs", f"{len(run.log)} of {training.get('max_epochs')}"),
            ("trained on", f"{_roots(run)} ({sizes})" if sizes else None),
            ("structures", max(0, len(model.get("class_names", [])) - 1) or None),
            ("network", _network(model)),
            (
                "parameters",
                f"{model['total_parameters']:,}" if isinstance(model.get("total_parameters"), int) else None,
            ),
        ]
    )


def _roots(run: RunFacts) -> str:
    found = run.config["data"].get("dataset_root")
    return " and ".join(map(str, found)) if isinstance(found, list) else str(found)


def _sizes(run: RunFacts) -> str:
    split = run.config["data"].get("split")
    sizes = split.get("sizes") if isinstance(split, dict) else None
    return ", ".join(f"{n} {name}" for name, n in sizes.items()) if isinstance(sizes, dict) else ""


def _network(model: Mapping[str, Any]) -> str:
    network = model.get("network_settings")
    return str(network.get("_target_", "")) if isinstance(network, dict) else ""


def _curves(runs: Sequence[RunFacts]) -> str:
    shown = [run for run in runs if len(run.log)]
    epochs = [run.log.history["epoch"] for run in shown]
    colours = [RUN_COLOURS[n % len(RUN_COLOURS)] for n in range(len(shown))]

    def lines(key: str, *, dashed: bool = False) -> list[Line]:
        kind = key.replace("_", " ")
        return [Line(f"{r.name}, {kind}", r.log.history[key], c, dashed) for r, c in zip(shown, colours, strict=True)]

    charts = [
        curves(
            "loss (dashed: training, solid: validation)",
            epochs * 2,
            [*lines("train_loss", dashed=True), *lines("val_loss")],
        ),
        curves("validation mIoU", epochs, lines("val_mIoU")),
        curves("training accuracy", epochs, lines("train_accuracy")),
        curves("learning rate", epochs, lines("learning_rate")),
    ]
    if not any(charts):
        return ""
    keys = "".join(
        f'<svg viewBox="0 0 800 16" role="img"><rect width="12" height="12" y="2" fill="{colour}"/>'
        f'<text x="18" y="12">{text(run.name)}</text></svg>'
        for run, colour in zip(shown, colours, strict=True)
        if len(shown) > 1
    )
    return f'<div class="curves">{"".join(charts)}</div>{keys}'


def _differences(runs: Sequence[RunFacts]) -> str:
    if len(runs) < 2:
        return ""
    configs = [dict(flat_settings(run.config)) for run in runs]
    keys = differing_settings(configs)
    rows = [[words(key), *(words(_value(config.get(key))) for config in configs)] for key in keys]
    return table(["setting", *(run.name for run in runs)], rows) if rows else "<p>Their settings are the same.</p>"


def _value(value: Any) -> str:
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return written if len(written) <= _LONGEST_VALUE else f"{written[:_LONGEST_VALUE]}…"


def _score_sections(index: int, scores: Scores) -> str:
    document, name = scores.document, scores.name
    return "".join(
        [
            section(f"Scores by structure: {name}", _about_scores(document), _structures(document)),
            section(f"Distribution of Dice: {name}", _distribution(document)),
            section(f"Worst cases first: {name}", *_views(index, scores), _cases(document)),
        ]
    )


def _about_scores(document: Mapping[str, Any]) -> str:
    mean = document["summary"]["left_out"]["mean_over_classes"]
    surface = document["settings"].get("surface")
    interval = document["settings"]["interval"]
    notes = [*document["notes"], *(f"{one['case']}: not scored: {one['reason']}" for one in document["refused"])]
    lines = "".join(f"<li>{text(note)}</li>" for note in first_lines(notes, "and {} more", _MOST_NOTES))
    return facts(
        [
            ("cases", f"{document['n_cases']} of {document['n_subjects']} subjects"),
            ("mean Dice over structures", None if mean["dice"] is None else f"{mean['dice']:.4f}"),
            ("predictions", document["predictions"]),
            ("labels", document["labels"]),
            ("interval", f"{interval['confidence']:.0%}, {interval['method']}"),
            (
                "surfaces",
                f"{surface['definition']}; tolerance {document['settings']['tolerance_mm']:g} mm" if surface else None,
            ),
        ]
    ) + (f'<ul class="notes">{lines}</ul>' if notes else "")


def _structures(document: Mapping[str, Any]) -> str:
    classes = document["summary"]["left_out"]["classes"]
    headings = ["structure", "cases", "Dice", "95 % interval", "median", "IoU", "HD95 mm", "missed", "surface Dice"]
    headings += ["reference ml", "predicted ml", "difference ml"]
    volumes = (one[key]["mean"] for one in classes.values() for key in ("reference_ml", "prediction_ml"))
    digits = decimals(volume for volume in volumes if volume is not None)
    return table(headings, (_structure_row(name, one, digits) for name, one in classes.items()))


def _structure_row(name: str, one: Mapping[str, Any], digits: int) -> list[Cell]:
    dice, (low, high) = one["dice"], one["dice"]["ci95"]
    interval = Cell("–", float("nan")) if low is None or high is None else Cell(f"{low:.3f} – {high:.3f}", low)
    return [
        words(name),
        Cell(str(dice["n"]), float(dice["n"])),
        number(dice["mean"], 4),
        interval,
        number(dice["median"], 4),
        number(one["iou"]["mean"], 4),
        number(one["hd95_mm"]["mean"], 2),
        Cell(str(one["hd95_mm"]["n_infinite"]), float(one["hd95_mm"]["n_infinite"])),
        number(one["surface_dice"]["mean"], 4),
        number(one["reference_ml"]["mean"], digits),
        number(one["prediction_ml"]["mean"], digits),
        number(one["volume_difference_ml"]["mean"], digits),
    ]


def _distribution(document: Mapping[str, Any]) -> str:
    names = document["class_names"]
    colours = {
        name: f"#{red:02x}{green:02x}{blue:02x}"
        for name, (red, green, blue) in zip(names, class_colours(names).tolist(), strict=True)
    }
    scores: dict[str, list[tuple[str, float]]] = {name: [] for name in names[1:]}
    for case in document["cases"]:
        for name, one in case["classes"].items():
            if name in scores and one["dice"] is not None:
                scores[name].append((case["case"], one["dice"]))
    return distribution(scores, colours)


def _views(index: int, scores: Scores) -> Iterator[str]:
    for number_of_view, view in enumerate(scores.views):
        dice = "" if view.dice is None else f", Dice {view.dice:.4f}"
        head = f"<h3>{text(view.case)}: {text(view.structure)}{dice}</h3>"
        if view.volumes is None:
            yield f'<div class="case">{head}<p class="soft">Not shown: {text(view.reason)}</p></div>'
        else:
            name = f"volumes-{index}-{number_of_view}"
            button = f'<button type="button" data-volumes="{name}">Show image, reference and prediction</button>'
            yield f'<div class="case">{head}{button}</div>'


def scored_structures(case: Mapping[str, Any]) -> dict[str, float]:
    """Dice of the structures that a case's label holds, the worst first."""
    dice = {name: one["dice"] for name, one in case["classes"].items() if one["dice"] is not None}
    return dict(sorted(dice.items(), key=lambda item: item[1]))


def _cases(document: Mapping[str, Any]) -> str:
    rows = []
    for case in document["cases"]:
        scored = scored_structures(case)
        worst = next(iter(scored), None)
        rows.append(
            [
                words(case["case"]),
                words(case.get("subject") or ""),
                number(case["mean_dice"], 4),
                Cell(str(len(scored)), float(len(scored))),
                words("" if worst is None else worst),
                number(None if worst is None else scored[worst], 4),
                words(" × ".join(f"{edge:.3g}" for edge in case["spacing_mm"])),
            ]
        )
    return table(["case", "subject", "mean Dice", "structures", "worst structure", "its Dice", "voxel mm"], rows)


def _data_facts(run: RunFacts) -> str:
    group = run.config["data"]
    split = group.get("split") if isinstance(group.get("split"), dict) else {}
    found = group.get("intensity_found")
    skipped = group.get("skipped_cases")
    absent = run.config["loss"].get("classes_that_never_occur")
    pairs = [
        ("cases", _sizes(run)),
        ("split", split.get("source")),
        ("channels", ", ".join(map(str, group.get("channel_names", [])))),
        ("intensities", json.dumps(found, ensure_ascii=False) if found else None),
        ("window", group.get("window")),
        ("size of the network's input", group.get("target_size")),
        (
            "left out",
            "; ".join(f"{case}: {reason}" for case, reason in skipped.items()) if isinstance(skipped, dict) else None,
        ),
        ("structures in no training case", ", ".join(map(str, absent)) if isinstance(absent, list) else None),
    ]
    return f"<h3>{text(run.name)}</h3>{facts(pairs)}"


def _machine_facts(run: RunFacts) -> str:
    training = run.config["training"]
    pairs = [
        ("started", run.config["experiment"].get("start_time")),
        ("ended", run.summary.get("completion_time") or run.log.last_update),
        *(
            (name.replace("_", " "), training.get(name))
            for name in ("devices", "precision_used", "n_gpus", "n_processes")
        ),
        *((str(name).replace("_", " "), value) for name, value in run.config["system"].items()),
    ]
    return f"<h3>{text(run.name)}</h3>{facts(pairs)}"


def _repeat(run: RunFacts) -> str:
    seed = run.config["training"].get("seed")
    return (
        f"<h3>{text(run.name)}</h3><p>Its training_config.json holds every setting and the split; "
        f"seed {text(seed)} decides everything random.</p>"
        f"<pre>bodyseg train --config {text(run.name)}/training_config.json --exp_name again</pre>"
    )
