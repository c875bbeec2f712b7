"""Settings as flags: the documented ones, short and full; flags win over files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from pipeline.cli.plain_words import CommandParser
from pipeline.cli.setting_flags import SHORT_FLAGS
from pipeline.config.files import as_mapping, to_yaml
from pipeline.config.settings import Config, ConfigError
from tests.support.settings import settings


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


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data: {dataset_root: d, batch_size: 7}\ntraining: {lr: 1e-3, precision: 16}\n")
    config = settings("--config", str(path), "--lr", "1e-2")
    assert (config.training.lr, config.data.batch_size, config.training.max_epochs) == (1e-2, 7, 100)
    assert config.training.precision == "16"  # YAML reads a number


@pytest.mark.parametrize("words", ["-1024", "0", "null", "-1e3", "-1.5E+3", "-.5e1", "-1024."])
def test_a_number_may_be_negative_and_have_an_exponent(words):
    value = None if words == "null" else float(words)
    data = settings("--dataset_root", "d", "--data.fill_nan", words, "--data.window", "-1e2", "2e2").data
    assert (data.fill_nan, data.window) == (value, (-100.0, 200.0))


@pytest.mark.parametrize("values", [["[-1e3, 0]"], ["-1e3", "0"], ["5", "--data.fill_nan", "-1e3", "0"]])
def test_a_number_for_each_channel_is_a_list_or_several_words(values):
    data = settings("--dataset_root", "d", "--data.fill_nan", *values, "--data.window", "0", "9").data
    assert (data.fill_nan, data.window) == ([-1000.0, 0.0], (0.0, 9.0))


@pytest.mark.parametrize("name", ["2024-01-15", "2024_01", "010", "1:30", "{a}", "a: b", "[1]", "null", "*a", "1e3"])
def test_a_name_or_path_may_look_like_any_yaml(name):
    assert settings("--dataset_root", name, "--exp_name", name).experiment.name == name
    parser = CommandParser(exit_on_error=False)
    parser.add_argument("--output", type=Path)
    assert parser.parse_args(["--output", name]).output == Path(name)


@pytest.mark.parametrize(
    ("words", "value"), [([], True), (["true"], True), (["no"], False), (["null"], None), (["--seed", "1"], True)]
)
def test_a_switch_that_may_be_left_open_is_on_where_it_stands_alone(words, value):
    config = settings("--data_aug", "--data.augment_on_device", *words, "--dataset_root", "d")
    assert (config.data.augment_on_device, config.data.dataset_root) == (value, "d")
    with pytest.raises(ConfigError, match=r"augment_on_device: expected true, false, yes, no or null, found 'maybe'"):
        settings("--dataset_root", "d", "--data.augment_on_device", "maybe")


PATCHES = ["--data.mode", "patch", "--data.spacing_mm", "1", "1", "1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "abc"], "training.lr"),
        (["--lr", "0"], "training.lr must be above 0"),
        (["--max_epochs", "1:30"], "training.max_epochs: expected a decimal number without zeros in front, found 1:30"),
        (["--training.lr=0x10"], "training.lr: expected a decimal number"),
        (["--data.percentiles", "1", "1_0"], "data.percentiles: expected a decimal number"),
        (["--data.window", "1:30", "0x100"], "data.window: expected a decimal number"),
        (["--max_epochs", "3", "2024_scans"], "unexpected '2024_scans'"),
        (["--learning_rat", "1"], "--learning_rat"),
        (["--batch", "1"], "--batch"),
        (["--precision", "8"], "training.precision"),
        (["--target_size", "10", "20"], "target_size"),
        (["--target_size", "1", "2", "3"], "at least 8"),
        (["--batch_size", "0"], "data.batch_size must be at least 1"),
        (["--use_class_weights", "--weight_alpha", "-1"], "loss.weight_alpha"),
        (["--data.flips", "0"], "--data_aug"),
        (["--data.sided_pairs", "[[a, b]]"], "data.sided_pairs is set but data.flips lacks axis 0"),
        (["--weight_alpha", "0.9"], "loss.weight_alpha is 0.9 but class weights are off; add --use_class_weights"),
        (["--data.window", "5", "-5"], "data.window"),
        (["--data.window", "5"], "data.window: expected 2 values, found 1"),
        (["--data.window", "wide"], "data.window"),
        (["--data.window", "auto", "5"], "data.window"),
        (["--data.mean_std", "40", "0"], "data.mean_std"),
        (["--data.mean_std", "40", "auto"], "data.mean_std"),
        (["--seed", "-1"], "training.seed"),
        (["--data.fill_nan", ".nan"], "data.fill_nan: expected a number, or one for each channel, got nan"),
        (["--model.n_classes", "1"], "model.n_classes must be at least 2"),
        (["--model.network", '{"in_channels": 1}'], "_target_"),
        (["--use_light_model", "--model.network", '{"_target_": "UNet"}'], "use_light_model"),
        (
            ["--model.checkpointing", "true", "--model.network", '{"_target_": "UNet"}'],
            "model.checkpointing is BodyNet's",
        ),
        (["--base_channels", "1"], "model.base_channels must be at least 2, got 1"),
        (["--data.layout", "bids"], "data.layout"),
        (["--data.cache_limit_gb", ".inf"], "data.cache_limit_gb must be a number of 0 (no limit) or more, got inf"),
        (["--data.cache_dir", ""], "data.cache_dir is empty; name a folder of its own"),
        (["--weight_decay", ".inf"], "training.weight_decay must be a number of 0 or more, got inf"),
        (["--training.ema", "1"], "training.ema must lie between 0 and 1, got 1.0"),
        (["--data.spacing_mm", "1", "1", "1"], "data.spacing_mm is for patches; set data.mode to patch, or remove it"),
        (["--data.mode", "patch"], "data.spacing_mm []: expected three numbers of mm above 0"),
        ([*PATCHES, "--data.patch_growth", "[8, 8, 8, 2]"], "data.patch_growth [8, 8, 8, 2]: expected five numbers"),
        ([*PATCHES, "--data.foreground", "2"], "data.foreground must lie within 0 to 1, got 2.0"),
        ([*PATCHES, "--data.keep_aspect"], "data.keep_aspect is for resizing"),
        (
            ["--training.deep_supervision", "--model.network", '{"_target_": "DynUNet"}'],
            "training.deep_supervision is BodyNet's; switch it off, DynUNet has its own argument for it",
        ),
        (["--training.validate_every", "0"], "training.validate_every must be at least 1, got 0"),
        (["--training.gradient_clip", ".inf"], "training.gradient_clip must be a number of 0 (no clipping) or more"),
    ],
)
def test_a_wrong_flag_is_named(arguments, words):
    with pytest.raises(ConfigError) as error:
        settings("--dataset_root", "d", *arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_data_set_root_says_what_to_type():
    with pytest.raises(ConfigError, match="--dataset_root DIR"):
        settings("--lr", "1e-3")


def test_the_defaults_hold_for_every_setting():
    config = Config(data=dataclasses.replace(settings("--dataset_root", "d").data))
    assert settings("--dataset_root", "d") == config
    assert yaml.safe_load(to_yaml(config)) == as_mapping(config)


def test_several_data_sets_are_a_list_in_flags_and_files_and_one_stays_a_text(tmp_path):
    config = settings("--dataset_root", "one", "two", "--data.layout", "nnunet", "auto", "--seed", "1")
    assert (config.data.dataset_root, config.data.layout) == (("one", "two"), ("nnunet", "auto"))
    assert config.data.dataset_roots == ("one", "two")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert settings("--config", str(path)) == config
    assert (
        settings("--config", str(path), "--dataset_root", "three", "--data.layout", "auto").data.dataset_root == "three"
    )
    assert as_mapping(settings("--dataset_root", "one"))["data"]["layout"] == "auto"
    for flags, message in (
        (["--data.layout", "auto", "auto", "auto"], "one for each of 2 data sets, got 3"),
        (["--data.label_remap", "{7: liver}"], "data.label_remap is for one data set, data.dataset_root names 2"),
        (["--data.class_names", "background", "liver"], "data.class_names is for one data set"),
        (["--data.layout", "nnunet", "nnu"], "data.layout"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings("--dataset_root", "one", "two", *flags)


def test_the_light_form_of_a_planned_body_net_may_be_asked_for():
    network = '{"_target_": "BodyNet", "strides": [[2, 2, 2]], "kernels": [[3, 3, 3], [3, 3, 3]]}'
    assert settings("--dataset_root", "D", "--use_light_model", "--model.network", network).model.use_light_model


def test_a_flag_for_one_entry_of_a_mapping_has_the_type_that_a_file_would_give_it():
    flags = "--model.network._target_ UNet --model.network.channels [16,32] --model.network.eps=1e-5"
    flags += " --model.network.norm batch --data.label_remap.7 1 --data.label_remap.8 '2'"
    config = settings("--dataset_root", "d", *flags.split())
    assert config.model.network == {"_target_": "UNet", "channels": [16, 32], "eps": 1e-5, "norm": "batch"}
    assert config.data.label_remap == {7: 1, 8: "2"}
