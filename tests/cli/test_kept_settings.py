"""What a training takes over beneath its config files and flags from the run that it starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from networks.body_net import BodyNet
from networks.errors import NetworkError
from networks.registry import network_settings
from pipeline.config.settings import ConfigError
from tests.support.settings import settings

STRIDES = [[2, 2, 2], [2, 2, 1]]
PREPROCESSING = {
    "target_size": [16, 16, 24], "spacing_mm": [2.0, 2.0, 3.0], "intensity": "ct", "window": [-200.0, 300.0],
    "mean_std": [40.0, 90.0], "percentiles": [0.5, 99.5], "scaling": "centred", "keep_aspect": False,
}  # fmt: skip


def checkpoint(path: Path, **preprocessing) -> str:
    network = BodyNet(n_classes=2, base_channels=4, strides=STRIDES)
    content = {
        "format": 1, "state_dict": network.state_dict(), "network": network_settings(network), "run": "old",
        "class_names": ["background", "liver"], "channel_names": ["CT"], "preprocessing": PREPROCESSING | preprocessing,
    }  # fmt: skip
    torch.save(content, path)
    return str(path)


@pytest.fixture
def old(tmp_path):
    return checkpoint(tmp_path / "best_model.ckpt")


def started(old, *flags):
    return settings("--dataset_root", "d", "--training.start_from", old, *flags)


def test_network_and_preprocessing_are_those_of_the_old_run(old):
    config = started(old)
    data = config.data
    assert (data.mode, data.target_size, data.spacing_mm) == ("patch", (16, 16, 24), (2.0, 2.0, 3.0))
    assert (data.window, data.mean_std, data.intensity) == ((-200.0, 300.0), (40.0, 90.0), "auto")
    assert (config.model.base_channels, config.model.network["strides"]) == (4, STRIDES)
    assert config.training.lr == settings("--dataset_root", "d").training.lr


def test_flags_and_config_files_win_over_what_is_kept_also_where_they_say_the_default(old, tmp_path):
    (tmp_path / "c.yaml").write_text("data: {target_size: [24, 24, 24]}\n")
    config = started(old, "--config", str(tmp_path / "c.yaml"), "--data.window", "auto", "--data.mean_std", "none")
    assert (config.data.target_size, config.data.window, config.data.mean_std) == ((24, 24, 24), "auto", "none")
    assert config.data.spacing_mm == (2.0, 2.0, 3.0)
    resized = started(old, "--data.mode", "resize")
    assert (resized.data.mode, resized.data.spacing_mm, resized.data.target_size) == ("resize", (), (160, 160, 256))
    assert resized.data.window == (-200.0, 300.0)
    assert (started(old, "--data.intensity", "mr").data.window, resized.data.mean_std) == ("auto", (40.0, 90.0))


def test_a_network_that_is_given_stands_alone(old):
    config = started(old, "--model.network._target_", "monai.networks.nets.BasicUNet")
    assert (config.model.network, config.model.base_channels) == ({"_target_": "monai.networks.nets.BasicUNet"}, 32)


def test_a_run_that_resized_whole_volumes_keeps_size_and_proportion(tmp_path):
    whole = checkpoint(tmp_path / "a.ckpt", spacing_mm=None, keep_aspect=True, intensity="mr", percentiles=[1.0, 99.0])
    data = started(whole).data
    assert (data.mode, data.target_size, data.keep_aspect) == ("resize", (16, 16, 24), True)
    assert (data.percentiles, data.window) == ((1.0, 99.0), "auto")


def test_a_plain_file_keeps_nothing(tmp_path):
    torch.save(BodyNet(n_classes=2, base_channels=4).state_dict(), tmp_path / "a.pt")
    assert started(str(tmp_path / "a.pt")).model == settings("--dataset_root", "d").model


def test_what_is_started_from_must_be_there_unless_the_run_that_is_resumed_knows_it(tmp_path, old):
    from jsonargparse import ArgumentParser

    from pipeline.cli.setting_flags import add_settings, parse

    def resumed(*flags):
        parser = ArgumentParser(prog="test", allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--config")
        add_settings(parser)
        where = ("--dataset_root", "d", "--exp_name", "b", "--log_dir", str(tmp_path), "--training.start_from", "gone")
        return parse(parser, (*where, *flags), resume=True)[0]

    with pytest.raises(NetworkError, match=r"training\.start_from: gone: no such file"):
        started("gone")
    with pytest.raises(NetworkError, match="gone"):
        resumed()
    kept = {"data": {"target_size": [16, 16, 24], "mean_std": "none"}, "model": {"base_channels": 4}}
    for name, start_from in (("b_bs2_lr0.0001_ch4", "gone"), ("b_bs2_lr0.0001_ch8", "other")):
        groups = {"training": {"start_from": start_from, "started_from": {"kept": kept}}}
        document = {key: {} for key in ("experiment", "data", "model", "loss", "system")} | groups
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_config.json").write_text(json.dumps(document))
    config = resumed()
    assert (config.data.target_size, config.model.base_channels) == ((16, 16, 24), 4)
    with pytest.raises(NetworkError, match="gone"):  # another folder's name
        resumed("--lr", "1")


def test_options_of_a_start_need_one(old):
    for flags in (["--training.freeze_epochs", "1"], ["--training.taken_lr_factor", "0.1"]):
        with pytest.raises(ConfigError, match=r"add --training\.start_from RUN"):
            settings("--dataset_root", "d", *flags)
    with pytest.raises(ConfigError, match=r"training\.start_classes: expected a class name for a class name"):
        started(old, "--training.start_classes", "{1: liver}")
