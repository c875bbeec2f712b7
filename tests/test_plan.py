"""The command "plan": the file that it writes is a config, in which every number has its reason."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml

from pipeline.checks.screening import screen
from pipeline.cli.main import main
from pipeline.compute.memory import available_cores
from pipeline.config.files import from_mapping, load_mapping
from pipeline.config.settings import Config
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.plan import to_yaml
from pipeline.planning.plan import make_plan
from pipeline.training.prepared_data import preprocessing_of
from pipeline.training.step_times import measure_steps
from tests.support.plans import HIPPOCAMPUS, MACHINE, Measured, step
from tests.support.volume_files import save


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, n_cases=4, seed=1, voxel_mm=24.0)
    return folder


@pytest.fixture(scope="module")
def written(dataset, tmp_path_factory):
    """The file that plan writes, and what it prints as JSON; no step counts as slow since the machine is busy."""

    def measured(request):
        return [step(one.patch, one.batch, 0.1, 0.15, one.peak_bytes) for one in measure_steps(request)]

    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    flags = ["--budget", "2min", "--output", str(path), "--cache_dir", str(path.parent / "cache"), "--json"]
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *text, **rest: printed.append(" ".join(map(str, text))))
        patch.setattr("pipeline.plan.measure_steps", measured)
        assert main(["plan", str(dataset), *flags]) == 0
    return path, json.loads(printed[-1])


def test_the_file_is_a_config_with_the_settings_that_were_printed(written, dataset):
    path, printed = written
    config = asdict(from_mapping(load_mapping(path)))
    assert config["data"]["dataset_root"] == str(dataset)
    assert config["data"]["mode"] == "patch"
    for group, settings in printed["settings"].items():
        for key, value in settings.items():
            found = config[group][key]
            assert (list(found) if isinstance(found, tuple) else found) == value, (group, key)


def test_every_number_in_the_file_has_its_reason(written):
    path = written[0]
    lines = [line for line in path.read_text().splitlines() if line.startswith("  ")]
    without = [line.split(":")[0].strip() for line in lines if "  # " not in line]
    assert set(without) == {"name", "dataset_root", "cache_dir"}
    assert len(lines) == sum(map(len, yaml.safe_load(path.read_text()).values()))


def test_ct_is_scaled_by_the_numbers_that_a_training_would_find(written, dataset, tmp_path):
    found = from_mapping(load_mapping(written[0])).data
    left_open = Config(data=replace(found, window="auto", mean_std="auto", cache_dir=str(tmp_path)))
    preprocessing = preprocessing_of(screen(left_open), left_open.data)
    assert (preprocessing.window, preprocessing.mean_std) == (found.window, found.mean_std)
    assert -1000 < found.window[0] < found.mean_std[0] < found.window[1]


def test_the_expected_time_lies_within_the_budget(written):
    assert 0 < written[1]["expected_s"] <= 120


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget", "soon"], "expected a time such as 30min or 8h, found 'soon'"),
        (["--budget", "5s"], "expected a minute at least"),
        (["--data.sided_pairs", "[[a, b]]"], "data.sided_pairs: "),
    ],
)
def test_an_impossible_budget_or_pair_is_refused(dataset, tmp_path, capsys, flags, words):
    assert main(["plan", str(dataset), "--output", str(tmp_path / "p.yaml"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "p.yaml").exists()


def test_a_file_that_exists_is_not_overwritten(dataset, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text("mine")
    assert main(["plan", str(dataset), "--output", str(tmp_path / "p.yaml")]) == 2
    assert "expected a new file" in capsys.readouterr().err
    assert (tmp_path / "p.yaml").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["plan", str(tmp_path / "nowhere"), "--output", str(tmp_path / "file" / "p.yaml")]) == 2
    assert f"{tmp_path / 'file'}: cannot be written (expected a folder" in capsys.readouterr().err


@pytest.mark.fault(
    "other programs keep the cores busy while `bodyseg plan` measures steps",
    "a warning says how many cores they took, what that does to the plan, and to plan again",
)
def test_a_plan_that_other_programs_disturbed_says_so(dataset, tmp_path, capsys, monkeypatch):
    def measured(request):
        time.sleep(1.0)
        return [step(patch, batch, 0.1, 0.15, 10**9) for patch, batch in request.steps]

    monkeypatch.setattr("pipeline.plan.measure_steps", measured)
    burn = [sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: pass"]
    others = [subprocess.Popen(burn) for _ in range(available_cores())]
    try:
        flags = ["--output", str(tmp_path / "p.yaml"), "--cache_dir", str(tmp_path / "cache")]
        assert main(["plan", str(dataset), "--budget", "5min", *flags]) == 0
    finally:
        for process in others:
            process.kill()
            process.wait()
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"other programs kept \d\.\d of \d+ cores busy while training steps were measured", said)


def test_a_plan_that_mirrors_classes_without_known_sides_warns(tmp_path, monkeypatch, capsys):
    steps = [step((8, 8, 8), 2, 0.1, 0.1, 1000), step((16, 8, 8), 2, 0.2, 0.2, 2000)]
    monkeypatch.setattr("pipeline.plan.measure_steps", lambda request: steps)
    label = np.zeros((12, 12, 12), np.uint8)
    label[1:5, 4:8, 4:8], label[7:11, 4:8, 4:8] = 2, 1
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for case in "abcd":
        image = random.normal(500, 50, label.shape).astype(np.float32)
        save(tmp_path / f"images/{case}.nii.gz", image, np.diag([2, 2, 2, 1]))
        save(tmp_path / f"labels/{case}.nii.gz", np.roll(label, ord(case) % 3, 2), np.diag([2, 2, 2, 1]))

    def warned(*names: str) -> bool:
        (tmp_path / "labels.json").write_text(json.dumps(["background", *names]))
        output = tmp_path / f"{names[0]}.yaml"
        flags = ["--budget", "2min", "--output", str(output), "--cache_dir", str(tmp_path / "cache")]
        assert main(["plan", str(tmp_path), *flags]) == 0
        assert yaml.safe_load(output.read_text())["data"]["flips"] == [0]
        return "no class is exchanged with another" in capsys.readouterr().err

    assert not warned("left kidney", "right kidney")
    assert warned("vasen munuainen", "oikea munuainen")  # left and right kidney in Finnish


def test_what_is_odd_about_the_listing_counts_among_the_warnings_of_a_plan(tmp_path, monkeypatch, capsys):
    """Names that look like two scans of each subject, beside what `bodyseg check` counts."""
    steps = [step((8, 8, 8), 2, 0.1, 0.1, 1000), step((16, 8, 8), 2, 0.2, 0.2, 2000)]
    monkeypatch.setattr("pipeline.plan.measure_steps", lambda request: steps)
    random = np.random.default_rng(0)
    label = np.zeros((12, 12, 12), np.uint8)
    label[1:5, 4:8, 4:8] = 1
    for number in range(6):
        image = random.normal(500, 50, label.shape).astype(np.float32)
        for folder, volume in (("images", image), ("labels", np.roll(label, number, 2))):
            (tmp_path / folder).mkdir(exist_ok=True)
            save(tmp_path / folder / f"patient{number // 2:02}_scan{number % 2}.nii.gz", volume, np.diag([2, 2, 2, 1]))
    (tmp_path / "labels.json").write_text(json.dumps(["background", "liver"]))
    flags = ["--budget", "2min", "--output", str(tmp_path / "plan.yaml"), "--cache_dir", str(tmp_path / "cache")]
    assert main(["plan", str(tmp_path), *flags]) == 0
    said = re.search(r"the data gives (\d+) warning", capsys.readouterr().err)
    assert main(["check", str(tmp_path), "--no_measure", "--json"]) == 1  # warnings
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert "suspected_subjects" in {finding["kind"] for finding in findings}
    assert said is not None
    assert int(said[1]) == len(findings)


def test_data_that_need_settings_are_planned_with_them_and_the_file_holds_them(tmp_path, monkeypatch, capsys):
    """Voxels of NaN, a label value without a class, and two visits of each patient."""
    steps = [step((8, 8, 8), 2, 0.1, 0.1, 1000), step((16, 8, 8), 2, 0.2, 0.2, 2000)]
    monkeypatch.setattr("pipeline.plan.measure_steps", lambda request: steps)
    random = np.random.default_rng(0)
    for number in range(6):
        image = random.normal(40, 50, (12, 12, 12)).astype(np.float32)
        label = np.zeros(image.shape, np.uint8)
        label[1:5, 4:8, 4:8], label[8, 8, 8], image[0] = 1, 7, np.nan
        for folder, volume in (("images", image), ("labels", np.roll(label, number, 2))):
            (tmp_path / folder).mkdir(exist_ok=True)
            save(tmp_path / folder / f"p{number // 2}_t{number % 2}.nii.gz", volume, np.diag([2, 2, 2, 1]))
    (tmp_path / "labels.json").write_text(json.dumps(["background", "liver"]))
    output = tmp_path / "plan.yaml"
    command = ["plan", str(tmp_path), "--output", str(output), "--cache_dir", str(tmp_path / "cache")]
    assert main(command) == 2
    assert "data.fill_nan" in capsys.readouterr().err
    command += ["--data.label_remap", "{7: liver}", "--data.fill_nan", "-1024", "--data.intensity", "ct"]
    command += ["--data.subject_pattern", r"(p\d+)_t\d", "--data.window", "-150", "250", "--data.sided_pairs", "[]"]
    assert main(command) == 0
    data = yaml.safe_load(output.read_text())["data"]
    assert (data["label_remap"], data["fill_nan"], data["window"]) == ({7: "liver"}, -1024, [-150, 250])
    assert [data[name] for name in ("subject_pattern", "intensity", "sided_pairs")] == [r"(p\d+)_t\d", "ct", []]
    split = screen(from_mapping(load_mapping(output))).split
    assert not {case[:2] for case in split.train} & {case[:2] for case in split.val}


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--data.mode", "patch"], "data.mode"),
        (["--data.spacing_mm", "1", "1", "1"], "data.spacing_mm"),
        (["--target_size=64", "64", "64"], "data.target_size"),
        (["--batch_size", "4"], "data.batch_size"),
        (["--lr", "1"], "training.lr"),
    ],
)
def test_a_setting_that_the_plan_chooses_is_refused_by_name(dataset, tmp_path, capsys, flags, name):
    assert main(["plan", str(dataset), "--output", str(tmp_path / "p.yaml"), *flags]) == 2
    assert f"bodyseg: {name}: bodyseg plan takes settings that describe the data set" in capsys.readouterr().err


@pytest.mark.parametrize("memory", ["0", "-1", "nan", "inf"])
def test_a_memory_that_no_machine_has_is_refused_before_anything_is_measured(dataset, tmp_path, capsys, memory):
    assert main(["plan", str(dataset), "--output", str(tmp_path / "p.yaml"), "--memory", memory]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "--memory: expected a number" in said.err


@pytest.mark.parametrize(
    ("channels", "labelled", "expected", "reasons"),
    [
        (["T1", "PET"], 40, {"intensity": "zscore"}, {}),
        (["CT"], 0, {"window": [-1000, 1000]}, {"window": "no voxel of a CT is labelled"}),
        (["CT"], 40, {"window": [-10, 90]}, {"mean_std": "their mean, and the least deviation that is taken"}),
    ],
)
def test_intensities_are_planned_as_the_data_have_them(
    tmp_path, monkeypatch, capsys, channels, labelled, expected, reasons
):
    """Two channels that are no CT; CT without a label; CT whose labelled voxels are all alike."""
    steps = [step((8, 8, 8), 2, 0.1, 0.1, 1000), step((16, 8, 8), 2, 0.2, 0.2, 2000)]
    monkeypatch.setattr("pipeline.plan.measure_steps", lambda request: steps)
    label = np.zeros((12, 12, 12), np.uint8)
    label[1:5, 4:8, 4:8] = labelled > 0
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        save(tmp_path / "labelsTr" / f"p{number}.nii.gz", label, np.eye(4))
        for channel in range(len(channels)):
            image = np.random.default_rng(number + 9 * channel).normal(300, 50, label.shape).astype(np.int16)
            image[label > 0] = 40
            save(tmp_path / "imagesTr" / f"p{number}_{channel:04d}.nii.gz", image, np.eye(4))
    names = {str(number): name for number, name in enumerate(channels)}
    described = {"channel_names": names, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    unused = ["--data.percentiles", "1", "99"] if channels == ["CT"] else ["--data.window", "-9", "9"]
    command = ["plan", str(tmp_path), "--output", str(tmp_path / "p.yaml"), "--cache_dir", str(tmp_path / "cache")]
    assert main([*command, *unused, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    data = printed["settings"]["data"]
    assert {key: data[key] for key in expected} == expected
    assert {key: printed["because"][f"data.{key}"] for key in reasons} == reasons
    assert unused[0].removeprefix("--data.") not in data
    assert any(line.startswith(f"{unused[0][2:]} is left out: intensities") for line in printed["warnings"])
    given = ["--data.percentiles", "0.5", "99.5", "--output", str(tmp_path / "given.yaml"), "--json"]
    assert main([*command, *given]) == 0
    assert "intensity" not in json.loads(capsys.readouterr().out)["settings"]["data"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twelve") / "bodies"
    write_dataset(folder, n_cases=12, voxel_mm=24)
    return folder


@pytest.mark.parametrize("shares", [[50, 25, 25], [80, 10, 10], [90, 10, 0], None])
def test_shares_that_are_given_divide_the_cases_in_place_of_the_plans_own(shares, scans, tmp_path, monkeypatch, capsys):
    steps = [step((32, 32, 32), 2, 0.05, 0.05, 10**8), step((64, 64, 64), 2, 0.3, 0.3, 10**9)]
    monkeypatch.setattr("pipeline.plan.measure_steps", lambda request: steps)
    command = ["plan", str(scans), "--cache_dir", str(scans.with_name("cache")), "--json"]
    given = ["--data.split_shares", *map(str, shares)] if shares else []
    output = tmp_path / "plan.yaml"
    assert main([*command, "--output", str(output), *given]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["data"]["split_shares"] == (shares or [90, 10, 0])
    assert yaml.safe_load(output.read_text())["data"]["split_shares"] == (shares or [90, 10, 0])


@pytest.mark.parametrize("shares", [[80, 10, 10], [90, 10, 0], [50, 25, 25]])
@pytest.mark.parametrize("by", ["a split of its own", "folds"])
def test_shares_that_divide_nothing_are_left_out_with_a_warning(by, shares, dataset, tmp_path, monkeypatch, capsys):
    steps = [step((32, 32, 32), 2, 0.05, 0.05, 10**8), step((64, 64, 64), 2, 0.3, 0.3, 10**9)]
    monkeypatch.setattr("pipeline.plan.measure_steps", lambda request: steps)
    shutil.copytree(dataset, tmp_path / "bodies")
    folds = [] if by == "a split of its own" else ["--data.folds", "2"]
    if not folds:
        cases = sorted(file.name.removesuffix(".nii.gz") for file in (tmp_path / "bodies" / "labelsTr").iterdir())
        split = json.dumps([{"train": cases[:2], "val": cases[2:]}])
        (tmp_path / "bodies" / "splits_final.json").write_text(split)
    command = ["plan", str(tmp_path / "bodies"), "--cache_dir", str(tmp_path / "cache"), "--json", *folds]
    command += ["--data.split_shares", *map(str, shares), "--output", str(tmp_path / "plan.yaml")]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    written = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert "split_shares" not in printed["settings"]["data"] | written["data"]
    (warning,) = [line for line in printed["warnings"] if line.startswith("data.split_shares is left out: ")]
    assert ("data.folds" in warning) == bool(folds)


def test_structures_that_a_coarser_plan_loses_are_warned_of(tmp_path, monkeypatch, capsys):
    def slow(request):
        return [step(patch, batch, 1e-5 * math.prod(patch) * batch, 1, 1000) for patch, batch in request.steps]

    monkeypatch.setattr("pipeline.plan.measure_steps", slow)
    label = np.zeros((72, 72, 72), np.uint8)
    label[8:60, 8:60, 8:60], label[30, 8:60, 8:60] = 1, 2
    for case in "abcd":
        for folder, volume in (("images", label * 100 + ord(case)), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            save(tmp_path / folder / f"{case}.nii.gz", volume.astype(np.uint8), np.eye(4))
    (tmp_path / "labels.json").write_text(json.dumps(["background", "brain", "falx"]))
    warned = {}
    for budget in ("2min", "8h"):
        output = tmp_path / f"{budget}.yaml"
        flags = ["--budget", budget, "--output", str(output), "--cache_dir", str(tmp_path / "cache")]
        assert main(["plan", str(tmp_path), *flags]) == 0
        warned[min(yaml.safe_load(output.read_text())["data"]["spacing_mm"])] = capsys.readouterr().err
    fine, coarse = sorted(warned)
    assert (fine, coarse >= 2) == (1, True)
    assert "falx (in 4 cases)" in warned[coarse]
    assert "falx" not in warned[fine]


def test_names_with_any_line_separator_are_read_back_as_they_were_given():
    plan = make_plan(HIPPOCAMPUS, MACHINE, 3600, Measured())
    given = {"class_names": ["background", "a\x85b\u2028c\x7f"], "subject_pattern": "(.+)\x85.*", "intensity": "mr"}
    for name, value in {"experiment.name": "p", **{f"data.{key}": value for key, value in given.items()}}.items():
        plan.put(name, value, "")
    read = yaml.safe_load(to_yaml(plan, 3600))["data"]
    assert {key: read[key] for key in given} == given


def test_a_plan_is_not_called_json(dataset, tmp_path, capsys):
    assert main(["plan", str(dataset), "--output", str(tmp_path / "p.json")]) == 2
    assert f"a plan is YAML, with comments; name it {tmp_path / 'p.yaml'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "flips"),
    [
        (("left kidney", "right kidney"), [0]),
        (("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"), [0]),
        (("left ventricle", "right ventricle"), []),
        (("LV", "RV"), []),
    ],
)
def test_chambers_of_a_heart_are_not_mirrored(names, flips, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for case in "abcd":
        save(tmp_path / "data" / "images" / f"{case}.nii.gz", rng.integers(0, 900, (32, 32, 32)).astype(np.int16))
        save(tmp_path / "data" / "labels" / f"{case}.nii.gz", rng.integers(0, 3, (32, 32, 32)).astype(np.uint8))
    (tmp_path / "data" / "labels.json").write_text(json.dumps(["background", *names]))
    monkeypatch.setattr(
        "pipeline.plan.measure_steps", lambda request: [step(patch, n, 0.05, 0.05, 10**8) for patch, n in request.steps]
    )
    output = tmp_path / "plan.yaml"
    cache = ["--cache_dir", str(tmp_path / "cache")]
    assert main(["plan", str(tmp_path / "data"), "--budget", "2min", "--output", str(output), *cache]) == 0
    assert load_mapping(output)["data"]["flips"] == flips
