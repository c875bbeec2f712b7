"""What the page says of the data of runs: facts, structures, and what the check before the training found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.checks.findings import HEADINGS
from pipeline.console.text import counted, four_digits, some_of, volume_unit
from pipeline.report_page.markup import Cell, Facts, folded, listing, number, plain, section, side_by_side, table, text
from pipeline.report_page.markup import words as word_cell

Configs = Mapping[str, Mapping[str, Any]]
"""By name of the run, its training_config.json."""

_FEW = 3
"""Lines that are shown at once; more are folded."""

_MOST_CAUSES = 100

_MEANINGS = {
    "cases": "cases whose label holds the structure",
    "train": "of these, those that were trained on",
    "val": "of these, those that validated",
}


def data_section(configs: Configs) -> str:
    """The section on the data; "" without runs."""
    if not configs:
        return ""
    return section(
        "Data",
        side_by_side({name: _facts(config) for name, config in configs.items()}),
        *_each(configs, _structures, _structure_table),
        *_each(configs, _findings, _findings_list),
        *_each(configs, _left_out, _left_out_list),
    )


def split_sizes(config: Mapping[str, Any]) -> str:
    """How many cases train, validate and test, in words."""
    split = config["data"].get("split")
    sizes = split.get("sizes") if isinstance(split, dict) else None
    return ", ".join(f"{n} {name}" for name, n in sizes.items()) if isinstance(sizes, dict) else ""


def _check(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the check before the training recorded; empty in runs of earlier versions."""
    return config["data"].get("check") or {}


def _facts(config: Mapping[str, Any]) -> Facts:
    group, checked = config["data"], _check(config)
    split = group.get("split") if isinstance(group.get("split"), dict) else {}
    found = group.get("intensity_found")
    if isinstance(found, dict) and {"intensity", "because"} <= found.keys():
        found = f"{plain(found['intensity'])}, because {found['because']}"
    size = " × ".join(map(plain, group.get("target_size") or []))
    size = f"{size} voxels" if size else ""
    if size and group.get("mode") == "patch":
        size = f"patches of {size}, resampled to {' × '.join(map(plain, group.get('spacing_mm') or []))} mm"
    return [
        ("cases", split_sizes(config)),
        ("subjects", checked.get("n_subjects")),
        ("split", split.get("source")),
        ("layout", checked.get("layout")),
        ("data sets", [one.get("root") for one in group.get("data_sets", []) if isinstance(one, dict)]),
        ("cases that annotate a structure", group.get("annotated")),
        ("channels", list(group.get("channel_names", []))),
        ("modality, intensities", found),
        ("window", _window(group)),
        ("size of the scans, voxels", _range(checked.get("size_voxels"))),
        ("size of their voxels, mm", _range(checked.get("spacing_mm"))),
        ("orientations", checked.get("orientations")),
        ("files", checked.get("formats")),
        ("types of voxels", checked.get("dtypes")),
        ("voxels that were NaN became", group.get("fill_nan")),
        ("label values changed", group.get("label_remap")),
        ("size of the network's input", size),
        ("augmentation", group.get("data_aug")),
        ("structures in no training case", config["loss"].get("classes_that_never_occur")),
    ]


def _window(group: Mapping[str, Any]) -> str:
    window, found = group.get("window"), group.get("intensity_found")
    ways = found.get("intensity") if isinstance(found, dict) else None
    if not isinstance(window, list) or "ct" not in (ways if isinstance(ways, list) else [ways]):
        return ""
    return f"{' to '.join(map(plain, window))} HU"


def _range(spread: Mapping[str, Sequence[float]] | None) -> str:
    if not spread:
        return ""
    edges = {name: " × ".join(f"{value:.4g}" for value in spread[name]) for name in ("min", "median", "max")}
    if edges["min"] == edges["max"]:
        return edges["min"]
    return f"{edges['min']} to {edges['max']}, median {edges['median']}"


