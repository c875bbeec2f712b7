"""Batches of a training: augmented by the workers, or drawn there and augmented where the network is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.config.settings import Config, ConfigError, DataConfig
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.training.datamodule import BodyData
from pipeline.training.prepared_data import prepare_data


def test_a_batch_augmented_on_the_device_equals_one_from_the_workers(tmp_path):
    write_dataset(tmp_path / "data", n_cases=4, seed=3, voxel_mm=20.0)
    settings = DataConfig(
        dataset_root=str(tmp_path / "data"),
        target_size=(16, 16, 24),
        data_aug=True,
        augmentation={"spatial_probability": 1.0, "intensity_probability": 0.5},
        cache_dir=str(tmp_path / "cache"),
    )
    batches = []
    for on_device in (False, True):
        prepared = prepare_data(Config(data=replace(settings, augment_on_device=on_device)))
        data = BodyData(prepared, batch_size=2, num_workers=0, seed=0)
        batches.append([data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()])
    for by_worker, on_device in zip(*batches, strict=True):
        assert by_worker["case"] == on_device["case"]
        assert "draw" not in on_device
        for key in ("image", "label"):
            assert torch.equal(by_worker[key].as_tensor(), on_device[key].as_tensor())


def test_augmenting_on_the_device_without_augmentation_is_refused():
    with pytest.raises(ConfigError, match="augment_on_device is set but augmentation is off"):
        DataConfig(augment_on_device=True)
