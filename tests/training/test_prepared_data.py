"""From settings to cached cases: who trains, who validates, and with which voxels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cache import key as cache_key
from pipeline.check import check
from pipeline.checks.screening import Listed, list_configured
from pipeline.cli.main import main
from pipeline.config.settings import Config, DataConfig
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.training.prepared_data import prepare_data
from tests.support.questions import counted
from tests.support.volumes import Folder, configured, save
from transforms.chains import validation_chain

SIZE = (16, 16, 24)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write_dataset(folder / "data", n_cases=4, seed=3, voxel_mm=20.0)
    return Config(data=DataConfig(str(folder / "data"), target_size=SIZE, cache_dir=str(folder / "cache")))


@pytest.fixture(scope="module")
def prepared(config):
    return prepare_data(config)


def test_every_case_is_in_one_split_and_the_cached_cases_are_the_splits(prepared):
    cached = {name: tuple(item["case"] for item in getattr(prepared, name)) for name in ("train", "val")}
    assert cached == {name: cases for name, cases in prepared.split.items() if name != "test"}
    assert prepared.dataset.split is prepared.split


def test_a_cached_case_is_what_the_validation_chain_makes_of_its_files(prepared):
    item = prepared.val[0]
    case = next(case for case in prepared.dataset.cases if case.id == item["case"])
    chain = validation_chain(**prepared.preprocessing.arguments())
    fresh = chain({"image": [str(path) for path in case.image], "label": str(case.label), "case": case.id})
    assert torch.equal(fresh["label"].as_tensor().long(), item["label"].as_tensor().long())
    torch.testing.assert_close(fresh["image"].as_tensor(), item["image"].as_tensor(), atol=2e-5, rtol=0)


def test_the_data_are_described_and_warned_of_as_the_check_does(config, prepared):
    report = check(config, measure=False)
    assert report.fingerprint == prepared.fingerprint
    assert prepared.findings == tuple(one for one in report.findings if one.kind not in ("disk", "memory"))
    assert prepared.fingerprint.splits == {name: len(cases) for name, cases in prepared.split.items()}


def test_class_voxels_count_what_the_prepared_labels_hold(prepared):
    counts = prepared.class_voxels
    assert counts.shape == (len(prepared.train), prepared.n_classes)
    for index, item in enumerate(prepared.train):
        label = item["label"].numpy().ravel().astype(np.int64)
        assert np.array_equal(np.bincount(label, minlength=prepared.n_classes), counts[index])


def test_a_class_that_the_target_size_loses_is_named_whatever_the_loss(tmp_path, capsys):
    """A vessel of 1.6 mm in voxels of 2.5 mm: no prepared label holds it, native labels do."""
    (tmp_path / "data").mkdir()
    folder = Folder(tmp_path / "data")
    folder.labels = {"background": 0, "liver": 1, "vessel": 2}
    label = np.zeros((102, 102, 32), np.uint8)
    label[20:60, 20:60, 5:25] = 1
    label[70:72, 70:72, :] = 2
    affine = np.diag([0.8, 0.8, 2.0, 1.0])
    for seed, name in enumerate("abcd"):
        noise = np.random.default_rng(seed).integers(-1000, 1000, label.shape).astype(np.int16)
        save(folder.image(name), noise, affine)
        save(folder.label(name), label, affine)
    listed = folder.write()
    data = {"target_size": (32, 32, 32), "cache_dir": str(tmp_path / "cache")}
    prepared = prepare_data(configured(listed, data=data))
    assert prepared.lost_classes() == {"vessel": 4}
    command = (
        f"train --dataset_root {listed} --log_dir {tmp_path}/logs --data.cache_dir {tmp_path}/cache --max_epochs 1"
        " --target_size 32 32 32 --batch_size 1 --num_workers 0 --base_channels 4 --n_gpus 0 --precision 32"
    )
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    assert "of class vessel, which 4 cases hold, nothing is left at 32×32×32; raise --target_size" in said
    (record,) = (tmp_path / "logs").glob("*/training_config.json")
    assert json.loads(record.read_text())["loss"]["classes_that_never_occur"] == ["vessel"]
    patches = " --data.mode patch --data.spacing_mm 2.5 2.5 2.0 --overwrite"
    assert main((command + patches).split()) == 0
    said = capsys.readouterr().out
    assert "nothing is left at 2.5×2.5×2.0 mm; choose a finer data.spacing_mm" in said


def _masks_of(folder: Path, n_cases: int, n_masks: int) -> Path:
    """A data set in TotalSegmentator's layout; the masks of its cases are links to the same files."""
    rng = np.random.default_rng(0)
    masks = []
    for index in range(n_masks):
        array = np.zeros((8, 8, 8), np.uint8)
        array[index % 6 : index % 6 + 2, 2:5, 3:5] = 1
        masks.append(folder / f"mask{index}.nii.gz")
        save(masks[-1], array)
    for case in range(n_cases):
        segmentations = folder / "data" / f"s{case}" / "segmentations"
        segmentations.mkdir(parents=True)
        save(segmentations.parent / "ct.nii.gz", rng.integers(-500, 500, (8, 8, 8), dtype=np.int16))
        for mask in masks:
            (segmentations / mask.name).hardlink_to(mask)
    return folder / "data"


def _questions_of_a_second_start(config: Config, monkeypatch, listed: Listed | None = None) -> Counter[str]:
    """How often the system is asked about paths and folders, and how many lines of the index are read."""
    prepare_data(config)
    lines = cache_key._index_lines
    with counted() as asked:
        monkeypatch.setattr(
            cache_key, "_index_lines", lambda path: (asked.update(["line"]) or one for one in lines(path))
        )
        prepare_data(config, listed=listed).contents()
    monkeypatch.undo()
    return asked


def test_a_start_asks_at_most_twice_about_a_file_once_about_a_folder_and_reads_one_index(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
    found = {}
    listed_before = {}
    for n_cases in (2, 5):
        folder = tmp_path / f"{n_cases}"
        folder.mkdir()
        data = {"target_size": (8, 8, 8), "cache_dir": str(folder / "cache"), "split_shares": (50, 50, 0)}
        monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
        config = Config(data=DataConfig(str(_masks_of(folder, n_cases, n_masks=12)), **data))
        found[n_cases] = _questions_of_a_second_start(config, monkeypatch)
        monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
        listed_before[n_cases] = _questions_of_a_second_start(config, monkeypatch, list_configured(config))
    more = {name: (found[5][name] - found[2][name]) / 3 for name in found[5]}
    n_files = 12 + 1
    assert more["line"] == n_files
    assert more["scandir"] == 2
    assert listed_before[5]["scandir"] == listed_before[2]["scandir"]  # folders are not listed again
    assert more["stat"] + more.get("lstat", 0) <= 2 * n_files + 4  # what else is asked of a case: its entry, label map
