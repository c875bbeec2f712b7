"""Real steps and validations whose numbers are none, and what a run may be resumed on."""

from __future__ import annotations

import logging
import math
from copy import deepcopy
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from networks.registry import build_network
from pipeline.files.atomic import FileError
from pipeline.runs.history import TrainingLog
from pipeline.training.lightning_module import SCALED_STEPS_TO_GIVE_UP, SegmentationModule, TrainingError
from pipeline.training.resume import restore, resume_state
from pipeline.training.schedule import Schedule

SIZE = (8, 8, 8)


def cases(n, *, broken=None):
    """Batches of one case each; every voxel of the one named `broken` is infinite."""
    generator = torch.Generator().manual_seed(1)
    for number in range(n):
        image = torch.rand((1, 1, *SIZE), generator=generator)
        name = f"body_{number:02d}"
        yield {
            "image": image * (math.inf if name == broken else 1.0),
            "label": (image > 0.5).to(torch.uint8),
            "case": [name],
        }


class Spoiler(pl.Callback):
    """Make the gradients of given steps NaN, on their way back through a parameter; the loss stays finite."""

    def __init__(self, *steps):
        self.steps, self.step = steps, -1

    def on_train_start(self, trainer, pl_module):
        parameter = next(pl_module.network.parameters())
        parameter.register_hook(lambda gradient: gradient * (math.nan if self.step in self.steps else 1.0))

    def on_train_batch_start(self, *_):
        self.step += 1


def module(**settings):
    torch.manual_seed(0)
    network = build_network(None, in_channels=1, n_classes=2, base_channels=2, light=False, target_size=SIZE)
    return SegmentationModule(
        network,
        n_classes=2,
        schedule=Schedule(1e-2),
        weight_decay=0.1,
        **settings,
    )


@pytest.fixture
def trainer(tmp_path):
    """Build a Trainer for one epoch on the CPU: in float32, or with scaled gradients as a GPU has them by default."""

    def build(*callbacks, half=False, **settings):
        precision = {"plugins": [MixedPrecision("16-mixed", "cpu")]} if half else {"precision": "32-true"}
        quiet = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "barebones"), False
        )
        return pl.Trainer(
            accelerator="cpu", max_epochs=1, callbacks=list(callbacks), default_root_dir=tmp_path,
            num_sanity_val_steps=0, **precision, **quiet, **settings,
        )  # fmt: skip

    return build


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
    pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`"),
]


def loader(*args, **kwargs):
    return torch.utils.data.DataLoader(list(cases(*args, **kwargs)), batch_size=None)


@pytest.mark.fault(
    "gradients that are NaN in every step, the losses finite", "one line, exit 2, also where such steps may be skipped"
)
def test_gradients_that_are_never_a_number_end_a_training_that_may_skip_steps(trainer):
    trained = module(skip_undefined=True)
    with pytest.raises(TrainingError, match=r"the gradient is nan in epoch 0, step 3 .*like all of the 4 steps"):
        trainer(Spoiler(*range(4))).fit(trained, loader(4))
    assert trained.skipped_steps == 4


def test_a_good_step_between_two_bad_ones_is_trained_and_counted_anew(trainer):
    trained = module(skip_undefined=True)
    trainer(Spoiler(0, 1, 3)).fit(trained, loader(4))
    assert trained.skipped_steps == 3
    assert all(torch.isfinite(parameter).all() for parameter in trained.parameters())


@pytest.mark.fault(
    "gradients that are NaN in every step of a float16 training", "counted; one line, exit 2, after 20 in a row"
)
def test_a_gradient_that_no_scale_helps_ends_a_float16_training(trainer):
    n, trained = SCALED_STEPS_TO_GIVE_UP + 4, module()
    before = deepcopy(trained.network.state_dict())
    with pytest.raises(TrainingError, match=f"the gradient is nan .*like all of the {SCALED_STEPS_TO_GIVE_UP} steps"):
        trainer(Spoiler(*range(n)), half=True).fit(trained, loader(n))
    assert trained.skipped_steps == SCALED_STEPS_TO_GIVE_UP
    names = dict(trained.network.named_parameters())
    assert all(torch.equal(before[name], value) for name, value in names.items())


def test_a_scale_that_is_too_large_costs_a_float16_training_some_steps_which_are_counted(trainer):
    trained, training = module(), trainer(Spoiler(0, 2), half=True)
    training.fit(trained, loader(6))
    scaler = training.precision_plugin.scaler
    assert trained.skipped_steps >= 2
    assert scaler.get_scale() == 2.0 ** (16 - trained.skipped_steps)  # torch's own count of them


def test_a_validation_loss_that_is_no_number_makes_the_epochs_undefined_and_names_the_case(trainer, caplog):
    validation, healthy = trainer(), trainer()
    with caplog.at_level(logging.WARNING):
        validation.validate(module(), loader(3, broken="body_01"), verbose=False)
    assert not math.isfinite(validation.callback_metrics["val_loss"])
    assert [
        record.getMessage() for record in caplog.records if record.name == "pipeline.training.lightning_module"
    ] == ["case body_01: the validation loss is nan in epoch 0; val_loss of this epoch is undefined"]
    healthy.validate(module(), loader(3), verbose=False)
    assert math.isfinite(healthy.callback_metrics["val_loss"])


@pytest.mark.parametrize(("half_before", "half_now"), [(False, True), (True, False), (True, True)])
def test_a_run_goes_on_where_gradients_are_scaled_and_where_they_are_not(trainer, half_before, half_now):
    first, before = module(), trainer(half=half_before)
    before.fit(first, loader(3))
    state = resume_state(before, first, TrainingLog())
    second, after = module(), trainer(half=half_now)
    after.strategy.connect(second)
    after.strategy.optimizers = [torch.optim.AdamW(second.parameters())]
    restore(state, after, second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    if half_before and half_now:
        assert after.precision_plugin.state_dict() == before.precision_plugin.state_dict()
        with pytest.raises(FileError, match=r"gradient scaler's state .*expected scale, .*found scales; restore"):
            restore(replace(state, precision={"scales": 1.0}), after, second)
