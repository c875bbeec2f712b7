"""Networks back from best_model.ckpt: the same values; what is damaged, foreign or hostile is refused in one line."""

from __future__ import annotations

import json
import os

import pytest
import torch

from networks.body_net import BodyNet
from networks.checkpoint import load_network, read_checkpoint
from networks.errors import NetworkError
from networks.registry import build_network, network_settings
from tests.support.monai_networks import DEEP, small_segresnet


def save(path, network, /, **fields):
    checkpoint = {"format": 1, "state_dict": network.state_dict(), "network": network_settings(network), **fields}
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {"_target_": "SegResNet", "blocks_down": [1, 1], "blocks_up": [1]},
        {"_target_": "MedNeXt", "init_filters": 4, "kernel_size": 3},  # its head is transposed
        *DEEP[:2],
    ],
)
def test_a_checkpoint_brings_its_network_back(spec, tmp_path):
    network = build_network(spec, n_classes=3, base_channels=4, target_size=(16, 24, 32)).eval()
    path = save(tmp_path / "best_model.ckpt", network, preprocessing={"target_size": [16, 24, 32]})
    before = torch.get_rng_state()
    loaded = BodyNet.load_from_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(network)
    assert not loaded.training
    assert network_settings(loaded) == network_settings(network)
    assert json.loads(json.dumps(network_settings(network))) == network_settings(network)
    x = torch.rand(1, 1, 16, 24, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path):
    path = save(tmp_path / "best_model.ckpt", BodyNet(base_channels=4), preprocessing=Bomb(tmp_path / "ran"))
    with pytest.raises(NetworkError, match="could run code"):
        load_network(path)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_cannot_name_a_class_outside_the_list(tmp_path):
    path = tmp_path / "best_model.ckpt"
    torch.save({"format": 1, "state_dict": {}, "network": {"_target_": "subprocess.Popen", "args": "true"}}, path)
    with pytest.raises(NetworkError, match=r"best_model.ckpt: network subprocess.Popen: classes are taken from"):
        load_network(path)


def test_damaged_and_foreign_checkpoints_are_refused_by_name(tmp_path):
    network = BodyNet(base_channels=4)
    path = save(tmp_path / "best_model.ckpt", network)
    whole = path.read_bytes()
    damages = {
        "truncated": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("hello"),
        "a tensor": lambda: torch.save(torch.zeros(3), path),
        "no network": lambda: torch.save({"format": 1, "state_dict": {}}, path),
        "half a channel": lambda: save(path, network, network=network_settings(network) | {"in_channels": 1.5}),
        "another format": lambda: save(path, network, format=2),
        "no weights": lambda: save(path, network, state_dict={}),
        "other weights": lambda: save(path, network, state_dict=BodyNet(base_channels=8).state_dict()),
        "odd preprocessing": lambda: save(path, small_segresnet(), preprocessing={"target_size": 3}),
        "a folder": lambda: (path.unlink(), path.mkdir()),
    }
    for name, damage in damages.items():
        damage()
        with pytest.raises(NetworkError, match=r"best_model\.ckpt") as caught:
            load_network(path)
        assert "\n" not in str(caught.value), name


def test_an_absent_checkpoint_is_not_called_damaged(tmp_path):
    with pytest.raises(NetworkError, match=r"best_model\.ckpt: no such file; expected the best_model\.ckpt of a run"):
        read_checkpoint(tmp_path / "best_model.ckpt")


@pytest.mark.timeout(240)
@pytest.mark.fault("a pipe or an endless device in the place of best_model.ckpt", "refused in one line; nothing hangs")
def test_what_is_no_file_is_refused_without_reading_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "endless.ckpt").symlink_to("/dev/zero")
    for name in ("pipe.ckpt", "endless.ckpt"):
        with pytest.raises(NetworkError, match=f"{name}: expected a file, found a folder, pipe or device"):
            read_checkpoint(tmp_path / name)


NAMES = ["background", "liver", "spleen"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([*NAMES, "kidney"], "expected 3, one for each of the network's classes, found 4"),
        (NAMES[:2], "expected 3, one for each of the network's classes, found 2"),
        ([f"class {i}" for i in range(10**6)], "expected 3, .* found 1000000"),
        ("abc", "expected a list of names, found str"),
        ([*NAMES[:2], 7], "expected texts, found '7'"),
        ([*NAMES[:2], ""], "expected texts, found ''"),
        ([*NAMES[:2], "liver"], "expected every name once, found 'liver' twice"),
    ],
)
def test_class_names_are_one_text_for_each_class_of_the_network(names, found, tmp_path):
    path = save(tmp_path / "best_model.ckpt", BodyNet(n_classes=3, base_channels=4), class_names=names)
    with pytest.raises(NetworkError, match=f"best_model.ckpt: class_names: {found}"):
        read_checkpoint(path)
    save(path, BodyNet(n_classes=3, base_channels=4), class_names=NAMES)
    assert read_checkpoint(path)["class_names"] == NAMES


