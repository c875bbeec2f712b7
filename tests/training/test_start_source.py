"""What a training starts from: what a checkpoint says, and which networks are refused before any case is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet

from networks.body_net import BodyNet
from networks.errors import NetworkError
from networks.registry import network_settings
from pipeline.config.settings import Config, DataConfig, ModelConfig
from pipeline.training.start_source import read_source, refuse_other_network
from tests.support.monai_networks import LEVELS

PREPROCESSING = {
    "target_size": [16, 16, 16],
    "intensity": ["ct", "mr"],
    "window": [-200.0, 300.0],
    "keep_aspect": False,
}


def run_of(folder: Path, network: torch.nn.Module, /, **more) -> Path:
    content = {"format": 1, "state_dict": network.state_dict(), "network": network_settings(network), "run": "old"}
    content |= {"class_names": ["background", "liver"], "channel_names": ["CT", "T1"], "preprocessing": PREPROCESSING}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(content | {"epoch": 3, "val_mIoU": 0.5} | more, folder / "checkpoints" / "best_model.ckpt")
    return folder


def config_of(**model) -> Config:
    return Config(data=DataConfig(dataset_root="d", target_size=(16, 16, 16)), model=ModelConfig(**model))


@pytest.fixture
def old():
    return BodyNet(in_channels=2, n_classes=2, base_channels=4)


def test_a_run_folder_and_its_checkpoint_say_the_same_and_which_cases_were_trained_on(tmp_path, old):
    run = run_of(tmp_path / "run", old)
    config = {"data": {"split": {"train": ["b"], "val": ["c"]}}, "training": {"started_from": {"trained_on": ["a"]}}}
    (run / "training_config.json").write_text(json.dumps(config))
    for start_from in (run, run / "checkpoints" / "best_model.ckpt"):
        source = read_source(start_from)
        assert (source.name, source.score, source.trained_on) == ("old", "epoch 3, val mIoU 0.5000", {"a", "b"})
        assert (source.class_names, source.channel_names) == (("background", "liver"), ("CT", "T1"))
    # as the spec of checkpoints says: without this argument intensities were scaled to 0…1
    assert source.scaling == "unit"
    assert source.kept["data"] == {
        "mode": "resize", "target_size": [16, 16, 16], "keep_aspect": False, "window": [-200.0, 300.0],
        "mean_std": "none",
    }  # fmt: skip
    assert source.kept["model"] == {"base_channels": 4, "use_light_model": False, "network": None}


@pytest.mark.parametrize(("fill_nan", "taken"), [(-1024.0, {"fill_nan": -1024.0}), ([-1024.0, 0.0], {})])
def test_numbers_for_nan_of_channels_that_may_have_another_order_are_not_taken_over(tmp_path, old, fill_nan, taken):
    run = run_of(tmp_path / "run", old, preprocessing=PREPROCESSING | {"fill_nan": fill_nan})
    assert {name: value for name, value in read_source(run).kept["data"].items() if name == "fill_nan"} == taken


def test_of_a_monai_network_the_arguments_are_kept_that_the_data_do_not_decide(tmp_path):
    from networks.registry import build_network

    unet = build_network({"_target_": "UNet", **LEVELS}, in_channels=2, n_classes=2, target_size=(16, 16, 16))
    kept = read_source(run_of(tmp_path / "run", unet)).kept["model"]
    assert kept == {"network": {"_target_": "monai.networks.nets.UNet", **LEVELS}}


def test_the_number_of_classes_and_channels_is_no_other_network(tmp_path, old):
    source = read_source(run_of(tmp_path / "run", old))
    fitting = refuse_other_network(source, config_of(base_channels=4))
    assert set(fitting.growing.axes) == {"head.weight", "head.bias", "stem.weight"}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"base_channels": 8}, r"settings, BodyNet\(base_channels=8\), found BodyNet\(base_channels=4\); 0% of"),
        ({"base_channels": 4, "use_light_model": True}, r"BodyNet\(light=True\), found BodyNet\(light=False\)"),
        (
            {"base_channels": 4, "network": {"_target_": "BodyNet", "strides": [[2, 2, 2]] * 4}},
            r"BodyNet\(strides=.*found BodyNet\(\)",
        ),
        (
            {"network": {"_target_": "BasicUNet", "features": [4] * 6}},
            r"BasicUNet\(features.*\), found BodyNet\(base_channels=4, light",
        ),
    ],
)
def test_another_width_depth_or_class_is_refused_with_both_descriptions(tmp_path, old, model, words):
    source = read_source(run_of(tmp_path / "run", old))
    with pytest.raises(NetworkError, match=words) as refusal:
        refuse_other_network(source, config_of(**model))
    assert "\n" not in str(refusal.value)


def test_a_plain_file_may_hold_the_encoder_alone_but_must_fit(tmp_path):
    unet = UNet(spatial_dims=3, in_channels=1, out_channels=2, **LEVELS)
    weights = {f"net.{key}": value for key, value in unet.state_dict().items() if not key.startswith("model.2")}
    torch.save({"state_dict": weights}, tmp_path / "unet.pt")
    source = read_source(tmp_path / "unet.pt")
    assert source.kept == {}
    fitting = refuse_other_network(source, config_of(network={"_target_": "UNet", **LEVELS}))
    assert set(fitting.source.weights) == {key.removeprefix("net.") for key in weights}
    with pytest.raises(NetworkError, match=r"expected weights of .*UNet\(.*found 12 weights, net\.model\.0"):
        refuse_other_network(source, config_of(network={"_target_": "UNet", **LEVELS, "channels": [4, 4, 16]}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"preprocessing": {"window": [1, 0]}}, "the preprocessing of a training"),
        ({"format": 9}, "checkpoint format 9"),
        ({"channel_names": ["CT", "T1", "T2"]}, "channel_names: expected 2, one for each of the network's channels"),
        ({"preprocessing": PREPROCESSING | {"intensity": ["ct"]}}, r"preprocessing\.intensity: expected 2, .*found 1"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, old, damage, words):
    with pytest.raises(NetworkError, match=f"training.start_from: .*{words}"):
        read_source(run_of(tmp_path / "run", old, **damage))


def test_a_number_that_would_keep_a_constructor_busy_is_refused_before_it_runs(tmp_path, old):
    hostile = {"_target_": "monai.networks.nets.SwinUNETR", "depths": [5 * 10**6] * 4}
    run = run_of(tmp_path / "run", old, network=hostile | {"in_channels": 2, "out_channels": 2})
    with pytest.raises(NetworkError, match="network SwinUNETR: expected arguments up to 50,000, found depths 5000000"):
        refuse_other_network(read_source(run), config_of(network=hostile))


def test_a_run_without_weights_yet_is_refused(tmp_path):
    with pytest.raises(NetworkError, match=r"found none; a run has it after its first validation"):
        read_source(tmp_path)
