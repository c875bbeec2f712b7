"""`bodyseg check` takes settings whatever their order, and says for which costs are estimated."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.check import check, to_text
from pipeline.cli.main import main
from pipeline.config.files import from_mapping
from pipeline.config.settings import ConfigError, DataConfig
from pipeline.planning.data_settings import described
from pipeline.training import cost, first_training
from pipeline.training.step_times import StepRequest, StepTime
from tests.support.volumes import Folder


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    folder = Folder(tmp_path)
    folder.write()
    return str(folder.root / "cases.json")


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    main(["check", *arguments, "--no_measure", "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("place", [0, 2, 3])
def test_settings_count_whatever_the_order(dataset: str, capsys: pytest.CaptureFixture[str], place: int) -> None:
    arguments = ["--data.intensity", "zscore", "--data.follow_links"]
    arguments.insert(place, dataset)
    found = report(capsys, *arguments)
    assert found["fingerprint"]["intensity"]["by_channel"] == ["zscore"]
    assert found["fingerprint"]["n_cases"] == 4


@pytest.mark.parametrize(
    "values",
    [
        ("--data.window", "-100", "2.5e2"), ("--data.window", "auto"),
        ("--data.flips",), ("--data_aug", "--data.flips", "0", "1"),
        ("--data.class_names", "background", "kidney_left", "kidney_right", "liver"),
    ],
)  # fmt: skip
def test_a_data_set_behind_the_values_of_a_list_is_none_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: tuple[str, ...]
) -> None:
    (tmp_path / "2024_scans").mkdir()
    folder = Folder(tmp_path / "2024_scans")
    folder.write()
    for behind in ((), ("--batch_size", "1")):
        found = report(capsys, *values, str(folder.root), *behind)
        assert found["fingerprint"]["n_cases"] == 4


def test_several_data_sets_are_checked_together(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    other = Folder(tmp_path / "other")
    other.write()
    places = [dataset, str(other.root)]
    found = report(capsys, "--no_measure", *places)["fingerprint"]
    assert found == report(capsys, "--no_measure", "--dataset_root", *places)["fingerprint"]
    assert [line.partition(": ")[2][:7] for line in found["data_sets"]] == ["4 cases"] * 2


def test_a_setting_that_contradicts_the_data_is_an_error(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", dataset, "--model.n_classes", "71", "--no_measure"]) == 2
    assert "71 classes with the background (model.n_classes)" in capsys.readouterr().out


def test_costs_are_estimated_for_settings_they_depend_on(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--target_size", "16", "24", "16"]
    found = report(capsys, dataset, *small)
    # 4 cases of 16×24×16 voxels, 2 bytes for the image and 1 for the label each
    assert 4 * 16 * 24 * 16 * 3 <= found["estimate"]["cache_bytes"] < 2 * 4 * 16 * 24 * 16 * 3
    again = report(capsys, *small, "--dataset_root", dataset)
    for estimate in (found["estimate"], again["estimate"]):
        del estimate["free_bytes"]  # others write to the disk meanwhile
    assert found["estimate"] == again["estimate"]


def test_a_data_set_is_named_once(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", dataset, "--dataset_root", dataset]) == 2
    assert "both name a data set" in capsys.readouterr().err
    assert main(["check"]) == 2
    assert "data.dataset_root is missing" in capsys.readouterr().err


def test_what_a_mirror_exchanges_is_said(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", dataset, "--data.flips", "0", "--data_aug", "--no_measure"])
    assert "mirrored      from left to right: 1 pair of classes is exchanged (kidney_left with kidney_right)" in (
        capsys.readouterr().out
    )
    assert report(capsys, dataset, "--data.flips", "1", "--data_aug")["mirrored"] == ""


def commands(text: str) -> list[list[str]]:
    """The commands that the end of a check says to type, as a shell reads them."""
    lines = text.partition("\nNEXT")[2].splitlines()
    return [shlex.split(line) for line in lines if line.strip().startswith("bodyseg ")]


@pytest.mark.parametrize("width", [60, 80, None])
def test_the_end_says_what_to_type_and_what_is_typed_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int | None
) -> None:
    (tmp_path / "my scans of 2024").mkdir()
    folder = Folder(tmp_path / "my scans of 2024")
    folder.write()
    report = check(folder.root / "cases.json", suggest=True, measure=False, workers=1)
    text = to_text(report, width)
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= (width or 1000)
    training, plan = commands(text)
    assert main([*training[1:], "--print_config"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data["dataset_root"] == str(folder.root / "cases.json")
    assert tuple(data["target_size"]) == report.first_training.target.size == (16, 16, 16)  # of 16×14×12 voxels
    assert plan[:3] == ["bodyseg", "plan", str(folder.root / "cases.json")]


def test_what_was_said_about_the_data_stands_in_the_commands_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.labels = {"background": 0, "2": 1, "1": 2, "liver": 3}
    path = str(folder.write())
    said = ["--data.window", "-150", "250", "--data.fill_nan", "-1024"]
    said += ["--data.label_remap", '{9: background, 12: "1", 13: 1}']
    said += ["--data.subject_pattern", "(.+)_t [0-9]", "--data.intensity", "ct"]
    assert main(["check", path, *said, "--no_measure"]) in (0, 1)
    text = capsys.readouterr().out
    assert "Further settings" not in text
    training, plan = commands(text)
    assert main([*training[1:], "--print_config"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)["data"]
    assert (found["window"], found["fill_nan"], found["intensity"]) == ([-150, 250], -1024, "ct")
    remap = {int(value): target for value, target in found["label_remap"].items()}
    assert remap == {9: "background", 12: "1", 13: 1}  # a class named 1, and the first class
    assert found["subject_pattern"] == "(.+)_t [0-9]"
    taken: list[DataConfig] = []

    def plan_nothing(*words: object, data: dict, **rest: object) -> None:
        taken.append(from_mapping({"data": {**data, "dataset_root": path}}).data)
        raise ConfigError("enough")

    monkeypatch.setattr("pipeline.plan.plan", plan_nothing)
    assert main(plan[1:]) == 2
    assert described(taken[0]) == described(from_mapping({"data": found}).data)
    capsys.readouterr()
    main(["check", path, "--data_aug", "--data.flips", "0", "--data.sided_pairs", "[]", "--no_measure"])
    text = capsys.readouterr().out
    assert "Further settings of the data" in text
    assert "sided_pairs" not in text  # which go with data.flips


def test_what_was_said_as_it_is_by_default_is_told_the_plan_which_has_other_defaults(
    dataset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan leaves no case out for a test, and scales MR by mean and deviation."""
    said = ["--data.split_shares", "80", "10", "10", "--data.percentiles", "0.5", "99.5"]
    main(["check", dataset, *said, "--no_measure"])
    training, planning = commands(capsys.readouterr().out)
    taken: dict = {}

    def plan_nothing(*words: object, data: dict, **rest: object) -> None:
        taken.update(data)
        raise ConfigError("enough")

    monkeypatch.setattr("pipeline.plan.plan", plan_nothing)
    assert main(planning[1:]) == 2
    assert taken == {"split_shares": [80, 10, 10], "percentiles": [0.5, 99.5]}
    assert main([*training[1:], "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["split_shares"] == [80, 10, 10]


def test_the_cost_of_what_is_suggested_is_measured_here(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 2 × 16³ voxels, where a voxel is said to take 1 ms and 10 kB beside 1 s and 1 GB."""
    sizes = [(patch, math.prod(patch)) for patch, _ in first_training.probes((16, 16, 16))]
    measured = [StepTime(patch, 1, (1 + 1e-3 * n, 0.1), None, 10**9 + 10**4 * n) for patch, n in sizes]
    monkeypatch.setattr(first_training, "measure_steps", lambda request: measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = to_text(check(dataset, suggest=True, workers=1))
    cost = text.partition("COST of training on whole scans")[2]
    assert "step          about 9.19 s a batch, from steps of other sizes on the CPU" in cost
    assert "memory        about 1.24 GB at its peak" in cost


@pytest.mark.parametrize(
    ("n_measured", "memory", "words"),
    [
        # 0.4 GB and 1.2 kB a voxel, of two volumes of 160×160×256, and what ten steps keep
        (3, 10**11, None),
        (2, 12 * 10**8, "a peak of at most 1.1 GB (90% of the memory), found 18.5 GB of all processes"),
        (2, 10**11, "memory for a training step of 96×96×96 voxels, found a process that ended before it"),
        (1, 6 * 10**8, "memory for a training step of 48×48×48 voxels, found a process that ended before it"),
        (0, 10**8, "memory for a training step of 32×32×32 voxels, found a process that ended before it"),
    ],
)
def test_a_memory_that_does_not_hold_the_measured_steps_is_missing(
    dataset: str, monkeypatch: pytest.MonkeyPatch, n_measured: int, memory: int, words: str | None
) -> None:
    suggest = first_training.suggest_target_size
    whole_body = lambda *scans: dataclasses.replace(suggest(*scans), size=(160, 160, 256))  # noqa: E731
    monkeypatch.setattr(first_training, "suggest_target_size", whole_body)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cost, "memory_bytes", lambda accelerator: memory)

    def measure(request: StepRequest) -> list[StepTime]:
        taken = request.steps[:n_measured]
        return [StepTime(patch, 1, (1.0, 0.1), None, 4 * 10**8 + 1200 * math.prod(patch)) for patch, _ in taken]

    monkeypatch.setattr(first_training, "measure_steps", measure)
    found = check(dataset, suggest=True, workers=1)
    assert [finding.kind for finding in found.first_training.shortages] == ["memory"] * (words is not None)
    missing = [line for line in to_text(found).splitlines() if line.startswith("  missing")]
    assert [words in line for line in missing] == [True] * (words is not None)


def test_errors_are_repaired_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path)
    folder.image().unlink()
    folder.write()
    assert main(["check", str(folder.root / "cases.json")]) == 2
    last = capsys.readouterr().out.partition("\nNEXT")[2]
    assert "--skip_bad_cases" in last
    assert "--target_size" not in last
    assert main(["check", str(tmp_path / "absent")]) == 2
    last = capsys.readouterr().out.partition("\nNEXT")[2]
    assert "repair" in last
    assert "--skip_bad_cases" not in last  # which leaves out cases, and here is none


def test_detail_that_whole_scans_lose_is_kept_by_patches_which_are_named_first(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    report = check(folder.write(), suggest=True, measure=False, workers=1)
    assert [words[1] for words in commands(to_text(report))] == ["train", "plan"]
    target = dataclasses.replace(report.first_training.target, times_coarser=3.0)
    first = dataclasses.replace(report.first_training, target=target)
    text = to_text(dataclasses.replace(report, first_training=first))
    assert [words[1] for words in commands(text)] == ["plan", "train"]
    assert "3 times coarser than the scans' own" in text


def test_costs_are_estimated_for_patches_of_a_data_set(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, dataset, "--data.mode", "patch", "--data.spacing_mm", "2", "2", "3")
    assert found["estimate"]["cache_bytes"] > 0
