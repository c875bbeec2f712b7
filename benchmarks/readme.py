"""The README's figures, written from the result files: `python -m benchmarks --readme`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import result_path


class Line(NamedTuple):
    """A line of the README's table: which measurement, and another program's method against ours."""

    label: str
    row: str
    """The result file."""
    comparison: str
    other: str
    ours: str


STEP, LOADING, PREDICTION = "MONAI's UNet, batch", "loading", "prediction"
LOSSES = ("conv + DiceCELoss", "slabs")
KEPT = ("conv + DiceCELoss, memory kept", "slabs, memory kept")
SAME_BUT_THE_LOSS = ("BodyNet, DiceCELoss", "BodyNet, ours")
LINES = (
    Line("loss + head, forward and backward, 2 classes", "losses", "2 classes", *LOSSES),
    Line("the same, 16 classes", "losses", "16 classes", *LOSSES),
    Line("the same, 71 classes", "losses", "71 classes", *LOSSES),
    Line("the same, freed memory kept, the fastest of three", "losses", "71 classes", *KEPT),
    Line("loss + head, 118 classes", "losses", "118 classes", *LOSSES),
    Line("training step, batch 1, all alike but the loss: DiceCELoss against ours", "step_loss", "batch 1",
         *SAME_BUT_THE_LOSS),
    Line("the same, batch 2", "step_loss", "batch 2", *SAME_BUT_THE_LOSS),
    Line("training step, batch 1: BodyNet, float32 + DiceCELoss, against ours", "step", "the same network, batch 1",
         "BodyNet, plain", "BodyNet, ours"),
    Line("training step, batch 1: MONAI's UNet (19.5 M) against BodyNet, ours", "step", f"{STEP} 1",
         "UNet, plain", "BodyNet, ours"),
    Line("MONAI's UNet, in our step", "step", f"{STEP} 1", "UNet, plain", "UNet, our step"),
    Line("training step, batch 2: MONAI's UNet against BodyNet, ours", "step", f"{STEP} 2",
         "UNet, plain", "BodyNet, ours"),
    Line("training step on an H100, batch 1, 71 classes: nnU-Net's network and loss against BodyNet, ours", "gpu",
         "steps", "nnU-Net", "BodyNet, ours"),
    Line("the same, all alike but the loss: DiceCELoss against ours", "gpu", "steps",
         "BodyNet, DiceCELoss", "BodyNet, ours"),
    Line("Dice of label maps, 71 classes", "metric", "Dice", "DiceMetric", "joint histogram"),
    Line("HD95 + surface Dice, 70 classes", "surfaces", "surfaces", "MONAI", "one pass"),
    Line("one 512×512×300 case, loaded and prepared", LOADING, LOADING, "MONAI's chain", "our chain"),
    Line("the same, every epoch after it (against our own first)", LOADING, LOADING, "our chain", "cached"),
    Line("augmentation of one case on one core", "augmentation", "default probabilities", "MONAI's chain", "ours"),
    Line("from features to a 512×512×800 label map, 71 classes", "restore", "71 classes",
         "conv + Invertd", "slab by slab"),
    Line("windows over a 512×512×800 scan, 71 classes", "window", "71 classes", "MONAI, logits", "features, slices"),
    Line("a 256×256×200 scan from file to file, the same network, in windows, float32", PREDICTION, PREDICTION,
         "MONAI", "ours"),
    Line("the same: nnU-Net's code against ours", PREDICTION, PREDICTION, "nnU-Net", "ours"),
    Line("start-up: `import monai` against `bodyseg train --help`", "startup", "whole process",
         "import monai", "bodyseg train --help"),
)  # fmt: skip

COSTS = {
    "| the same | 2 processor cores | ": (
        ("step_loss", "batch 1", "BodyNet, ours"),
        ("step", "the same network, batch 1", "BodyNet, ours"),
    ),
    "| segment a CT of 512×512×800 voxels, 71 classes, with a loaded network | 2 processor cores | ": (
        ("large_scan", "bodyseg predict", "BodyNet, ours"),
    ),
}
"""How lines of the table of costs begin, and the method whose seconds and GB follow: of the first file there is."""
COST = re.compile(r"(?P<seconds>\d+)(?P<of> s[^|]*\| )(?P<gb>\d+\.\d)(?= GB \|)")

TABLE = "| at 160×160×256 |"
HEAD = (f"{TABLE} plain MONAI | ours | faster | memory share |", "| --- | --- | --- | --- | --- |")


def rewritten(readme: str, folder: Path) -> str:
    """The README with the figures of the result files in a folder; what has no file keeps its figures or is left out.

    >>> rewritten("No figures.", Path("nowhere"))
    'No figures.'
    """
    for beginning in COSTS:
        if (found := costs(beginning, folder)) is not None:
            said = rf"\g<1>{found['seconds']:.0f}\g<of>{found['peak_bytes'] / 1e9:.1f}"
            readme = re.sub(f"({re.escape(beginning)}){COST.pattern}", said, readme)
    before, table, after = readme.partition(TABLE)
    if not table:
        return readme
    rest = after.partition("\n\n")[2]
    lines = [*HEAD, *(_cells(line, measured) for line, measured in measured_lines(folder))]
    return before + "\n".join(lines) + "\n\n" + rest


def costs(beginning: str, folder: Path) -> dict[str, Any] | None:
    """The method whose time and peak a line of the table of costs says; None where there is no result."""
    for row, comparison, method in COSTS[beginning]:
        measured = _comparison(folder, row, comparison)
        if measured is not None:
            found: dict[str, Any] = measured["methods"][method]
            return found
    return None


def measured_lines(folder: Path) -> list[tuple[Line, dict[str, Any]]]:
    """The table's lines that were measured at the documented size, with their comparisons."""
    found = [(line, _comparison(folder, line.row, line.comparison)) for line in LINES]
    return [(line, one) for line, one in found if one and {line.other, line.ours} <= one["methods"].keys()]


def _comparison(folder: Path, row: str, name: str) -> dict[str, Any] | None:
    path = result_path(folder, row, "full")
    if not path.exists():
        return None
    comparisons = json.loads(path.read_text(encoding="utf-8"))["comparisons"]
    return next((one for one in comparisons if one["name"] == name), None)


def _cells(line: Line, measured: dict[str, Any]) -> str:
    other, ours = (measured["methods"][method] for method in (line.other, line.ours))
    faster = share = "–"
    if "killed" not in other and "killed" not in ours:
        ratio, kind = other["seconds"] / ours["seconds"], f"{measured['memory']}_bytes"
        faster = f"{ratio:.0f}×" if ratio >= 20 else f"{ratio:.1f}×"
        if other.get(kind) and ours.get(kind):
            part = ours[kind] / other[kind]
            share = f"{part:.2f}" if part >= 0.1 else f"{part:.3f}"
    cells = [line.label, _cell(other, measured["memory"]), _cell(ours, measured["memory"]), faster, share]
    return f"| {' | '.join(cells)} |"


def _cell(found: dict[str, Any], memory: str | None) -> str:
    if "killed" in found:
        at = re.search(r"at [\d.]+ GB", found["killed"])
        return f"killed {at[0]}" if at else "killed for memory"
    seconds = found["seconds"]
    time = f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    n_bytes = found.get(f"{memory}_bytes")
    return f"{time}, {'+' * (memory == 'extra')}{n_bytes / 1e9:.2f} GB" if n_bytes is not None else time
