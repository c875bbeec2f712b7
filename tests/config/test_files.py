"""Files of settings: what is written reads back, and what is wrong is named."""

from __future__ import annotations

import functools
import json
import re

import pytest
import torch
import yaml

from pipeline.config.files import as_mapping, from_mapping, read_yaml, to_yaml, write_yaml
from pipeline.config.settings import GROUPS, ConfigError
from tests.support.settings import settings


def test_what_is_printed_reads_back_as_the_same_settings(tmp_path):
    config = settings("--dataset_root", "d", "--lr", "3e-5", "--target_size", "24", "32", "40", "--data_aug")
    for name, text in (("c.yaml", to_yaml(config)), ("c.json", json.dumps(as_mapping(config)))):
        path = tmp_path / name
        path.write_text(text)
        assert settings("--config", str(path)) == config


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


@pytest.mark.parametrize(
    "data",
    [
        {"dataset_root": "d", "other_dataset_roots": ["e", "f"]},
        {"dataset_root": ["d", "e", "f"]},  # as earlier versions wrote it
    ],
)
def test_several_data_sets_of_a_runs_record_are_read_together_and_a_flag_names_others(tmp_path, data):
    path = tmp_path / "training_config.json"
    path.write_text(json.dumps({"data": data}))
    assert settings("--config", str(path)).data.dataset_roots == ("d", "e", "f")
    assert settings("--config", str(path), "--dataset_root", "g").data.dataset_roots == ("g",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {other_dataset_roots: [e]}", "expected a list of the data sets behind the one of data.dataset_root"),
        ("data: {dataset_root: [d], other_dataset_roots: [e]}", "data.other_dataset_roots: expected a list"),
        ("data: {dataset_root: d, other_dataset_roots: e}", "data.other_dataset_roots: expected a list"),
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


@pytest.mark.fault(
    "a group of settings that stands twice in a config",
    "refused in one line that names it",
)
def test_a_group_that_is_given_twice_in_json_is_refused_too(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"training": {"seed": 7}, "data": {"dataset_root": "d"}, "training": {"lr": 0.5}}')
    with pytest.raises(ConfigError, match=r"cannot be read as JSON \('training' is given twice; .*keep one"):
        settings("--config", str(path))


TEXTS = ["1", "12", "1e3", "no", "null", "true", "0.5", "010", "08", "-1e-5"]
TEXTS += ["1:30", "2024-01-15", "[1]", "{a: 1}", "~", ""]


@pytest.mark.parametrize("kind", ["yaml", "json", "flags"])
def test_a_text_that_looks_like_another_type_stays_a_text(tmp_path, kind):
    """Teeth are named by FDI number, vertebrae by level; read as an index, 12 is another class."""
    groups = {
        "data": {"label_remap": {**dict(enumerate(TEXTS, 1)), 99: 12}},
        "model": {"network": {"_target_": "UNet", "act": "null", "norm": "1", "channels": [16, "32"], "eps": 1e-5}},
        "training": {"start_from": str(tmp_path / "weights.pt"), "start_classes": {text: text for text in TEXTS}},
    }
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), tmp_path / "weights.pt")
    path = tmp_path / f"c.{kind}"
    path.write_text(json.dumps(groups))  # which is YAML, too
    flags = [
        word
        for group, values in groups.items()
        for name, value in values.items()
        for word in (f"--{group}.{name}", value if name == "start_from" else json.dumps(value))
    ]
    arguments = flags if kind == "flags" else ["--config", str(path)]
    config = settings("--dataset_root", "d", "--lr", "0.1", *arguments)
    assert config.data.label_remap == groups["data"]["label_remap"]
    assert config.model.network == groups["model"]["network"]
    assert config.training.start_classes == groups["training"]["start_classes"]
    path.with_suffix(".yaml").write_text(to_yaml(config))
    assert settings("--config", str(path.with_suffix(".yaml"))) == config