def _each(configs: Configs, of: Callable[[Mapping[str, Any]], Any], write: Callable[[Any], str]) -> Iterator[str]:
    """What differs between runs is written for each, below their names; what all agree in once."""
    found: dict[str, tuple[list[str], Any]] = {}
    for name, config in configs.items():
        content = of(config)
        if content is not None:
            found.setdefault(json.dumps(content), ([], content))[0].append(name)
    for names, content in found.values():
        about = f"<p>{text(some_of(names, 6))}:</p>" if len(found) > 1 else ""
        yield about + write(content)


def _structures(config: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    structures = _check(config).get("classes", [])[1:]
    if config["data"].get("cross_validation"):  # its folds would have a table each for these alone
        structures = [{key: one[key] for key in one if key not in ("n_train", "n_val")} for one in structures]
    return structures or None


def _structure_table(structures: Sequence[Mapping[str, Any]]) -> str:
    unit, per_ml = volume_unit(one["median_ml"] for one in structures if one["median_ml"] is not None)
    counts = {"n_cases": "cases", "n_train": "train", "n_val": "val"}
    shown = [key for key in counts if key in structures[0]]
    rows = (
        [
            word_cell(one["name"]),
            *(number(one[key], 0) for key in shown),
            number(None) if one["median_ml"] is None else _volume(one["median_ml"] * per_ml),
        ]
        for one in structures
    )
    headings = ["structure", *(counts[key] for key in shown), f"median volume, {unit}"]
    return f"<h3>Structures in the labels</h3>{table(headings, rows, _MEANINGS)}"


def _volume(value: float) -> Cell:
    return Cell(four_digits(value), float(value))


def _findings(config: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    return _check(config).get("findings")


def _findings_list(findings: Sequence[Mapping[str, Any]]) -> str:
    heading = "<h3>What the check of the data found</h3>"
    if not findings:
        return f"{heading}<p>Nothing that is unusual.</p>"
    lines = [_finding(one) for one in findings[:_MOST_CAUSES]]
    if len(findings) > _MOST_CAUSES:
        lines.append(text(f"and {len(findings) - _MOST_CAUSES} more; bodyseg check lists all"))
    n_findings = sum(one["n_findings"] for one in findings)
    return heading + _folded_if_long(f"{counted(n_findings, 'warning')} of {counted(len(findings), 'kind')}", lines)


def _finding(one: Mapping[str, Any]) -> str:
    n_findings, cases = one["n_findings"], one["cases"]
    n_cases = one.get("n_cases", n_findings)  # runs of earlier versions name a case once for each of its findings
    where = "the data set"
    if cases:
        left = f" and {n_cases - len(cases)} more" if n_cases > len(cases) else ""
        several = f"{n_findings} in " if n_findings > n_cases else ""
        where = f"{several}case{'s' * (n_cases > 1)} {', '.join(cases)}{left}"
    title = f"<b>{text(HEADINGS.get(one['kind'], one['kind']))}</b>"
    said = f"{one['file']}: expected {one['expected']}, found {one['found']}; {one['remedy']}"
    perhaps = "" if "numbers_differ" in one else "perhaps "  # runs of earlier versions do not say
    others = f" (others: {perhaps}other numbers)" if one.get("numbers_differ", n_findings > 1) else ""
    return f"{title}: {text(where)}<br>{text(said)}{others}"


def _left_out(config: Mapping[str, Any]) -> dict[str, str] | None:
    return config["data"].get("skipped_cases") or None


def _left_out_list(reasons: Mapping[str, str]) -> str:
    lines: Iterable[str] = (text(f"{case}: {reason}") for case, reason in reasons.items())
    return "<h3>Cases that were left out</h3>" + _folded_if_long(counted(len(reasons), "case"), list(lines))


def _folded_if_long(summary: str, lines: Sequence[str]) -> str:
    return listing(lines) if len(lines) <= _FEW else folded(summary, listing(lines))
