"""What the page says of scores: by structure, their distribution, and the worst cases, which can be looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.console.text import counted, decimals, first_lines, volume_unit
from pipeline.metrics.statistics import LEAST_SUBJECTS
from pipeline.report_page.charts import distribution
from pipeline.report_page.markup import Cell, facts, listing, number, section, table, text, words
from pipeline.visualisation.class_colours import class_colours

_MOST_NOTES = 40

_MEANINGS = {
    "cases": "cases whose label holds the structure",
    "Dice": "mean over these cases",
    "std": "standard deviation of the Dice over these cases",
    "IoU": "mean over these cases",
    "HD95 mm": "95th percentile of the distances between the surfaces; mean over the cases where both are there",
    "missed": "cases whose label holds the structure and whose prediction has none of it",
    "surface Dice": "share of the surfaces that is no farther from the other than the tolerance",
    "reference": "mean volume in the labels",
    "predicted": "mean volume in the predictions",
    "difference": "predicted minus reference",
}


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
    incomplete: str = ""
    """Of how many of how many cases the scores are, and what to do, in one line; "": of all."""


def score_sections(index: int, scores: Scores) -> str:
    """Everything about one metrics.json, the page's `index`-th."""
    document, name = scores.document, scores.name
    incomplete = f"<p>{text(scores.incomplete)}</p>" if scores.incomplete else ""
    return "".join(
        [
            section(f"Scores by structure: {name}", _about_scores(document), _structures(document), incomplete),
            section(f"Distribution of Dice: {name}", _distribution(document)),
            section(f"Worst cases first: {name}", *_views(index, scores), _cases(document)),
        ]
    )


def volumes_by_id(scores: Sequence[Scores]) -> dict[str, Mapping[str, Any]]:
    """What the page's viewer shows, by the name under which a button asks for it."""
    return {
        _volumes_id(n, m): view.volumes
        for n, one in enumerate(scores)
        for m, view in enumerate(one.views)
        if view.volumes is not None
    }


def _volumes_id(index: int, number_of_view: int) -> str:
    return f"volumes-{index}-{number_of_view}"


def _about_scores(document: Mapping[str, Any]) -> str:
    mean = document["summary"]["left_out"]["mean_over_classes"]
    surface = document["settings"].get("surface")
    interval = document["settings"]["interval"]
    few = "" if document["n_subjects"] >= LEAST_SUBJECTS else f"; none below {LEAST_SUBJECTS} subjects"
    subjects = f" of {counted(document['n_subjects'], 'subject')}"
    if any(case.get("subject") is None for case in document["cases"]):
        subjects = ", each taken for a subject of its own"
    notes = [*document["notes"], *(f"{one['case']}: not scored: {one['reason']}" for one in document["refused"])]
    lines = map(text, first_lines(notes, "and {} more", _MOST_NOTES))
    return facts(
        [
            ("cases", f"{document['n_cases']}{subjects}"),
            ("mean Dice over structures", None if mean["dice"] is None else f"{mean['dice']:.4f}"),
            ("predictions", document["predictions"]),
            ("weights", [_weights(one) for one in document.get("networks") or ()]),
            ("labels", document["labels"]),
            ("interval", f"{interval['confidence']:.0%}, {interval['method']}{few}"),
            (
                "surfaces",
                f"{surface['definition']}; tolerance {document['settings']['tolerance_mm']:g} mm" if surface else None,
            ),
        ]
    ) + (listing(lines) if notes else "")


def _weights(network: Mapping[str, Any]) -> str:
    """The run, and the epoch after which its weights were kept where the checkpoint says it."""
    epoch = network["epoch"]
    return str(network["run"]) if epoch is None else f"{network['run']} after epoch {epoch} (from 0)"


def _structures(document: Mapping[str, Any]) -> str:
    classes = document["summary"]["left_out"]["classes"]
    interval = f"{document['settings']['interval']['confidence']:.0%} interval"
    headings = ["structure", "cases", "Dice", "std", interval, "median", "IoU", "HD95 mm", "missed", "surface Dice"]
    found = (one[key]["mean"] for one in classes.values() for key in ("reference_ml", "prediction_ml"))
    volumes_ml = [volume for volume in found if volume is not None]
    unit, per_ml = volume_unit(volumes_ml)
    digits = decimals(volume * per_ml for volume in volumes_ml)
    distances = (one["hd95_mm"]["mean"] for one in classes.values())
    mm_digits = decimals(distance for distance in distances if distance is not None)
    missed = _missed(document)

    def row(name: str, one: Mapping[str, Any]) -> list[Cell]:
        means = (one[key]["mean"] for key in ("reference_ml", "prediction_ml", "volume_difference_ml"))
        return [
            *_score_cells(name, one, missed[name], mm_digits),
            *(number(None if mean is None else mean * per_ml, digits) for mean in means),
        ]

    of_volumes = {f"{name} {unit}": _MEANINGS[name] for name in ("reference", "predicted", "difference")}
    rows = (row(name, one) for name, one in classes.items())
    return table([*headings, *of_volumes], rows, _MEANINGS | of_volumes)


def _missed(document: Mapping[str, Any]) -> Counter[str]:
    """How many cases each structure is missed in, as their voxels say: HD95 is not measured in every case."""
    return Counter(
        name
        for case in document["cases"]
        for name, one in case["classes"].items()
        if one["dice"] is not None and one["true_positives"] + one["false_positives"] == 0
    )


def _score_cells(name: str, one: Mapping[str, Any], n_missed: int, mm_digits: int) -> list[Cell]:
    dice, (low, high) = one["dice"], one["dice"]["ci95"]
    interval = Cell("–", float("nan")) if low is None or high is None else Cell(f"{low:.3f} – {high:.3f}", low)
    return [
        words(name),
        number(dice["n"], 0),
        number(dice["mean"], 4),
        number(dice["std"], 4),
        interval,
        number(dice["median"], 4),
        number(one["iou"]["mean"], 4),
        number(one["hd95_mm"]["mean"], mm_digits),
        number(n_missed, 0),
        number(one["surface_dice"]["mean"], 4),
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
            name = _volumes_id(index, number_of_view)
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
                number(len(scored), 0),
                words("" if worst is None else worst),
                number(None if worst is None else scored[worst], 4),
                words(" × ".join(f"{edge:.3g}" for edge in case["spacing_mm"])),
            ]
        )
    return table(["case", "subject", "mean Dice", "structures", "worst structure", "its Dice", "voxel mm"], rows)
