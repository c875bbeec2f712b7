"""Swapping the network by config: every shipped configuration trains for an epoch on tiny volumes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from networks.body_net import BodyNet
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.runs.run_folder import RunFolder
from pipeline.train import train
from tests.support.monai_networks import narrowed
from tests.support.paths import ROOT
from tests.support.settings import settings as settings_from

CONFIGS = ROOT / "configs"
SHIPPED = sorted(CONFIGS.rglob("*.yaml"))
SIZE = (32, 32, 32)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, n_cases=2, seed=2, voxel_mm=16.0)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_trains_for_an_epoch(path, data_set, cache, tmp_path):
    shipped = settings_from("--config", str(path))
    config = replace(
        shipped,
        experiment=replace(shipped.experiment, log_dir=str(tmp_path)),
        data=replace(
            shipped.data,
            dataset_root=str(data_set),
            target_size=SIZE,
            batch_size=1,
            num_workers=0,
            cache_dir=str(cache),
        ),
        model=replace(shipped.model, network=shipped.model.network and narrowed(shipped.model.network)),
        training=replace(shipped.training, max_epochs=1, warmup_epochs=0, n_gpus=0, precision="32", overlay_every=0),
    )
    run = RunFolder.at(train(config))
    assert run.state == "finished"
    network = BodyNet.load_from_checkpoint(run.best_checkpoint).eval()
    named = config.model.network["_target_"].rsplit(".", 1)[-1] if config.model.network else "BodyNet"
    inner = getattr(network, "body", network)
    assert type(inner).__name__ == named
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *SIZE)).shape == (1, 71, *SIZE)
