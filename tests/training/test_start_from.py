"""Trainings that begin with the weights of another: what is matched, taken, frozen, resumed and said."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from networks.registry import build_network
from pipeline.check import check, to_text
from pipeline.config.settings import (
    Config,
    ConfigError,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    TrainingConfig,
)
from pipeline.files.atomic import FileError
from pipeline.train import train as run_training
from pipeline.training.start_from import match_channels, match_classes, treatment
from tests.support import tiny_module
from tests.support.tiny_module import SIZE, loader, module
from tests.support.tiny_training import (
    EPOCHS,
    WHOLE,
    differences,
    ended,
    go_on,
    settings_of,
    strict_json,
    train,
)

pytestmark = tiny_module.QUIET

OLD = ("background", "liver", "Left kidney", "spleen")


def test_classes_are_matched_by_name_by_plain_name_and_as_they_were_renamed():
    match = match_classes(["bg", "left_kidney", "tumour", "liver", "milt"], OLD, 4, {"spleen": "milt"})
    assert match.sources == (0, 2, None, 1, 3)
    assert (match.new, match.lost) == (("tumour",), ())
    assert match.to_document() == {
        "bg": "background", "left_kidney": "Left kidney", "tumour": None, "liver": "liver", "milt": "spleen"
    }  # fmt: skip
    assert match_classes(["background", "liver"], OLD, 4, {"liver": "liver"}).lost == ("Left kidney", "spleen")
    # what was renamed is not found by its old name, too
    assert match_classes(["background", "liver", "organ"], OLD, 4, {"liver": "organ"}).sources == (0, None, 1)
    # a plain name that two have says nothing
    assert match_classes(["background", "a b"], ["background", "a_b", "A B"], 3, {}).sources == (0, None)


@pytest.mark.parametrize(
    ("renamed", "words"),
    [
        ({"livr": "liver"}, "classes of the run.*liver, Left kidney, spleen, found 'livr'"),
        ({"liver": "livr"}, "classes of the data set, background, liver, found 'livr'"),
        ({"liver": "liver", "spleen": "liver"}, "each class once, found two old ones for 'liver'"),
    ],
)
def test_a_renamed_class_that_is_not_there_is_refused(renamed, words):
    with pytest.raises(ConfigError, match=words):
        match_classes(["background", "liver"], OLD, 4, renamed)


def test_a_file_without_names_keeps_its_order_where_the_number_is_the_same():
    match = match_classes(["background", "liver"], None, 2, {})
    assert (match.sources, match.by_position) == ((0, 1), True)
    assert match_classes(["background", "liver"], None, 3, {}).sources == (None, None)
    match = match_channels(["CT", "PET"], None, 1)
    assert (match.sources, match.by_position) == ((0, None), True)
    with pytest.raises(ConfigError, match="of which there are none, found 'liver'"):
        match_classes(["background", "a"], None, 2, {"liver": "a"})


def test_channels_are_matched_by_name_and_one_stands_for_one():
    assert match_channels(["flair", "T1"], ["T1", "FLAIR"], 2).sources == (1, 0)
    match = match_channels(["T1", "T2"], ["FLAIR", "T1"], 2)
    assert (match.sources, match.lost) == ((1, None), ("FLAIR",))
    assert match_channels(["T1"], ["CT"], 1).sources == (0,)
    assert match_channels(["image", "image1"], ["T1", "T2"], 2).by_position


# How what was taken over learns --------------------------------------------------------------------------------------


class Weights(tiny_module.pl.Callback):
    """Keeps all weights after every epoch."""

    def __init__(self):
        self.after = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.after.append({key: value.clone() for key, value in pl_module.network.state_dict().items()})


def started(size=SIZE, **settings) -> Config:
    return Config(data=DataConfig("scans", target_size=size), training=TrainingConfig(start_from="r", **settings))


def begin(network: nn.Module, **settings):
    document = {"weights_in_part": ["head.weight"], "weights_initialised": ["head.bias"]}
    return treatment(document, network, started(**settings), in_channels=1)


def test_a_frozen_encoder_stays_bit_for_bit_and_then_moves(tmp_path):
    trained = module()
    trained.taken = begin(trained.network, freeze_epochs=2)
    before = {key: value.clone() for key, value in trained.network.state_dict().items()}
    weights = Weights()
    trainer = tiny_module.trainer(tmp_path, weights)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trained, loader(2))
    encoder = {key for key in before if key.startswith(("stem", "encoder"))}
    for epoch, after in enumerate(weights.after):
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert moved >= {"head.weight", "head.bias", "last.weight"}
        assert bool(moved & encoder) == (epoch >= 2)
    assert not torch.equal(before["stem.weight"], weights.after[2]["stem.weight"])


def test_a_damaged_record_of_a_start_is_refused():
    with pytest.raises(FileError, match=r"training\.started_from: expected the lists weights_in_part"):
        treatment({}, module().network, started(), in_channels=1)


def test_batch_normalisations_of_a_frozen_encoder_keep_their_means(tmp_path):
    spec = {"_target_": "BasicUNet", "features": [2, 2, 2, 2, 2, 2], "norm": "batch"}
    network = build_network(spec, n_classes=2, target_size=(16, 16, 16))
    document = {"weights_in_part": [], "weights_initialised": []}
    taken = treatment(document, network, started((16, 16, 16), freeze_epochs=1), in_channels=1)
    own = network.state_dict(keep_vars=True)
    norms = [name for name in own if name.endswith("running_mean") and name.startswith(("conv_0", "down"))]
    assert {id(norm.running_mean) for norm in taken.frozen_norms} == {id(own[name]) for name in norms}


def test_a_head_that_is_a_transposed_convolution_is_taken_whole_too():
    spec = {"_target_": "MedNeXt", "init_filters": 4, "kernel_size": 3}
    network = build_network(spec, n_classes=2, target_size=(16, 16, 16))
    document = {"weights_in_part": [], "weights_initialised": []}
    taken = treatment(document, network, started((16, 16, 16), taken_lr_factor=0.5), in_channels=1)
    assert {id(parameter) for parameter in taken.whole} == {id(parameter) for parameter in network.parameters()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_what_was_taken_whole_learns_at_its_share_of_the_rate(tmp_path, optimizer):
    trained = module(optimisation=replace(module().optimisation, optimizer=optimizer))
    trained.taken = begin(trained.network, taken_lr_factor=0.25)
    trainer = tiny_module.trainer(tmp_path)
    trainer.fit(trained, loader(1))
    rates = {id(p): group["lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    own = trained.network.state_dict(keep_vars=True)
    heads = {id(own["head.weight"]), id(own["head.bias"])}
    assert rates == {id(p): 1e-2 if id(p) in heads else 0.25e-2 for p in own.values()}


# Whole trainings -----------------------------------------------------------------------------------------------------

TAUGHT = {
    "data.mode": "patch",
    "data.spacing_mm": "20 20 20",
    "training.freeze_epochs": "2",
    "training.taken_lr_factor": "0.5",
    "training.optimizer": "muon",
    "training.deep_supervision": "true",
    "training.ema": "0.9",
}


def test_a_run_on_patches_resumes_bit_for_bit_also_where_what_it_was_started_from_is_gone(work):
    source = work / "source"
    shutil.copytree(work / "logs" / WHOLE, source)
    settings = TAUGHT | {"training.start_from": str(source)}
    process, run, output = train(work, "cut", pause=2, **settings)
    whole = train(work, "uncut", **settings)
    go_on(process, signal.SIGTERM)
    ended(process, run, output, code=143)
    ended(*whole, code=0)
    shutil.rmtree(source)
    said = ended(*train(work, "cut", "--resume", **settings), code=0)
    assert "Starting from" not in said
    assert differences(whole[1], run) == []
    assert strict_json(run / "training_config.json")["training"]["started_from"]["run"] == WHOLE


def test_a_finished_run_is_continued_by_the_flags_that_resume_names(work):
    config, run = settings_of(work, "whole", max_epochs=EPOCHS + 1)
    with pytest.raises(FileError, match="nothing is left to --resume") as refusal:
        run_training(config, resume=True)
    flags = re.search(r"give (--training\.start_from .*?) instead", str(refusal.value))[1]
    given = dict(zip(shlex.split(flags)[::2], shlex.split(flags)[1::2], strict=True))
    assert given == {"--training.start_from": str(run), "--exp_name": "whole_2"}
    settings = {key.removeprefix("--"): value for key, value in given.items() if key != "--exp_name"}
    said: list[str] = []
    config, run = settings_of(work, "whole_2", max_epochs=1, lr="1e-07", **settings)
    run_training(config, say=said.append)
    assert "Starting from whole_bs1_lr0.003_ch2_aug" in "\n".join(said)
    before = strict_json(work / "logs" / WHOLE / "training_log.json")["training_history"]["val_loss"]
    # a step of 1e-7 changes hardly anything: it validates as the best epoch of the old run did
    best = strict_json(work / "logs" / WHOLE / "training_log.json")["best_metrics"]["best_epoch"]
    after = strict_json(run / "training_log.json")["training_history"]["val_loss"]
    assert after[0] == pytest.approx(before[best], rel=1e-4)
    record = strict_json(run / "training_config.json")["training"]["started_from"]
    assert (record["weights_in_part"], record["weights_initialised"], record["changed"]) == ([], [], {})
    assert record["classes"]["liver"] == "liver"
    split = strict_json(work / "logs" / WHOLE / "training_config.json")["data"]["split"]
    assert record["trained_on"] == sorted(split["train"])


def test_settings_made_in_python_keep_the_window_of_the_old_run_where_they_say_auto(work, monkeypatch):
    """As they keep its kinds of intensities; on the command line "auto" is only there where somebody gave it."""
    seen = []

    def halt(config, *_, **__):
        seen.append((config.data.window, config.data.mean_std))
        raise ConfigError("far enough")

    monkeypatch.setattr("pipeline.train._set_up", halt)
    old = strict_json(work / "logs" / WHOLE / "training_config.json")["data"]
    data = DataConfig(dataset_root=str(work / "data"), target_size=(16, 16, 24), cache_dir=str(work / "cache"))
    start = TrainingConfig(start_from=str(work / "logs" / WHOLE), n_gpus=0)
    config = Config(ExperimentConfig("kept", str(work / "logs")), data, ModelConfig(base_channels=2), start)
    given = replace(config, data=replace(data, window=(-50.0, 250.0)))
    other = replace(config, data=replace(data, intensity="zscore"))
    for each, auto_is_new in ((config, False), (given, False), (config, True), (other, False)):
        with pytest.raises(ConfigError, match="far enough"):
            run_training(each, auto_is_new=auto_is_new)
    assert seen == [(tuple(old["window"]), "none"), ((-50.0, 250.0), "none"), ("auto", "auto"), ("auto", "auto")]
    assert old["window"] != "auto"


def test_a_run_cannot_be_replaced_by_one_that_starts_from_it(work):
    config, _ = settings_of(work, "whole", **{"training.start_from": str(work / "logs" / WHOLE)})
    with pytest.raises(ConfigError, match="would replace the one that it starts from; give it another --exp_name"):
        run_training(config, overwrite=True)
    assert (work / "logs" / WHOLE / "checkpoints" / "best_model.ckpt").exists()


def test_check_says_what_a_training_would_take_and_refuses_what_it_refuses(work):
    run = work / "logs" / WHOLE
    data = DataConfig(dataset_root=str(work / "data"), target_size=(16, 16, 24), cache_dir=str(work / "cache"))
    config = Config(data=data, model=ModelConfig(base_channels=2), training=TrainingConfig(start_from=str(run)))
    report = check(config, costs=False)
    assert "taken     97 of 97 weights, 80,689 of 80,689 numbers" in to_text(report)
    assert "(as in whole_bs1" in to_text(report)
    training = replace(config.training, start_classes={"livr": "liver"})
    for wrong, words in (
        (replace(config, model=ModelConfig(base_channels=4)), "found BodyNet(base_channels=2)"),
        (replace(config, training=training), "found 'livr'"),
    ):
        report = check(wrong, costs=False)
        assert report.exit_code == 2
        (finding,) = [finding for finding in report.findings if finding.kind == "start_from"]
        assert words in finding.found
