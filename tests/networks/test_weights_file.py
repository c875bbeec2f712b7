"""Files of weights: ours, plain ones, and those that are refused with their reason."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

from networks.body_net import BodyNet
from networks.errors import NetworkError
from networks.registry import network_settings
from networks.weights_file import read_weights


@pytest.fixture
def weights():
    return nn.Conv3d(1, 2, 1).state_dict()


@pytest.mark.parametrize("holder", [None, "state_dict", "model_state_dict", "model"])
def test_a_state_dict_is_found_by_itself_and_where_programs_put_it(tmp_path, weights, holder):
    torch.save(weights if holder is None else {"epoch": 3, holder: weights}, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert found.checkpoint is None
    assert found.weights.keys() == weights.keys()
    assert all(torch.equal(found.weights[key], weights[key]) for key in weights)


def test_weights_that_a_file_holds_under_several_names_are_read(tmp_path):
    network = nn.Conv3d(1, 4, 3)
    model = nn.ModuleDict({name: nn.ModuleDict({"net": network}) for name in ("model", "loss", "metric")})
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert list(read_weights(tmp_path / "a.pt").weights) == list(model.state_dict())


def test_a_checkpoint_of_ours_comes_with_its_description(tmp_path):
    network = BodyNet(base_channels=2, n_classes=2)
    checkpoint = {"format": 1, "state_dict": network.state_dict(), "network": network_settings(network)}
    torch.save(checkpoint, tmp_path / "best_model.ckpt")
    assert read_weights(tmp_path / "best_model.ckpt").checkpoint["network"] == network_settings(network)


class Logging:
    """Any class of a program's own, which a safe loader does not build."""


@pytest.mark.parametrize(
    "content",
    [
        {"network_weights": {}, "trainer_name": "nnUNetTrainer", "logging": np.float64(1), "init_args": Logging()},
        {"network_weights": {}, "trainer_name": "nnUNetTrainer"},
    ],
)
def test_a_checkpoint_of_nnunet_is_refused_by_name_also_where_it_holds_objects(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint_final.pth")
    with pytest.raises(NetworkError, match=r"a checkpoint of nnU-Net.*plans\.json"):
        read_weights(tmp_path / "checkpoint_final.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {"a": torch.zeros(1)}, "hyper": Logging()}, "could run code.*save the weights alone"),
        ({"optimizer": {}, "epoch": 3}, "expected a state_dict.*found optimizer, epoch"),
        (3, "found int"),
        ({"a": torch.tensor([1.0, float("nan")])}, "found NaN or infinity in 'a'"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "real numbers, found .*complex64"),
    ],
)
def test_what_holds_no_weights_or_more_than_weights_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(NetworkError, match=words):
        read_weights(tmp_path / "a.pt")


@pytest.mark.timeout(240)
@pytest.mark.fault(
    "a pipe or an endless device in the place of the weights that a training starts from",
    "refused in one line; nothing hangs",
)
def test_what_is_no_file_is_refused_without_reading_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "endless.pt").symlink_to("/dev/zero")
    for name in ("pipe.pt", "endless.pt"):
        with pytest.raises(NetworkError, match=f"{name}: expected a file, found a folder, pipe or device"):
            read_weights(tmp_path / name)


def test_what_torch_did_not_write_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"weights")
    for path in (tmp_path / "a.pt", tmp_path / "missing.pt", tmp_path):
        with pytest.raises(NetworkError, match=str(path)):
            read_weights(path)
