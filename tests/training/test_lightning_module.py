"""Real steps and validations: what they train, and what they do with NaN and infinity."""

from __future__ import annotations

import logging
import math
from copy import deepcopy
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss

from networks.deep_supervision import CoarseHeads
from networks.registry import build_network
from pipeline.training.lightning_module import SCALED_STEPS_TO_GIVE_UP, SegmentationModule, TrainingError
from pipeline.training.schedule import Schedule
from tests.support import tiny_module
from tests.support.monai_networks import DEEP, plain
from tests.support.tiny_module import batches, loader, module


class Spoiler(pl.Callback):
    """Make the gradients of given steps NaN, on their way back through a parameter; the loss stays finite."""

    def __init__(self, *steps):
        self.steps, self.step = steps, -1

    def on_train_start(self, trainer, pl_module):
        parameter = next(pl_module.network.parameters())
        parameter.register_hook(lambda gradient: gradient * (math.nan if self.step in self.steps else 1.0))

    def on_train_batch_start(self, *_):
        self.step += 1


@pytest.fixture
def trainer(tmp_path):
    return partial(tiny_module.trainer, tmp_path)


pytestmark = tiny_module.QUIET


class Losses(pl.Callback):
    """Note the loss of every step, and whether gradients are left after it."""

    def __init__(self):
        self.losses, self.n_gradients = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(float(trainer.callback_metrics["loss"]))
        self.n_gradients.append(sum(parameter.grad is not None for parameter in pl_module.parameters()))


def test_the_loss_falls_the_fused_optimiser_steps_and_gradients_are_freed(trainer):
    trained, noted = module(), Losses()
    before = deepcopy(trained.network.state_dict())
    training = trainer(noted, gradient_clip_val=1.0)
    training.fit(trained, torch.utils.data.DataLoader(list(batches(1)) * 30, batch_size=None))
    (optimiser,) = training.optimizers
    assert optimiser.defaults["fused"]
    assert {int(state["step"]) for state in optimiser.state.values()} == {30}
    assert noted.losses[-1] < 0.7 * noted.losses[0]
    assert noted.n_gradients == [0] * 30
    assert not torch.equal(before["head.weight"], trained.network.head.weight)


def test_an_epoch_is_trained_at_the_schedules_rate(trainer):
    trained = module(schedule=Schedule(lr=0.5, warmup_epochs=4, max_epochs=8))
    training = trainer()
    training.fit(trained, loader(1))
    assert training.optimizers[0].param_groups[0]["lr"] == 0.125


def test_one_step_is_torchs_own_of_monais_loss(trainer):
    """Clipping included: the same network, DiceCELoss, AdamW and clip_grad_norm_ by hand."""
    trained, clip = module(), 0.01
    by_hand = deepcopy(trained.network)
    trainer(gradient_clip_val=clip).fit(trained, loader(1))
    (batch,) = batches(1)
    optimiser = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.1)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    criterion(by_hand(batch["image"]), batch["label"]).backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), clip)
    optimiser.step()
    for ours, theirs in zip(trained.network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_one_step_with_coarse_heads_is_torchs_own_of_monais_loss_at_each_level(trainer):
    trained = module()
    trained = module(coarse_heads=CoarseHeads(trained.network, 2))
    network, heads = deepcopy((trained.network, trained.coarse_heads))
    trainer().fit(trained, loader(1))
    (batch,) = batches(1)
    parameters = [*network.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    logits = [level.head(level.features) for level in heads(network, batch["image"])]
    weights = [8 / 15, 4 / 15, 2 / 15, 1 / 15]
    criterion = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True, batch=True), weights=weights)
    criterion(logits, batch["label"].float()).backward()
    optimiser.step()
    for ours, theirs in zip(trained.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("spec", DEEP[:2], ids=lambda spec: spec["_target_"])
def test_a_network_that_returns_several_levels_trains_and_is_validated_by_the_first(trainer, spec):
    torch.manual_seed(0)
    network = build_network(spec, n_classes=2, target_size=(16, 16, 16))
    trained, noted = SegmentationModule(network, n_classes=2, schedule=Schedule(1e-3)), Losses()
    image = torch.rand(1, 1, 16, 16, 16)
    case = {"image": image, "label": (image > 0.5).to(torch.uint8), "case": ["a"]}
    training, loader = trainer(noted), partial(torch.utils.data.DataLoader, batch_size=None)
    training.fit(trained, loader([case] * 2), loader([case]))
    assert noted.losses[1] < noted.losses[0]
    with torch.no_grad():
        expected = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)(plain(network)(image), case["label"])
    assert float(training.callback_metrics["val_loss"]) == pytest.approx(float(expected), rel=1e-4)


