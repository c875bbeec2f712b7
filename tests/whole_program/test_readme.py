"""What the README says, held against the result files, the Makefile and the network."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from PIL import Image

from networks.body_net import BodyNet
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
UNITS = {"s": 1.0, "ms": 1e-3, "GB": 1e9}
STATED = re.compile(r"(?P<extra>\+?)(?P<number>\d+(?:\.(?P<decimals>\d+))?) (?P<unit>s|ms|GB)\b")

STEP_1, STEP_2, LOADING = "MONAI's UNet, batch 1", "MONAI's UNet, batch 2", "loading"
MEASURED = {
    **{
        row: ("losses", f"{n} classes", "conv + DiceCELoss", "slabs")
        for row, n in {
            "loss + head, forward and backward, 2 classes": 2,
            "the same, 16 classes": 16,
            "the same, 71 classes": 71,
            "the same, 118 classes": 118,
        }.items()
    },
    "training step, batch 1: BodyNet, float32 + DiceCELoss, against ours": (
        "step", "the same network, batch 1", "BodyNet, plain", "BodyNet, ours",
    ),
    "training step, batch 1: MONAI's UNet (19.5 M) against BodyNet, ours": (
        "step", STEP_1, "UNet, plain", "BodyNet, ours",
    ),
    "MONAI's UNet, in our step": ("step", STEP_1, "UNet, plain", "UNet, our step"),
    "training step, batch 2: MONAI's UNet against BodyNet, ours": ("step", STEP_2, "UNet, plain", "BodyNet, ours"),
    "Dice of label maps, 71 classes": ("metric", "Dice", "DiceMetric", "joint histogram"),
    "HD95 + surface Dice, 70 classes": ("surfaces", "surfaces", "MONAI", "one pass"),
    "one 512×512×300 case, first epoch": ("loading", LOADING, "MONAI's chain", "our chain"),
    "the same, every epoch after it (against our own first)": ("loading", LOADING, "our chain", "cached"),
    "augmentation of one case on one core": ("augmentation", "default probabilities", "MONAI's chain", "ours"),
    "from features to a 512×512×800 label map, 71 classes": (
        "restore", "71 classes", "conv + Invertd", "slab by slab",
    ),
    "start-up: `import monai` against `bodyseg train --help`": (
        "startup", "whole process", "import monai", "bodyseg train --help",
    ),
}  # fmt: skip
"""Row of the table -> result file, comparison, the method of another program, ours."""


def results(file: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text(encoding="utf-8"))


def comparison(file: str, name: str) -> dict[str, Any]:
    return next(one for one in results(file)["comparisons"] if one["name"] == name)


def rounds_to(value: float, stated: str) -> bool:
    """Whether a value is the stated number, in as many decimals as that has."""
    decimals = len(stated.partition(".")[2])
    return abs(value - float(stated)) <= 0.5000001 * 10.0**-decimals


def hold(cell: str, found: dict[str, Any]) -> None:
    """A cell says a method's time, and its peak of memory or (+) what it took on top; or that it was killed."""
    if "killed" in cell:
        assert "killed for memory" in found["killed"]
        assert not (at := re.search(r"at ([\d.]+) GB", cell)) or at[0] in found["killed"]
        return
    stated = list(STATED.finditer(cell))
    assert stated
    assert stated[0]["unit"] != "GB"
    for one in stated:
        memory = "extra_bytes" if one["extra"] else "peak_bytes"
        value = found[memory if one["unit"] == "GB" else "seconds"]
        assert rounds_to(value / UNITS[one["unit"]], one["number"]), f"{cell}: {value} in the results"


def table() -> dict[str, list[str]]:
    lines = README.partition("| at 160×160×256 |")[2].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return {row[0]: row[1:] for row in rows}


def test_the_table_has_the_rows_that_were_measured():
    assert list(table()) == list(MEASURED)


@pytest.mark.parametrize("row", MEASURED)
def test_a_row_of_the_table_is_what_its_result_file_holds(row):
    file, name, plain, ours = MEASURED[row]
    measured = comparison(file, name)
    other, mine = measured["methods"][plain], measured["methods"][ours]
    said_other, said_mine, faster, share = table()[row]
    hold(said_other, other)
    hold(said_mine, mine)
    if faster != "–":
        assert rounds_to(other["seconds"] / mine["seconds"], faster.removesuffix("×"))
    if share != "–":
        kind = f"{measured['memory']}_bytes"
        assert rounds_to(mine[kind] / other[kind], share)


def test_the_costs_of_a_training_are_those_that_were_measured():
    gpu = comparison("gpu", "batch 1")["methods"]["BodyNet, ours"]
    assert gpu["facts"]["device"] == "NVIDIA H200"
    assert re.search(r"one H200 \| 0\.11 s a scan and epoch \| 4\.2 GB of the GPU's", README)
    assert rounds_to(gpu["seconds"], "0.11")
    assert rounds_to(gpu["peak_bytes"] / 1e9, "4.2")
    assert "100 whole bodies take that GPU 55 minutes for 300 epochs" in README
    assert rounds_to(100 * 300 * gpu["seconds"] / 60, "55")
    step = comparison("step", "the same network, batch 1")["methods"]["BodyNet, ours"]
    assert "| the same | 2 processor cores | 23 s a scan and epoch | 7.9 GB |" in README
    assert rounds_to(step["seconds"], "23")
    assert rounds_to(step["peak_bytes"] / 1e9, "7.9")
    planned = next(run for run in results("deadline")["runs"] if run["budget"] == "5min")
    assert "mean Dice 0.882 | 2 processor cores | 326 s |" in README
    assert planned["seconds"]["train"] == 326
    assert rounds_to(planned["dice"]["mean"], "0.882")
    assert "a prepared scan 20 MB" in README
    assert rounds_to(160 * 160 * 256 * 3 / 1e6, "20")  # uint16 image and uint8 label, as pipeline.cache.entry stores it


def test_the_memory_at_many_classes_is_that_of_the_result_files():
    said = re.search(
        r"take ([\d.]+) GB with 71 classes and ([\d.]+) GB with 118 \(plain MONAI ([\d.]+) and ([\d.]+)", README
    )
    ours, plain = "slabs", "conv + DiceCELoss"
    for stated, (n, method) in zip(said.groups(), [(71, ours), (118, ours), (71, plain), (118, plain)], strict=True):
        measured = comparison("losses", f"{n} classes")["methods"][method]
        assert rounds_to(measured["extra_bytes"] / 1e9, stated)
    said = re.search(r"peaks at ([\d.]+) and ([\d.]+) GB", README)
    for stated, n in zip(said.groups(), (71, 118), strict=True):
        methods = comparison("restore", f"{n} classes")["methods"]
        assert rounds_to(methods["slab by slab"]["peak_bytes"] / 1e9, stated)
        assert "killed for memory" in methods["conv + Invertd"]["killed"]


def test_a_trained_network_has_the_documented_size():
    assert "20.47 million parameters" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in BodyNet(in_channels=1, n_classes=71, base_channels=32).parameters())
    assert rounds_to(parameters / 1e6, "20.47")
    assert "a trained network 82 MB" in README
    assert rounds_to(parameters * 4 / 1e6, "82")


def test_the_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets | {"and", "from"}


def test_the_picture_is_there_and_small():
    path = ROOT / "docs" / "preview.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    assert path.stat().st_size < 200_000
