"""The moving average of the weights: its closed form, what is validated and kept, and what stays as it is."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.train import train as run_training
from pipeline.training import recorder
from pipeline.training.optimisation import Optimisation
from pipeline.training.weight_average import WeightAverage
from tests.support import tiny_module
from tests.support.tiny_module import loader, module
from tests.support.tiny_training import settings_of, strict_json

pytestmark = tiny_module.QUIET


def closed_form(values, decay):
    """Of the weights after each step, in float64: each counts by its own share times what later steps leave of it."""
    kept = [0.0, *(min(decay, (1 + n) / (10 + n)) for n in range(1, len(values)))]
    shares = [(1 - kept[n]) * math.prod(kept[n + 1 :]) for n in range(len(values))]
    assert sum(shares) == pytest.approx(1)
    return sum(share * np.asarray(value, np.float64) for share, value in zip(shares, values, strict=True))


def steps_of(network, n):
    """The network after each of n steps at random."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        yield network


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_has_its_closed_form(decay):
    average, values = WeightAverage(decay), []
    for network in steps_of(torch.nn.Linear(3, 2), 100):
        average.update(network)
        values.append(network.weight.detach().numpy().copy())
    np.testing.assert_allclose(average.weights["weight"], closed_form(values, decay), rtol=1e-4, atol=1e-5)
    assert average.weights["weight"].dtype == torch.float32


def test_a_decay_below_that_of_the_first_steps_gives_torchs_average():
    network = torch.nn.Linear(3, 2)
    average, torchs = WeightAverage(0.1), AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.1))
    for stepped in steps_of(network, 5):
        average.update(stepped)
        torchs.update_parameters(stepped)
    assert all(torch.equal(average.weights[name], value) for name, value in torchs.module.state_dict().items())


def test_the_means_of_a_batch_norm_are_averaged_and_its_count_is_copied():
    network, average, values = torch.nn.BatchNorm1d(2), WeightAverage(0.9), []
    for stepped in steps_of(network, 7):
        stepped(torch.randn(4, 2, generator=torch.Generator().manual_seed(len(values))))
        average.update(stepped)
        values.append(stepped.running_var.numpy().copy())
    np.testing.assert_allclose(average.weights["running_var"], closed_form(values, 0.9), rtol=1e-5)
    assert average.weights["num_batches_tracked"] == 7


class Noted(pl.Callback):
    """The weights after every step, and those that are validated; the gradient of some steps is NaN."""

    def __init__(self, *broken):
        self.broken, self.step, self.stepped, self.validated = broken, -1, [], []

    def on_train_start(self, trainer, pl_module):
        weight = pl_module.network.head.weight
        weight.register_hook(lambda gradient: gradient * (math.nan if self.step in self.broken else 1.0))

    def on_train_batch_start(self, *_):
        self.step += 1

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.stepped.append(deepcopy(pl_module.network.state_dict()))

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append(deepcopy(pl_module.network.state_dict()))


@pytest.mark.parametrize("broken", [(), (2,)])
def test_the_average_is_validated_and_the_trained_weights_go_on(tmp_path, broken):
    """A step that is left out does not count."""
    trained = module(optimisation=Optimisation(ema=0.6), skip_undefined=True)
    noted = Noted(*broken)
    tiny_module.trainer(tmp_path, noted).fit(trained, loader(6), loader(1))
    (validated,) = noted.validated
    for name, value in validated.items():
        taken = [weights[name] for n, weights in enumerate(noted.stepped) if n not in broken]
        np.testing.assert_allclose(value, closed_form(taken, 0.6), rtol=1e-4, atol=1e-6)
        assert torch.equal(trained.network.state_dict()[name], noted.stepped[-1][name])
    assert not torch.equal(validated["head.weight"], trained.network.head.weight)


def test_best_model_holds_the_average_and_the_state_to_resume_both(work, monkeypatch):
    monkeypatch.setattr(recorder, "early_stop_reason", lambda log, *_: "as a test wants it" if len(log) == 1 else None)
    config, run = settings_of(work, "averaged", **{"training.ema": "0.9"})
    run_training(config)
    best = torch.load(run / "checkpoints" / "best_model.ckpt", weights_only=True)["state_dict"]
    state = torch.load(run / "resume" / "last.ckpt", weights_only=True)
    assert state["average"]["n_steps"] == len(strict_json(run / "training_config.json")["data"]["split"]["train"])
    assert all(torch.equal(best[name], value) for name, value in state["average"]["weights"].items())
    assert not torch.equal(best["head.weight"], state["network"]["head.weight"])
