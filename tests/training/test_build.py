"""From settings to the module that trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from networks.body_net import BodyNet
from networks.errors import NetworkError
from networks.registry import network_settings
from pipeline.config.settings import Config, DataConfig, ModelConfig, TrainingConfig
from pipeline.training.build import build_module

SIZES = {"in_channels": 2, "n_classes": 3}
DATA = DataConfig("scans", target_size=(16, 16, 16))
SMALL = ModelConfig(base_channels=4)


def test_every_setting_reaches_network_loss_and_schedule():
    training = TrainingConfig(lr=0.5, warmup_epochs=2, max_epochs=7, schedule="poly", weight_decay=0.25, seed=9)
    module = build_module(
        Config(data=DATA, model=ModelConfig(base_channels=4, use_light_model=True), training=training),
        class_weights=np.array([0.0, 1.0, 3.0]),
        ignores_voxels=True,
        **SIZES,
    )
    assert isinstance(module.network, BodyNet)
    assert module(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
    assert module.criterion.class_weights.tolist() == [0.0, 1.0, 3.0]
    assert module.criterion.ignore_index == module.ignore_index == 255
    assert [module.schedule.learning_rate(epoch) for epoch in (0, 1, 2)] == [0.25, 0.5, 0.5]
    assert (module.schedule.max_epochs, module.schedule.decay) == (7, "poly")
    assert (module.optimisation.weight_decay, module.seed, module.skip_undefined) == (0.25, 9, False)


def test_weights_follow_from_torchs_seed():
    def weights(seed):
        torch.manual_seed(seed)
        module = build_module(Config(data=DATA, model=SMALL), **SIZES)
        return torch.cat([p.flatten() for p in module.network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_deep_supervision_leaves_the_network_its_weights_and_settings():
    modules = []
    for deep in (False, True):
        torch.manual_seed(1)
        config = Config(data=DATA, model=SMALL, training=TrainingConfig(deep_supervision=deep))
        modules.append(build_module(config, **SIZES))
    plain, deep = modules
    assert plain.coarse_heads is None
    assert [head.out_channels for head in deep.coarse_heads.heads] == [3, 3, 3]
    assert {id(p) for p in deep.coarse_heads.parameters()} < {id(p) for p in deep.parameters()}
    assert network_settings(plain.network) == network_settings(deep.network)
    before, after = plain.network.state_dict(), deep.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_class_outside_the_allow_list_takes_the_callers_trust():
    model = ModelConfig(network={"_target_": "collections.OrderedDict"})
    with pytest.raises(NetworkError):
        build_module(Config(data=DATA, model=model), **SIZES)


def test_cases_are_validated_through_a_window_of_the_patch_and_else_whole():
    patches = DataConfig("scans", mode="patch", spacing_mm=(1.0, 1.0, 1.0), target_size=(16, 16, 16))
    assert [build_module(Config(data=data, model=SMALL), **SIZES).window for data in (DATA, patches)] == [
        None,
        (16, 16, 16),
    ]
