"""What `check` advises for unknown label values can be pasted without damage, and nothing else is advised."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.check import check
from pipeline.checks.findings import errors
from pipeline.checks.label_remap import only_assignment
from pipeline.cli.main import main
from pipeline.training.prepared_data import prepare_data
from tests.support.volumes import Folder, configured, organs, save


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def advice(folder: Folder, case: str) -> str:
    (remedy,) = (
        finding.remedy
        for finding in folder.check().findings
        if finding.kind == "label_unknown_values" and finding.case == case
    )
    return remedy


def table(remedy: str) -> dict[int, str]:
    return yaml.safe_load(remedy[remedy.index("label_remap: ") :])["label_remap"]


def with_values(folder: Folder, name: str, **values: int) -> None:
    """Write a label in which the liver has another value, and eight or one more voxels have others still."""
    label = organs().astype(np.int16)
    if "liver" in values:
        label[label == 3] = values["liver"]
    if "eight" in values:
        label[:2, :2, :2] = values["eight"]
    if "one" in values:
        label[0, 0, 0] = values["one"]
    save(folder.label(name), label)


def test_a_class_under_another_value_is_recognised_by_what_its_label_lacks(folder: Folder) -> None:
    """BraTS called its enhancing tumour 4 until 2022 and 3 since."""
    with_values(folder, "b", liver=4)
    assert table(advice(folder, "b")) == {4: "liver"}


def test_two_kidneys_under_unknown_values_are_not_told_apart(folder: Folder) -> None:
    """Sizes do not say which side is which: pasted, half of the guesses would exchange left and right."""
    save(folder.label("b"), np.array([0, 9, 7, 3], np.uint8)[organs()])
    remedy = advice(folder, "b")
    assert remedy.startswith("find out what 7, 9 means")
    assert "kidney" not in remedy


def test_labels_that_disagree_on_a_value_get_no_suggestion_for_it(folder: Folder) -> None:
    save(folder.label("a"), np.array([0, 9, 2, 3], np.uint8)[organs()])
    for name in "bc":
        save(folder.label(name), np.array([0, 1, 9, 3], np.uint8)[organs()])
    assert "kidney" not in advice(folder, "a")


def test_an_assignment_is_given_exactly_where_there_is_one_alone() -> None:
    rng = np.random.default_rng(0)
    n_alone = 0
    for _ in range(300):
        n = int(rng.integers(1, 6))
        fits = rng.random((n, n)) < rng.choice([0.3, 0.5, 0.8])
        ways = [way for way in permutations(range(n)) if all(fits[range(n), way])]
        found = only_assignment({value: set(np.flatnonzero(row).tolist()) for value, row in enumerate(fits)})
        assert found == (dict(enumerate(ways[0])) if len(ways) == 1 else {})
        n_alone += len(ways) == 1
    assert n_alone > 30


def test_a_second_value_of_an_organ_beside_a_stray_one_is_not_called_background(folder: Folder) -> None:
    for name in "abcd":
        with_values(folder, name, eight=-1)
    with_values(folder, "b", liver=5, eight=-1)
    remedy = advice(folder, "b")
    assert remedy.startswith("find out what -1 means")
    assert table(remedy[remedy.index("that are clear") :]) == {5: "liver"}
    for name in "abcd":
        assert "background" not in advice(folder, name)


def test_values_that_nothing_explains_get_no_suggestion(folder: Folder) -> None:
    for name in "abcd":
        with_values(folder, name, eight=4)
    remedy = advice(folder, "a")
    assert remedy.startswith("find out what 4 means")
    assert "background" not in remedy
    assert "ignore" in remedy


def test_a_value_of_another_size_than_the_class_is_not_taken_for_it(folder: Folder) -> None:
    with_values(folder, "b", liver=0)
    label = organs().astype(np.int16)
    label[label == 3] = 0
    label[:4, 0, 0] = 9  # 4 voxels, where the liver of the others has 48
    save(folder.label("b"), label)
    assert "liver" not in advice(folder, "b")


def test_a_voxel_that_somebody_clicked_by_mistake_is_background(folder: Folder) -> None:
    with_values(folder, "b", one=77)
    assert table(advice(folder, "b")) == {77: "background"}


def test_values_can_be_ignored(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """label_remap: {5: ignore} works from the command line to the prepared label and the loss."""
    for name in "abcd":
        with_values(folder, name, eight=5)
    folder.write()
    data = {"label_remap": {5: "ignore"}, "cache_dir": str(folder.root.parent / "cache")}
    config = configured(folder.root / "cases.json", data=data)
    assert errors(check(config, measure=False).findings) == ()
    prepared = prepare_data(config)
    labels = [item["label"].as_tensor() for item in prepared.train]
    assert all((label == 255).any() for label in labels)
    assert prepared.dataset.classes.ignores_voxels
    command = (
        f"train --dataset_root {folder.root / 'cases.json'} --log_dir {folder.root.parent}/logs"
        f" --data.cache_dir {folder.root.parent}/cache --max_epochs 1 --target_size 16 24 16 --batch_size 1"
        " --num_workers 0 --base_channels 4 --n_gpus 0 --precision 32"
    )
    assert main([*command.split(), "--data.label_remap", "{5: ignore}"]) == 0
    (run,) = (folder.root.parent / "logs").iterdir()
    assert json.loads((run / "training_config.json").read_text())["data"]["label_remap"] == {"5": "ignore"}
    capsys.readouterr()
    assert main(["evaluate", str(run), "--split", "val", "--output", str(folder.root.parent / "scores")]) == 0
    scores = json.loads((folder.root.parent / "scores/metrics.json").read_text())
    livers = [case["classes"]["liver"]["reference_ml"] for case in scores["cases"]]
    assert livers == pytest.approx([48 * 12 / 1000] * 2)


def test_several_values_to_ignore_are_all_ignored(folder: Folder) -> None:
    """Decathlon's direction of the table: {"4": "ignore", "5": "ignore"}."""
    for name in "abcd":
        with_values(folder, name, eight=4, one=5)
    (folder.root / "images").mkdir()
    (folder.root / "labels").mkdir()
    for name in "abcd":
        folder.image(name).rename(folder.root / "images" / f"{name}.nii.gz")
        folder.label(name).rename(folder.root / "labels" / f"{name}.nii.gz")
    names = {"0": "background", "1": "kidney_left", "2": "kidney_right", "3": "liver", "4": "ignore", "5": "ignore"}
    (folder.root / "labels.json").write_text(json.dumps(names))
    report = check(folder.root)
    assert errors(report.findings) == ()
    assert report.fingerprint is not None
    assert [c.n_voxels for c in report.fingerprint.classes[1:]] == [4 * 27, 4 * 27, 4 * 48]
