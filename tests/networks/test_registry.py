"""Networks by name: the shipped configs, what is refused and why, what would fetch something."""

from __future__ import annotations

import http.server
import sys
import threading

import pytest
import torch
from torch import nn

from networks.body_net import BodyNet
from networks.checkpoint import load_network
from networks.errors import NetworkError
from networks.registry import build_network, check_network, network_settings
from pipeline.config.files import from_mapping, load_mapping
from tests.support.monai_networks import SMALL, WIDTHS, narrowed, plain
from tests.support.paths import ROOT

CONFIGS = ROOT / "configs"
SHIPPED = sorted(
    ["body_unet.yaml", "body_unet_light.yaml", *(f"networks/{p.name}" for p in CONFIGS.glob("networks/*"))]
)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_is_accepted_and_equals_its_plain_network(name):
    config = from_mapping(load_mapping(CONFIGS / name))
    spec = config.model.network
    if spec:
        spec = narrowed(spec)
    size = (64, 64, 64) if "swin" in name or "dynunet" in name else (32, 32, 32)
    light = config.model.use_light_model
    network = build_network(spec, n_classes=5, base_channels=4, light=light, target_size=size).eval()
    x = torch.rand(1, 1, *size)
    with torch.no_grad():
        features = network.features(x)
        logits = features if network.head is None else network.head(features)
        expected = plain(network)(x) if spec else network(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert (network.head is None) == (name == "networks/unet.yaml")


@pytest.mark.parametrize("name", [None, "BodyNet", "networks.body_net.BodyNet", "pasco.models.body_net.BodyNet"])
def test_without_a_name_or_by_its_name_it_is_body_net(name):
    network = build_network(name, in_channels=2, n_classes=3, base_channels=8, light=True, checkpointing=True)
    assert isinstance(network, BodyNet)
    assert network.checkpointing
    expected = {"in_channels": 2, "n_classes": 3, "base_channels": 8, "light": True}
    assert network_settings(network) == {"_target_": "networks.body_net.BodyNet", **expected}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            "SegNet",
            "unknown network monai.networks.nets.SegNet; did you mean SegResNet.* known are BodyNet, AttentionUnet",
        ),
        ("monai.networks.nowhere.SegResNet", "unknown network monai.networks.nowhere.SegResNet"),
        ("monai.networks.nets.swin_unetr", "unknown network"),  # a module, no class
        ("os.system", "classes are taken from networks, pasco, monai.networks, torch.nn only.*give --trust_config"),
        ("monai.bundle.ConfigParser", "classes are taken from"),
        ({"_target_": 3}, "_target_ is 3; expected a network's name"),
        ({}, "_target_ is None"),
        (
            {"_target_": "SegResNet", "init_filter": 16},
            "SegResNet has no argument init_filter; it takes .*init_filters",
        ),
        ({"_target_": "UNet", "channels": [4, 8]}, "UNet needs the argument strides"),
        ({"_target_": "SegResNet", "out_channels": 5}, "out_channels is 5 in model.network, but 71"),
        ({"_target_": "SegResNet", "spatial_dims": 2}, "spatial_dims is 2 in model.network, but 3"),
        ({"_target_": "BodyNet", "base_channels": 64}, "base_channels is 64 in model.network, but 32"),
        ({"_target_": "SegResNet", "act": torch.relu}, "must be plain numbers"),
        ({"_target_": "UNet", "channels": [4, 8], "strides": []}, "UNet: ValueError: the length of `strides`"),
        (
            {"_target_": "BasicUNetPlusPlus", "features": WIDTHS, "deep_supervision": True},
            "returns 4 outputs in evaluation, too; expected one .*switch deep supervision off",
        ),
        ({"_target_": "torch.nn.Conv3d", "kernel_size": 64}, "takes no volumes of .64, 64, 64. voxels"),
        (
            {**SMALL["UNETR"], "img_size": [32, 32, 32]},
            "UNETR: expected volumes of at most 32×32×32 voxels, .* found data.target_size 64×64×64; change one",
        ),
        ({"_target_": "torch.nn.Flatten"}, r"returns the shape \(1, 262144\); expected \(B, 1, I, J, K\)"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(spec, text):
    with pytest.raises(NetworkError, match=text) as caught:
        build_network(spec, target_size=(64, 64, 64))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"light": True}, {"checkpointing": True}])
def test_options_of_body_net_are_refused_for_others(option):
    with pytest.raises(NetworkError, match="is BodyNet's; switch it off, SegResNet has its own"):
        build_network("SegResNet", **option)


