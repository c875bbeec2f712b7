"""Batches of a training: augmented by the workers, or drawn there and augmented where the network is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from pipeline.config.settings import Config, ConfigError, DataConfig
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.training.data_workers import DataWorkers
from pipeline.training.datamodule import BodyData
from pipeline.training.prepared_data import prepare_data, say_who_augments
from tests.support.tiny_module import QUIET, module, trainer


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    write_dataset(folder / "data", n_cases=6, seed=3, voxel_mm=24.0)
    return DataConfig(str(folder / "data"), target_size=(8, 8, 16), data_aug=True, cache_dir=str(folder / "cache"))


@pytest.fixture(scope="module")
def prepared(settings):
    return prepare_data(Config(data=settings))


def cases_and_images(data):
    return [
        (case, image)
        for batch in data.train_dataloader()
        for case, image in zip(batch["case"], batch["image"], strict=True)
    ]


def test_batches_hold_every_training_case_once_with_the_documented_shapes(prepared):
    data = BodyData(prepared, batch_size=3, seed=0)
    batches = list(data.train_dataloader())
    assert [len(batch["case"]) for batch in batches] == [3, 1]
    assert sorted(case for batch in batches for case in batch["case"]) == sorted(prepared.split.train)
    assert (batches[0]["image"].shape, batches[0]["image"].dtype) == ((3, 1, 8, 8, 16), torch.float32)
    assert batches[0]["label"].shape == (3, 1, 8, 8, 16)
    assert not batches[0]["label"].is_floating_point()
    assert batches[0]["counted"] == [True] * 3


def test_batches_are_the_same_with_workers_and_after_a_resume(prepared):
    alone = BodyData(prepared, batch_size=2, seed=5, epoch=2)
    helped = BodyData(prepared, batch_size=2, workers=DataWorkers(2), seed=5, epoch=2)
    for (case, image), (other, again) in zip(cases_and_images(alone), cases_and_images(helped), strict=True):
        assert case == other
        assert torch.equal(image.as_tensor(), again.as_tensor())
    from_the_start = BodyData(prepared, batch_size=2, seed=5)
    loader = from_the_start.train_dataloader()
    loader.sampler.set_epoch(2)
    assert [case for batch in loader for case in batch["case"]] == [case for case, _ in cases_and_images(alone)]
    another = BodyData(prepared, batch_size=2, seed=5, epoch=3)
    assert [case for case, _ in cases_and_images(another)] != [case for case, _ in cases_and_images(alone)]


@pytest.mark.parametrize("n_workers", [0, 1])
def test_reading_batches_leaves_the_networks_random_numbers_alone(prepared, n_workers):
    """Dropout would differ between numbers of workers: torch draws a seed in each epoch without, in the first with."""
    data = BodyData(prepared, batch_size=2, workers=DataWorkers(n_workers), seed=5)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for _ in range(2):
            torch.manual_seed(5)
            expected = torch.rand(3)
            torch.manual_seed(5)
            list(loader)
            assert torch.equal(torch.rand(3), expected)


def test_validation_batches_are_single_cases_and_never_augmented(prepared):
    data = BodyData(prepared, batch_size=3, seed=0)
    once, again = (list(data.val_dataloader()) for _ in range(2))
    assert [batch["case"] for batch in once] == [[case] for case in prepared.split.val]
    for first, second in zip(once, again, strict=True):
        assert "counted" not in first
        assert torch.equal(first["image"].as_tensor(), second["image"].as_tensor())


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
        data = BodyData(prepared, batch_size=2, seed=0)
        batches.append([data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()])
    for by_worker, on_device in zip(*batches, strict=True):
        assert by_worker["case"] == on_device["case"]
        assert "draw" not in on_device
        for key in ("image", "label"):
            assert torch.equal(by_worker[key].as_tensor(), on_device[key].as_tensor())


class _Seen(pl.Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


@pytest.mark.filterwarnings(*[mark.args[0] for mark in QUIET], "ignore:'pin_memory'")
def test_batches_prepared_ahead_for_a_gpu_are_those_that_lightning_would_prepare(settings, tmp_path, monkeypatch):
    prepared, seen = prepare_data(Config(data=replace(settings, augment_on_device=True))), []
    for ahead in (False, True):
        monkeypatch.setattr(BodyData, "is_on_gpu", ahead)
        seen.append(_Seen())
        data = BodyData(prepared, batch_size=2, seed=0)
        trainer(tmp_path, seen[-1]).fit(module(n_classes=len(prepared.dataset.classes.names)), datamodule=data)
    for ours, lightnings in zip(seen[1].batches, seen[0].batches, strict=True):
        assert ours.keys() == lightnings.keys()
        assert ours["case"] == lightnings["case"]
        for key in ("image", "label"):
            assert torch.equal(ours[key].as_tensor(), lightnings[key].as_tensor())
    assert len(seen[0].batches) == 2


@pytest.mark.parametrize(
    ("asked", "on_gpu", "expected"),
    [(None, True, True), (None, False, False), (False, True, False), (True, False, True)],
)
def test_whole_volumes_are_augmented_on_the_gpu_that_trains_unless_told_otherwise(settings, asked, on_gpu, expected):
    data = say_who_augments(replace(settings, augment_on_device=asked), on_gpu=on_gpu)
    prepared = prepare_data(Config(data=data))
    (augment,) = prepared.train.transform.transforms
    assert augment.on_device is prepared.augmented_on_device is expected


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ({"augment_on_device": None, "augmented_on_device": True}, True),
        ({"augment_on_device": None, "augmented_on_device": False}, False),
        ({"augment_on_device": True}, True),  # as versions recorded what they had found
        ({}, False),  # of a version without the setting
    ],
)
def test_a_resumed_run_augments_where_it_began_to_whatever_trains_now(settings, recorded, expected):
    for on_gpu in (True, False):
        assert say_who_augments(settings, on_gpu=on_gpu, before=recorded).augment_on_device is expected


def test_patches_are_augmented_by_the_workers_also_where_a_gpu_trains(settings):
    patches = say_who_augments(replace(settings, mode="patch", spacing_mm=(24.0, 24.0, 24.0)), on_gpu=True)
    data = BodyData(prepare_data(Config(data=patches)), batch_size=2, seed=0)
    assert all("draw" not in batch for batch in data.train_dataloader())


def test_augmenting_on_the_device_without_augmentation_is_refused():
    with pytest.raises(ConfigError, match="augment_on_device is set but augmentation is off"):
        DataConfig(augment_on_device=True)