ODD = [torch.zeros(4, dtype=torch.complex64), torch.zeros(4).to_sparse(), torch.zeros(4, device="meta"), 3.0]


@pytest.mark.parametrize("odd", ODD)
def test_weights_are_real_numbers(odd, tmp_path):
    network = BodyNet(base_channels=4)
    path = save(tmp_path / "best_model.ckpt", network, state_dict=network.state_dict() | {"last.bias": odd})
    with pytest.raises(NetworkError, match=r"expected tensors of real numbers, found .* in 'last\.bias'"):
        load_network(path)


@pytest.mark.parametrize("shown", [lambda held, n: held[:1].expand(n), lambda held, n: held[:n]])
def test_a_file_holds_the_numbers_that_its_weights_show(shown, tmp_path):
    """A few numbers, shown again and again, would else stand for a network that no memory holds."""
    network = BodyNet(base_channels=4)
    weights = network.state_dict()
    held = torch.zeros(max(value.numel() for value in weights.values()))
    hollow = {name: shown(held, value.numel()).view(value.shape) for name, value in weights.items()}
    path = save(tmp_path / "best_model.ckpt", network, state_dict=hollow)
    with pytest.raises(NetworkError, match=rf"that the file holds, found [\d,]+, of which it holds {len(held):,};"):
        load_network(path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"head.bias": torch.zeros(3, 1)}, r"expected for .head\.bias. the shape \[3\], found \[3, 1\]; it"),
        ({"more": torch.zeros(2)}, r"expected for .more. the shape none, found \[2\]"),
    ],
)
def test_a_weight_of_another_shape_is_named(changed, words, tmp_path):
    network = BodyNet(n_classes=3, base_channels=4)
    path = save(tmp_path / "best_model.ckpt", network, state_dict=network.state_dict() | changed)
    with pytest.raises(NetworkError, match=words):
        load_network(path)


def test_a_network_that_the_weights_do_not_fit_makes_no_forward_pass(tmp_path):
    """A SwinUNETR of 12 heads and windows of 14×14×14 voxels takes 4 GB for the first attention of its trial."""
    unet = build_network({"_target_": "UNet", "channels": [4, 8], "strides": [2]}, target_size=(16, 16, 16))
    path = save(tmp_path / "best_model.ckpt", unet, state_dict=BodyNet(base_channels=4).state_dict())
    passes, words = [], r"state_dict: expected for .* the shape"
    watched = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: passes.append(1))
    with watched, pytest.raises(NetworkError, match=words):
        load_network(path)
    assert passes == []


def test_a_checkpoint_of_a_swin_unetr_is_loaded(tmp_path):
    spec = {"_target_": "SwinUNETR", "feature_size": 12, "depths": [1, 1, 1, 1]}
    network = build_network(spec, n_classes=2, target_size=(32, 32, 32))
    loaded = load_network(save(tmp_path / "best_model.ckpt", network, preprocessing={"target_size": [32, 32, 32]}))
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_more_arguments_than_any_network_has_are_refused_before_it_is_built(tmp_path):
    """A UNet of 300,000 levels took 4.6 GB for its lists before Python stopped it."""
    hostile = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    hostile |= {"channels": [1] * 300_000, "strides": [1] * 299_999}
    path = save(tmp_path / "best_model.ckpt", BodyNet(base_channels=4), network=hostile)
    with pytest.raises(NetworkError, match=r"network UNet: expected at most 1,000 values .* found 600,002"):
        load_network(path)


def test_a_number_that_would_keep_a_constructor_busy_is_refused_before_it_runs(tmp_path):
    """Lists of 5 million blocks a level took 8 GB and 23 s before their first layer."""
    hostile = {
        "_target_": "monai.networks.nets.SwinUNETR",
        "in_channels": 1,
        "out_channels": 2,
        "depths": [5 * 10**6] * 4,
    }
    path = save(tmp_path / "best_model.ckpt", BodyNet(base_channels=4), network=hostile)
    with pytest.raises(NetworkError, match="network SwinUNETR: expected arguments up to 50,000, found depths 5000000"):
        load_network(path)