def test_how_a_network_is_taken_apart_is_found_out_once(tmp_path, monkeypatch):
    (tmp_path / "counted_networks.py").write_text(
        "from torch import nn\nclass Counted(nn.Sequential):\n    n_calls = 0\n"
        "    def __init__(self, in_channels, n_classes):\n"
        "        super().__init__(nn.Conv3d(in_channels, 4, 3, padding=1), nn.Conv3d(4, n_classes, 1))\n"
        "    def forward(self, x):\n        Counted.n_calls += 1\n        return super().forward(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    n_calls, x = [], torch.rand(1, 1, 16, 16, 16)
    for n_classes in (3, 3, 4):
        network = build_network("counted_networks.Counted", n_classes=n_classes, target_size=(16, 16, 16), trust=True)
        n_calls.append(sys.modules["counted_networks"].Counted.n_calls)
        assert network.features(x).shape[1] == 4
        assert network.head.out_channels == n_classes
        sys.modules["counted_networks"].Counted.n_calls = 0
    assert n_calls[1] < n_calls[0] == n_calls[2]


def test_a_package_outside_the_list_is_taken_when_trusted(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\nclass Tiny(nn.Conv3d):\n"
        "    def __init__(self, in_channels, n_classes): super().__init__(in_channels, n_classes, 3, padding=1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetworkError, match="if you trust the package own_networks"):
        build_network("own_networks.Tiny", n_classes=2)
    network = build_network("own_networks.Tiny", n_classes=2, target_size=(8, 8, 8), trust=True)
    assert network(torch.rand(1, 1, 5, 6, 7)).shape == (1, 2, 5, 6, 7)


@pytest.fixture
def server():
    """The address of a server on this machine that has nothing, and the paths that were asked of it."""
    asked = []

    class Listening(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listening) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()
        thread.join()


HOVERNET = {"_target_": "HoVerNet", "mode": "fast", "in_channels": 3, "out_classes": 2}


@pytest.mark.fault(
    "a best_model.ckpt or config whose network would download from an address that stands in it",
    "refused in one line, exit code 2; no request is sent",
)
@pytest.mark.parametrize("key", ["pretrained_url", "PRETRAINED_URL", "adapt_standard_resnet"])
def test_neither_a_checkpoint_nor_a_config_sends_a_request(server, tmp_path, monkeypatch, key):
    address, asked = server
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    spec = HOVERNET | {key: f"{address}/weights.pth"}
    path = tmp_path / "best_model.ckpt"
    torch.save({"format": 1, "state_dict": {"w": torch.zeros(10)}, "network": spec}, path)
    with pytest.raises(NetworkError, match=r"best_model\.ckpt.* would download weights or read a file|has no argument"):
        load_network(path)
    for judge in (build_network, check_network):
        with pytest.raises(NetworkError, match=r"would download weights or read a file|has no argument"):
            judge(spec, **({"in_channels": 3} if judge is build_network else {}))
    assert asked == []
    assert not (tmp_path / "hub").exists()


def test_where_it_is_trusted_a_network_asks_its_address(server, tmp_path, monkeypatch):
    address, asked = server
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(NetworkError):  # the server has nothing
        build_network(HOVERNET | {"pretrained_url": f"{address}/weights.pth"}, in_channels=3, trust=True)
    assert asked


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"_target_": "EfficientNetBN", "model_name": "efficientnet-b0"}, "pretrained"),  # by default
        ({"_target_": "MILModel"}, "pretrained"),
        ({"_target_": "ResNetFeatures", "model_name": "resnet10"}, "pretrained"),
        ({"_target_": "Transchex"}, "path_or_repo_id"),
        ({"_target_": "Densenet121", "pretrained": True}, "pretrained"),
        ({"_target_": "TorchVisionFCModel", "weights": "DEFAULT"}, "weights"),
        (
            {"_target_": "HighResNet", "layer_params": [{"name": "conv_0", "Weights_File": "/etc/passwd"}]},
            "Weights_File",
        ),
        ({"_target_": "SegResNet", "act": ["relu", {"checkpoint": "a.pt"}]}, "checkpoint"),
        ({"_target_": "SegResNet", "act": "ftp://a.pt"}, "act"),
    ],
)
def test_arguments_that_fetch_are_refused_by_name_and_default(spec, key):
    with pytest.raises(
        NetworkError, match=f"its argument {key} .* would download weights or read a file.*trust_config"
    ):
        check_network(spec)
    check_network(spec, trust=True)


def test_a_network_that_could_fetch_is_taken_where_that_is_switched_off():
    for spec in ({"_target_": "EfficientNetBN", "model_name": "efficientnet-b0", "pretrained": False}, "FlexibleUNet"):
        check_network(spec)
    check_network({"_target_": "SwinUNETR", "use_checkpoint": True, "dropout_path_rate": 0.1})


def test_a_network_from_elsewhere_does_not_know_its_settings():
    with pytest.raises(NetworkError, match="Linear does not know its settings"):
        network_settings(nn.Linear(1, 1))


def test_arguments_beside_another_path_of_body_net_count_as_in_earlier_runs():
    spec = {"_target_": "pasco.models.body_net.BodyNet", "base_channels": 4}
    assert network_settings(build_network(spec, n_classes=3, base_channels=32))["base_channels"] == 4
    with pytest.raises(NetworkError, match=r"base_channels is 4 in model\.network, but 32"):
        build_network({**spec, "_target_": "BodyNet"}, n_classes=3, base_channels=32)
    with pytest.raises(NetworkError, match=r"n_classes is 5 in model\.network, but 3"):
        build_network({**spec, "n_classes": 5}, n_classes=3)
    with pytest.raises(NetworkError, match=r"light is False in model\.network, but True"):
        build_network({**spec, "light": False}, n_classes=3, light=True)
