"""From settings to cached cases: who trains, who validates, and with which voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config.settings import Config, DataConfig
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.training.prepared_data import prepare_data
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


def test_class_voxels_count_what_the_prepared_labels_hold(prepared):
    counts = prepared.class_voxels()
    assert counts.shape == (len(prepared.train), prepared.n_classes)
    for index, item in enumerate(prepared.train):
        label = item["label"].numpy().ravel().astype(np.int64)
        assert np.array_equal(np.bincount(label, minlength=prepared.n_classes), counts[index])