def test_a_number_may_have_an_exponent_without_a_point_and_a_date_is_a_text(tmp_path):
    """As in YAML 1.2 and JSON; YAML 1.1 takes 1e-5 for a text."""
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {network: {_target_: UNet, eps: 1e-5, both: [-2E+3, .5e1]}}\nexperiment: {name: 2024-01-15}"
    )
    config = settings("--config", str(path), "--dataset_root", "d")
    assert config.experiment.name == "2024-01-15"
    assert config.model.network == {"_target_": "UNet", **json.loads('{"eps": 1e-5, "both": [-2E+3, 0.5e1]}')}


NULL = {"label_remap", "fill_nan", "sided_pairs", "augmentation", "augment_on_device", "n_classes", "network", "ema"}
NULL |= {"n_gpus", "n_processes", "start_from", "start_classes", "weight_alpha"}


@pytest.mark.parametrize("group", GROUPS)
def test_null_is_refused_by_name_but_where_a_setting_may_be_left_open(tmp_path, group):
    """Those that may are null in the records of runs, and go on being read."""
    path = tmp_path / "training_config.json"
    record = as_mapping(settings("--dataset_root", "d"))
    for name in record[group]:
        with_null = {**record, group: {**record[group], name: None}}
        path.write_text(json.dumps(with_null))
        for read in (functools.partial(settings, "--config", str(path)), functools.partial(from_mapping, with_null)):
            if name in NULL:
                assert as_mapping(read())[group][name] is None
                continue
            with pytest.raises(ConfigError, match=rf"^{group}\.{name}: expected a value, found null; give one, or"):
                read()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "data: {dataset_root: {a: null}}",
            "data.dataset_root: expected a text, or a list of texts, found {'a': None}",
        ),
        (f"training: {{lr: 1{'0' * 400}}}", "training.lr: expected numbers below 1e308, found one of over 308 digits"),
        (f"data: {{split_shares: [80, 20, 1{'0' * 400}]}}", "data.split_shares: expected numbers below 1e308"),
        (f"training: {{lr: '1{'0' * 400}'}}", "training.lr: expected numbers below 1e308, found one of over 308"),
    ],
)
def test_a_value_that_the_parser_does_not_survive_is_named(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        settings("--config", str(path))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("data: {target_size: [064, 064, 096]}", "064"),
        ("data: {label_remap: {010: liver}}", "010"),
        ("data: {label_remap: {08: liver}}", "08"),
        ("model: {network: {_target_: UNet, act: -09}}", "-09"),
        ("data: {label_remap: {7: 0x1F}}", "0x1F"),
        ("data: {label_remap: {7:1}}", "7:1"),
        ("training: {seed: 1:30}", "1:30"),
        ("training: {lr: 1:30.5}", "1:30.5"),
        ("training: {max_epochs: 1_0}", "1_0"),
        ("training: {gradient_clip: 1_0.5}", "1_0.5"),
        ("training: {seed: -0b11}", "-0b11"),
    ],
)
def test_a_number_that_is_not_decimal_is_refused_by_line(tmp_path, text, found):
    """YAML 1.1 takes 064 for 52, and 1:30 for 90."""
    path = tmp_path / "c.yaml"
    path.write_text("# settings\n" + text)
    with pytest.raises(ConfigError, match=re.escape(f"YAML (line 2: expected a decimal number, found {found}; write")):
        settings("--dataset_root", "d", "--config", str(path))
    path.write_text("training: {lr: 0.5, warmup_epochs: 0, weight_decay: 0e0, seed: +7, gradient_clip: 10.}")
    training = settings("--dataset_root", "d", "--config", str(path)).training
    numbers = (training.lr, training.warmup_epochs, training.weight_decay, training.seed, training.gradient_clip)
    assert numbers == (0.5, 0, 0, 7, 10)


@pytest.mark.parametrize("in_one_line", [True, False])
def test_what_is_written_as_yaml_is_the_same_to_other_readers(in_one_line):
    values = {7: "liver", **dict(enumerate(TEXTS, 10)), 40: [1, 1e-5, 1e20, None, True], 41: "a\x85b"}
    text = write_yaml(values, in_one_line=in_one_line)
    assert read_yaml(text) == yaml.safe_load(text) == values
    assert in_one_line == (text.count("\n") == 1)