class Gradients(pl.Callback):
    """Note the gradients of every optimiser step, and the weights that they were taken at."""

    def __init__(self):
        self.steps = []

    def on_train_start(self, trainer, pl_module):
        clip = pl_module.configure_gradient_clipping

        def clip_and_note(*args, **kwargs):
            clip(*args, **kwargs)
            named = dict(pl_module.network.named_parameters())
            gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
            self.steps.append((deepcopy(pl_module.network.state_dict()), gradients))

        pl_module.configure_gradient_clipping = clip_and_note


def of_sizes(*sizes, broken=()):
    """Batches of several cases each; the images of batches whose index is in `broken` are infinite."""
    single, numbered = list(batches(sum(sizes))), []
    for number, size in enumerate(sizes):
        own, single = single[:size], single[size:]
        image = torch.cat([case["image"] for case in own]) * (math.inf if number in broken else 1.0)
        names = [case["case"][0] for case in own]
        numbered.append({"image": image, "label": torch.cat([case["label"] for case in own]), "case": names})
    return numbered


def mean_gradients(state, window):
    """Plain PyTorch and MONAI: the mean over the samples of all batches of a window."""
    network = module().network
    network.load_state_dict(state)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    n_samples = sum(len(batch["case"]) for batch in window)
    for batch in window:
        loss = criterion(network(batch["image"]), batch["label"])
        (loss * len(batch["case"]) / n_samples).backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize(
    ("sizes", "broken", "windows", "half"),
    [
        ((2, 2, 2, 2), (), [(0, 1), (2, 3)], False),
        ((2, 2, 2), (), [(0, 1), (2,)], False),
        ((2, 2, 1), (), [(0, 1), (2,)], False),
        ((3, 1), (), [(0, 1)], False),
        ((2, 2, 2, 2), (1,), [(0,), (2, 3)], False),
        ((2, 2, 2, 2), (2,), [(0, 1), (3,)], False),
        ((2, 2, 2, 2), (1,), [(0,), (2, 3)], True),
        ((2, 2, 2, 1), (), [(0, 1), (2, 3)], True),
    ],
)
def test_accumulated_batches_give_the_mean_over_their_samples(trainer, sizes, broken, windows, half):
    noted, trained, data = Gradients(), module(skip_undefined=True), of_sizes(*sizes, broken=broken)
    loader_ = torch.utils.data.DataLoader(data, batch_size=None)
    trainer(noted, half=half, accumulate_grad_batches=2).fit(trained, loader_)
    assert trained.skipped_steps == len(broken)
    assert len(noted.steps) == len(windows)
    for (state, gradients), window in zip(noted.steps, windows, strict=True):
        expected = mean_gradients(state, [data[index] for index in window])
        scale = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=(5e-2 if half else 1e-4) * scale, rtol=0)


def test_a_window_of_batches_that_are_all_left_out_moves_nothing(trainer):
    trained, noted = module(skip_undefined=True), Gradients()
    data = of_sizes(1, 1, 1, 1, broken=(0, 1))
    trainer(noted, accumulate_grad_batches=2).fit(trained, torch.utils.data.DataLoader(data, batch_size=None))
    (first, none), (second, some) = noted.steps
    assert not none
    assert some
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_a_gradient_that_is_nan_names_all_cases_of_its_step(trainer):
    with pytest.raises(TrainingError, match=r"gradient is nan in epoch 0, step 2 \(cases body_00, body_01, body_02\)"):
        trainer(Spoiler(0), accumulate_grad_batches=3).fit(module(), loader(4))


@pytest.mark.fault(
    "gradients that are NaN in every step, the losses finite", "one line, exit 2, also where such steps may be skipped"
)
def test_gradients_that_are_never_a_number_end_a_training_that_may_skip_steps(trainer):
    trained = module(skip_undefined=True)
    with pytest.raises(TrainingError, match=r"the gradient is nan in epoch 0, step 3 .*like all of the 4 steps"):
        trainer(Spoiler(*range(4))).fit(trained, loader(4))
    assert trained.skipped_steps == 4


def test_a_good_step_between_two_bad_ones_starts_the_count_again(trainer):
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


def test_a_single_structure_has_its_iou_in_an_array_of_one(trainer):
    trained = module()
    trainer().validate(trained, loader(1), verbose=False)
    assert trained.val_iou_per_class.shape == (1,)
