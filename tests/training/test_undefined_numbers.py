"""Whole trainings in which a loss or gradient is NaN."""

from __future__ import annotations

import runpy

import pytest
import torch

from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.training.lightning_module import TrainingError
from tests.support.tiny_training import n_epochs, settings_of, strict_json, summary


@pytest.fixture
def losses(monkeypatch):
    """Spoil the losses of training steps by number: a function of (loss, a parameter) for each."""
    spoilt, whole, steps = {}, SlabDiceCELoss.forward, iter(range(1000))

    def forward(self, features, *rest, **more):
        result = whole(self, features, *rest, **more)
        spoil = spoilt.get(next(steps)) if features.requires_grad else None
        return result if spoil is None else result._replace(loss=spoil(result.loss, features))

    monkeypatch.setattr(SlabDiceCELoss, "forward", forward)
    return spoilt


def undefined_loss(loss, features):
    return loss * torch.nan


def undefined_gradient(loss, features):
    return loss + torch.sqrt((0 * features).sum())  # the root's slope at 0 is infinite


@pytest.mark.parametrize(("spoil", "what"), [(undefined_loss, "loss"), (undefined_gradient, "gradient")])
@pytest.mark.fault(
    "a loss or gradient that is NaN",
    'one line with case and step, exit 2, "failed"; with `on_nan_loss: skip` left out and counted',
)
def test_a_number_that_is_none_stops_the_training_or_is_skipped_and_counted(work, losses, spoil, what, shared_spec):
    from pipeline.train import train as run_training

    losses[4] = spoil  # three cases an epoch: the second step of epoch 1
    config, run = settings_of(work, f"stop_{what}")
    with pytest.raises(TrainingError, match=rf"the {what} is nan in epoch 1, step 1 \(cases body_\d+\)"):
        run_training(config)
    assert summary(run)["status"] == "failed"
    assert n_epochs(run) == 1

    losses.clear()
    losses[6 + 4] = spoil
    config, run = settings_of(work, f"skip_{what}", **{"training.on_nan_loss": "skip"})
    run_training(config)
    assert (summary(run)["status"], summary(run)["skipped_steps"]) == ("completed", 1)
    assert None not in strict_json(run / "training_log.json")["training_history"]["train_loss"]
    assert runpy.run_path(str(shared_spec / "check_run.py"))["faults"](run, True)[0] == []


def test_steps_that_are_all_skipped_end_the_training(work, losses):
    from pipeline.train import train as run_training

    losses.update(dict.fromkeys(range(10), undefined_loss))
    config, run = settings_of(work, "hopeless", **{"training.on_nan_loss": "skip"})
    with pytest.raises(TrainingError, match="like all of the 3 steps"):
        run_training(config)
    assert summary(run)["skipped_steps"] == 3
