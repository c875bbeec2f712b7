"""`bodyseg check` takes settings whatever their order, and says for which costs are estimated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.main import main
from tests.support.volumes import Folder


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    folder = Folder(tmp_path)
    folder.write()
    return str(folder.root / "cases.json")


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    main(["check", *arguments, "--json"])
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
        found = report(capsys, *values, str(folder.root), *behind, "--no_measure")
        assert found["fingerprint"]["n_cases"] == 4


def test_a_setting_that_contradicts_the_data_is_an_error(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", dataset, "--model.n_classes", "71", "--no_measure"]) == 2
    assert "71 classes with the background (model.n_classes)" in capsys.readouterr().out


def test_costs_are_estimated_for_settings_they_depend_on(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", dataset, "--training.seed", "7"]) == 0
    assert "TRAINING: costs are not estimated" in capsys.readouterr().out
    small = ["--target_size", "16", "24", "16", "--no_measure"]
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
    main(["check", dataset, "--data.flips", "0", "--data_aug"])
    assert "mirrored      from left to right: 1 pair of classes is exchanged (kidney_left with kidney_right)" in (
        capsys.readouterr().out
    )
    assert report(capsys, dataset, "--data.flips", "1", "--data_aug")["mirrored"] == ""
