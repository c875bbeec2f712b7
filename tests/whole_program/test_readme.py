"""What the README says, held against the result files, the Makefile and the network."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from monai.networks.nets import UNet
from PIL import Image

from benchmarks.readme import COSTS, LINES, costs, measured_lines, rewritten
from networks.body_net import BodyNet
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
UNITS = {"s": 1.0, "ms": 1e-3, "GB": 1e9}
STATED = re.compile(r"(?P<extra>\+?)(?P<number>\d+(?:\.(?P<decimals>\d+))?) (?P<unit>s|ms|GB)\b")

RESULTS = ROOT / "benchmarks" / "results"
MEASURED = {line.label: (line, measured) for line, measured in measured_lines(RESULTS)}
"""Line of the table -> which measurement it is, and that."""


def results(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))


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
    line, measured = MEASURED[row]
    other, mine = measured["methods"][line.other], measured["methods"][line.ours]
    said_other, said_mine, faster, share = table()[row]
    hold(said_other, other)
    hold(said_mine, mine)
    if faster != "–":
        assert rounds_to(other["seconds"] / mine["seconds"], faster.removesuffix("×"))
    if share != "–":
        kind = f"{measured['memory']}_bytes"
        assert rounds_to(mine[kind] / other[kind], share)


def test_new_results_are_written_into_the_table_and_the_costs(tmp_path):
    method = {"seconds": 19.75, "extra_bytes": 1, "peak_bytes": 9.1e9}
    others = {"BodyNet, DiceCELoss": {"killed": "killed for memory at 24.1 GB after 72 s"}}
    batches = [{"name": f"batch {n}", "memory": "peak"} for n in (1, 2)]
    methods = [{"BodyNet, DiceCELoss": method | {"seconds": 30.0, "peak_bytes": 20.8e9}, "BodyNet, ours": method},
               others | {"BodyNet, ours": method | {"seconds": 0.0404}}]  # fmt: skip
    comparisons = [batch | {"methods": each} for batch, each in zip(batches, methods, strict=True)]
    (tmp_path / "step_loss.json").write_text(json.dumps({"comparisons": comparisons}))
    new = rewritten(README, tmp_path)
    assert "| the same | 2 processor cores | 20 s a scan and epoch | 9.1 GB |" in new
    label_1, label_2 = (line.label for line in LINES if line.row == "step_loss")
    assert new.partition("memory share |\n| --- | --- | --- | --- | --- |\n")[2].partition("\n\n")[0].splitlines() == [
        f"| {label_1} | 30.0 s, 20.80 GB | 19.8 s, 9.10 GB | 1.5× | 0.44 |",
        f"| {label_2} | killed at 24.1 GB | 40.4 ms, 9.10 GB | – | – |",
    ]
    assert new.partition("## Read on")[1:] == README.partition("## Read on")[1:]


def test_the_costs_of_a_training_are_those_that_were_measured():
    gpu = comparison("gpu", "steps")["methods"]["BodyNet, ours"]
    assert gpu["facts"]["device"].startswith("NVIDIA H100")
    assert re.search(r"one H100 \| 0\.05 s a scan and epoch \| 3\.8 GB of the GPU's", README)
    assert rounds_to(gpu["seconds"], "0.05")
    assert rounds_to(gpu["peak_bytes"] / 1e9, "3.8")
    assert "100 whole bodies take that GPU 27 minutes for 300 epochs" in README
    assert rounds_to(100 * 300 * gpu["seconds"] / 60, "27")
    for beginning in COSTS:
        said = re.search(rf"{re.escape(beginning)}(\d+) s(?: a scan and epoch)? \| (\d+\.\d) GB \|", README)
        assert said, beginning
        found = costs(beginning, RESULTS)
        if found is not None:
            assert rounds_to(found["seconds"], said[1])
            assert rounds_to(found["peak_bytes"] / 1e9, said[2])
    planned = next(run for run in planned_runs("Muon") if run["budget"] == "5min")
    dice, seconds = re.search(r"mean Dice ([\d.]+) \| 2 processor cores \| (\d+) s \|", README).groups()
    assert rounds_to(planned["seconds"]["train"], seconds)
    assert rounds_to(planned["dice"]["mean"], dice)
    assert "a prepared scan 20 MB" in README
    assert rounds_to(160 * 160 * 256 * 3 / 1e6, "20")  # uint16 image and uint8 label, as pipeline.cache.entry stores it


def planned_runs(optimiser: str = "") -> list[dict[str, Any]]:
    runs = [run for run in results("deadline")["runs"] if "budget" in run and "earlier" not in run]
    return [run for run in runs if optimiser in run["optimiser"]]


def test_what_plans_reach_is_that_of_the_result_file():
    page = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    said = re.findall(r"\| (\d+) minutes \| (Muon|AdamW) \| (\d+) \| (\d+) s \| ([\d.]+) \|", page)
    measured = [(run["budget"], run["optimiser"], run["seed"]) for run in planned_runs()]
    assert [(f"{row[0]}min", row[1], int(row[2])) for row in said] == measured
    for (*_, seconds, dice), run in zip(said, planned_runs(), strict=True):
        assert rounds_to(run["seconds"]["train"], seconds)
        assert rounds_to(run["dice"]["mean"], dice)
    runs = results("deadline")["runs"]
    varied_less, validated_often, decayed_less = (run for run in runs if "earlier" in run)
    said = re.search(r"With the default augmentation half an hour ended at ([\d.]+) \((\d+) s\)", page)
    assert rounds_to(varied_less["dice"]["mean"], said[1])
    assert rounds_to(varied_less["seconds"]["train"], said[2])
    stronger, all_cases = (run for run in runs if "trained" in run)
    said = re.search(
        r"little difference, ([\d.]+) for ([\d.]+) \((\d+) s .* trained on, too, ([\d.]+)\.", page, re.DOTALL
    )
    default = next(run for run in planned_runs("AdamW") if run["budget"] == "15min")
    shown = [
        (stronger["dice"]["mean"], said[1]),
        (default["dice"]["mean"], said[2]),
        (all_cases["dice"]["mean"], said[4]),
    ]
    assert all(rounds_to(value, text) for value, text in shown)
    assert rounds_to(stronger["seconds"]["train"], said[3])
    (together,) = (run for run in runs if "ensemble" in run)
    assert rounds_to(together["dice"]["mean"], re.search(r"Four such networks together reach ([\d.]+)\.", page)[1])
    said = re.search(r"With every epoch validated, half an hour ended at ([\d.]+)\s+\((\d+) s\)", page)
    assert rounds_to(validated_often["dice"]["mean"], said[1])
    assert rounds_to(validated_often["seconds"]["train"], said[2])
    said = re.search(r"With a weight decay of 0.0001 .* 15 minutes reached ([\d.]+)\.", page)
    assert rounds_to(decayed_less["dice"]["mean"], said[1])
    said = re.search(r"In 270 iterations, (\d+) s of training, it reaches ([\d.]+), in 560, (\d+) s, ([\d.]+)\.", page)
    longer = {run.get("iterations"): run for run in results("deadline")["runs"]}
    for iterations, seconds, dice in ((270, *said.groups()[:2]), (560, *said.groups()[2:])):
        assert rounds_to(longer[iterations]["seconds"]["train"], seconds)
        assert rounds_to(longer[iterations]["dice"]["mean"], dice)


def test_what_learning_rates_reach_is_that_of_the_result_file():
    page = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    said = re.findall(r"\| ([\d,]+) \| (AdamW|Muon) \| (0\.\d+) \| (0\.\d+)(?: and (0\.\d+))? \|", page)
    found = results("deadline")["learning_rates"]
    assert len(said) == len(found)
    for (steps, optimiser, rate, *dice), row in zip(said, found, strict=True):
        assert (steps.replace(",", ""), optimiser, rate) == (str(row["steps"]), row["optimiser"], str(row["lr"]))
        for mean, stated in zip(row["dice"], filter(None, dice), strict=True):
            assert rounds_to(mean, stated)


def test_what_patches_and_whole_volumes_reach_is_that_of_the_result_file():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = results("deadline_phantoms")
    _, _, adamw, patches, whole_adamw, whole, _ = (run["dice"]["mean"] for run in found["runs"])
    said = re.search(
        r"of ([\d.]+) over the 70 structures of computed bodies; with the optimiser AdamW in the place of Muon "
        r"it reached ([\d.]+), and\s+whole bodies\s+resized to one size ([\d.]+) with Muon, ([\d.]+) with AdamW",
        README,
    )
    for mean, stated in zip((patches, adamw, whole, whole_adamw), said.groups(), strict=True):
        assert rounds_to(mean, stated)
    limits = {"35 above 60 ml": (60, 1e9), "25 of 15 to 60 ml": (15, 60), "10 below 15 ml": (0, 15)}
    assert "| all 70 | " + " | ".join(limits) + " |" in page
    names = (
        "patches, AdamW, 0.002",
        "patches, AdamW, 0.004",
        "patches, AdamW, 0.008",
        "patches, as planned now: Muon, 0.016",
        "whole, resized to 80×48×128, AdamW, 0.002",
        "whole, resized to 80×48×128, Muon, 0.016",
        "nnU-Net 2.8.1, patches of 96×192×96",
    )
    for name, run in zip(names, found["runs"], strict=True):
        said = re.search(rf"\| {name} \| [^|]* \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", page)
        assert said[1].replace(",", "") == str(run["steps"])
        assert rounds_to(run["dice"]["mean"], said[2])
        for stated, (label, (least, most)) in zip(said.groups()[2:], limits.items(), strict=True):
            dice = [run["dice"][structure] for structure, ml in run["reference_ml"].items() if least <= ml < most]
            assert len(dice) == int(label.split()[0])
            assert rounds_to(sum(dice) / len(dice), stated)


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


def test_networks_have_the_documented_sizes():
    assert "20.47 million parameters" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in BodyNet(in_channels=1, n_classes=71, base_channels=32).parameters())
    assert rounds_to(parameters / 1e6, "20.47")
    assert "a trained network 82 MB" in README
    assert rounds_to(parameters * 4 / 1e6, "82")
    shipped = (ROOT / "configs" / "networks" / "unet.yaml").read_text(encoding="utf-8")
    arguments = {name: value for name, value in yaml.safe_load(shipped)["model"]["network"].items() if name[0] != "_"}
    unet = UNet(spatial_dims=3, in_channels=1, out_channels=71, **arguments)
    for said in (r"MONAI's UNet \((.*) M\)", README), (r"\((.*) M parameters with 71 classes\)", shipped):
        assert rounds_to(sum(p.numel() for p in unet.parameters()) / 1e6, re.search(*said)[1])


def test_the_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets | {"and", "from"}


def test_the_picture_is_there_and_small():
    path = ROOT / "docs" / "preview.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    assert path.stat().st_size < 200_000
