"""Settings: flags, files and the errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import yaml
from jsonargparse import ArgumentParser

from pipeline.cli.setting_flags import SHORT_FLAGS, add_settings, parse
from pipeline.config.files import as_mapping, to_yaml
from pipeline.config.settings import Config, ConfigError, without_effect


def settings(*arguments):
    parser = ArgumentParser(prog="test", allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", metavar="FILE")
    add_settings(parser)
    return parse(parser, arguments)[0]


def test_the_documented_command_line_sets_every_key_it_names():
    config = settings(
        *"--dataset_root DIR --target_size 160 160 256 --batch_size 2 --num_workers 4 --data_aug --base_channels 32"
        " --use_light_model --lr 1e-4 --weight_decay 0 --max_epochs 100 --warmup_epochs 5 --n_gpus 2 --precision 16"
        " --seed 42 --use_class_weights --weight_alpha 0.5 --exp_name body_unet --log_dir logs".split()
    )
    found = as_mapping(config)
    wanted = {
        "experiment": {"name": "body_unet", "log_dir": "logs"},
        "data": {
            "dataset_root": "DIR",
            "target_size": [160, 160, 256],
            "batch_size": 2,
            "num_workers": 4,
            "data_aug": True,
        },
        "model": {"base_channels": 32, "use_light_model": True},
        "training": {
            "lr": 1e-4,
            "weight_decay": 0.0,
            "max_epochs": 100,
            "warmup_epochs": 5,
            "n_gpus": 2,
            "precision": "16",
            "seed": 42,
        },
        "loss": {"use_class_weights": True, "weight_alpha": 0.5},
    }
    for group, keys in wanted.items():
        assert {key: found[group][key] for key in keys} == keys


def test_short_and_full_flags_mean_the_same():
    values = {"data.target_size": ["32", "48", "64"], "training.precision": ["bf16"], "training.lr": ["0.01"]}
    for short, full in SHORT_FLAGS.items():
        if full in values:
            base = ("--dataset_root", "d")
            assert settings(*base, f"--{short}", *values[full]) == settings(*base, f"--{full}", *values[full])


def test_what_is_printed_reads_back_as_the_same_settings(tmp_path):
    config = settings("--dataset_root", "d", "--lr", "3e-5", "--target_size", "24", "32", "40", "--data_aug")
    for name, text in (("c.yaml", to_yaml(config)), ("c.json", json.dumps(as_mapping(config)))):
        path = tmp_path / name
        path.write_text(text)
        assert settings("--config", str(path)) == config


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data: {dataset_root: d, batch_size: 7}\ntraining: {lr: 1e-3, precision: 16}\n")
    config = settings("--config", str(path), "--lr", "1e-2")
    assert (config.training.lr, config.data.batch_size, config.training.max_epochs) == (1e-2, 7, 100)
    assert config.training.precision == "16"  # YAML reads a number


def test_a_runs_own_record_is_a_valid_config(tmp_path):
    config = settings("--dataset_root", "d", "--use_class_weights")
    record = as_mapping(config)
    record["experiment"]["start_time"] = "2024-01-15 10:30:00"
    record["model"]["total_parameters"] = 20458391
    record["loss"]["class_weights_stats"] = {"min": 0.1, "max": 5.0, "mean": 1.0, "std": 1.0}
    record["system"] = {"pytorch_version": "2.13.0"}
    path = tmp_path / "training_config.json"
    path.write_text(json.dumps(record))
    assert settings("--config", str(path)) == config


def test_a_config_cannot_be_changed_after_it_was_made():
    config = settings("--dataset_root", "d")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.lr = 1.0


PATCHES = ["--data.mode", "patch", "--data.spacing_mm", "1", "1", "1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "abc"], "training.lr"),
        (["--lr", "0"], "training.lr must be above 0"),
        (["--learning_rat", "1"], "--learning_rat"),
        (["--batch", "1"], "--batch"),
        (["--precision", "8"], "training.precision"),
        (["--target_size", "10", "20"], "target_size"),
        (["--target_size", "1", "2", "3"], "at least 8"),
        (["--batch_size", "0"], "data.batch_size must be at least 1"),
        (["--use_class_weights", "--weight_alpha", "-1"], "loss.weight_alpha"),
        (["--data.flips", "0"], "--data_aug"),
        (["--weight_alpha", "0.9"], "loss.weight_alpha is 0.9 but class weights are off; add --use_class_weights"),
        (["--data.window", "5", "-5"], "data.window"),
        (["--data.window", "5"], "data.window: expected 2 values, found 1"),
        (["--data.window", "wide"], "data.window"),
        (["--data.window", "auto", "5"], "data.window"),
        (["--seed", "-1"], "training.seed"),
        (["--model.n_classes", "1"], "model.n_classes must be at least 2"),
        (["--model.network", '{"in_channels": 1}'], "_target_"),
        (["--use_light_model", "--model.network", '{"_target_": "UNet"}'], "use_light_model"),
        (["--data.layout", "bids"], "data.layout"),
        (["--data.cache_limit_gb", ".inf"], "data.cache_limit_gb must be a number of 0 (no limit) or more, got inf"),
        (["--weight_decay", ".inf"], "training.weight_decay must be a number of 0 or more, got inf"),
        (["--data.spacing_mm", "1", "1", "1"], "data.spacing_mm is for patches; set data.mode to patch, or remove it"),
        (["--data.mode", "patch"], "data.spacing_mm []: expected three numbers of mm above 0"),
        ([*PATCHES, "--data.patch_growth", "[8, 8, 8, 2]"], "data.patch_growth [8, 8, 8, 2]: expected five numbers"),
        ([*PATCHES, "--data.foreground", "2"], "data.foreground must lie within 0 to 1, got 2.0"),
        ([*PATCHES, "--data.keep_aspect"], "data.keep_aspect is for resizing"),
        (["--training.validate_every", "0"], "training.validate_every must be at least 1, got 0"),
        (["--training.gradient_clip", ".inf"], "training.gradient_clip must be a number of 0 (no clipping) or more"),
    ],
)
def test_a_wrong_flag_is_named(arguments, words):
    with pytest.raises(ConfigError) as error:
        settings("--dataset_root", "d", *arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {lrr: 1}", "unknown setting training.lrr; known are lr,"),
        ("trainng: {lr: 1}", "unknown group ['trainng']"),
        ("training: 5", "group training must hold settings"),
        ("- 1\n- 2", "found no mapping"),
        ("{a: [", "cannot be read as YAML"),
        ("training: {lr: fast}", "training.lr"),
        ("data: {dataset_root: d, target_size: [1, 2]}", "data.target_size"),
        ("data: {dataset_root: d, target_size: 160}", "data.target_size"),
        ("data: {dataset_root: d, window: [a, b]}", "data.window"),
        ("training: {seed: 7}\ndata: {dataset_root: d}\ntraining: {lr: 0.5}", "'training' is given twice"),
        ("training: {seed: 7, lr: 0.5, seed: 8}", "'seed' is given twice"),
        ("!!python/object/apply:os.system ['echo']", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        settings("--config", str(path))
    assert words in str(error.value)


def test_a_group_that_is_given_twice_in_json_is_refused_too(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"training": {"seed": 7}, "data": {"dataset_root": "d"}, "training": {"lr": 0.5}}')
    with pytest.raises(ConfigError, match=r"cannot be read as JSON \('training' is given twice; .*keep one"):
        settings("--config", str(path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--max_epochs 3", "training.warmup_epochs is 5 but training.max_epochs 3: .* never reaches training.lr"),
        ("--base_channels 64 --model.network SegResNet", "model.base_channels is BodyNet's and changes nothing in Seg"),
        ("--data.intensity mr --data.window 0 80", "data.window changes nothing with data.intensity mr"),
        ("--data.intensity ct --data.percentiles 1 99", "data.percentiles change nothing with data.intensity ct"),
    ],
)
def test_a_setting_that_changes_nothing_is_named(arguments, words):
    flags = arguments.replace("SegResNet", '{"_target_":"SegResNet"}').split()
    (note,) = without_effect(settings("--dataset_root", "d", *flags))
    assert re.search(words, note)


def test_a_window_is_two_numbers_or_the_word_auto(tmp_path):
    assert settings("--dataset_root", "d").data.window == "auto"
    assert settings("--dataset_root", "d", "--data.window", "auto").data.window == "auto"
    assert settings("--dataset_root", "d", "--data.window", "-160", "240").data.window == (-160.0, 240.0)
    path = tmp_path / "c.yaml"
    for text, window in (("auto", "auto"), ("[-160, 240]", (-160.0, 240.0))):
        path.write_text(f"data: {{dataset_root: d, window: {text}}}")
        assert settings("--config", str(path)).data.window == window
        path.write_text(to_yaml(settings("--config", str(path))))
        assert settings("--config", str(path)).data.window == window
        assert settings("--config", str(path), "--data.window", "0", "80").data.window == (0.0, 80.0)


def test_settings_that_are_used_are_not_called_without_effect():
    used = "--base_channels 64 --data.window 0 80 --data.percentiles 1 99 --max_epochs 5 --warmup_epochs 5"
    assert without_effect(settings("--dataset_root", "d", *used.split())) == ()
    own = ["--base_channels", "64", "--model.network", '{"_target_":"networks.body_net.BodyNet"}']
    assert without_effect(settings("--dataset_root", "d", *own)) == ()


def test_a_missing_data_set_root_says_what_to_type():
    with pytest.raises(ConfigError, match="--dataset_root DIR"):
        settings("--lr", "1e-3")


def test_the_defaults_hold_for_every_setting():
    config = Config(data=dataclasses.replace(settings("--dataset_root", "d").data))
    assert settings("--dataset_root", "d") == config
    assert yaml.safe_load(to_yaml(config)) == as_mapping(config)
