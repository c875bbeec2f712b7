"""Networks by name: shipped configs and MONAI's networks against themselves unsplit; checkpoints; what is refused."""

from __future__ import annotations

import http.server
import json
import os
import resource
import threading

import pytest
import torch
from monai.networks import nets
from torch import nn

from networks.body_net import BodyNet
from networks.checkpoint import load_network
from networks.errors import NetworkError
from networks.registry import build_network, check_network, network_settings
from pipeline.config.files import from_mapping, load_mapping
from tests.support.paths import ROOT

CONFIGS = ROOT / "configs"
SHIPPED = sorted(
    ["body_unet.yaml", "body_unet_light.yaml", *(f"networks/{p.name}" for p in CONFIGS.glob("networks/*"))]
)
NARROW = {
    "channels": [4, 8, 8, 16, 16],
    "filters": [4, 8, 8, 16, 16, 16],
    "init_filters": 8,
    "feature_size": 12,
    "blocks_down": [1, 1, 1, 1],
}
LEVELS = {"channels": [4, 8, 16], "strides": [2, 2]}
DYN = {"kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "upsample_kernel_size": [2, 2, 2], "filters": [4, 8, 8, 8]}
WIDTHS = [4, 4, 8, 8, 8, 4]
HIGH_RES = [
    {"name": "conv_0", "n_features": 4, "kernel_size": 3},
    {"name": "res_1", "n_features": 4, "kernels": [3, 3], "repeat": 1},
    {"name": "conv_1", "n_features": 8, "kernel_size": 1},
    {"name": "conv_2", "kernel_size": 1},
]
# Specification, and where in MONAI's network the head was (None: it has none)
MONAI = [
    ({"_target_": "UNet", **LEVELS, "num_res_units": 2}, None),
    ({"_target_": "UNet", **LEVELS}, None),
    ({"_target_": "AttentionUnet", **LEVELS}, "model.2.conv"),
    ({"_target_": "BasicUNet", "features": WIDTHS}, "final_conv"),
    ({"_target_": "BasicUNetPlusPlus", "features": WIDTHS}, "final_conv_0_4"),
    ({"_target_": "DynUNet", **DYN}, "output_block.conv.conv"),
    ({"_target_": "DynUNet", **DYN, "res_block": True}, "output_block.conv.conv"),
    ({"_target_": "SegResNet", "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, "conv_final.2.conv"),
    ({"_target_": "SegResNetDS", "init_filters": 8, "blocks_down": [1, 1, 1]}, "up_layers.1.head"),
    ({"_target_": "MedNeXt", "init_filters": 8, "kernel_size": 3}, "out_0.conv_out"),
    ({"_target_": "HighResNet", "layer_params": HIGH_RES}, None),
    ({"_target_": "RegUNet", "num_channel_initial": 4, "depth": 2}, None),
    (
        {
            "_target_": "UNETR",
            "img_size": [32, 32, 48],
            "feature_size": 8,
            "hidden_size": 24,
            "mlp_dim": 32,
            "num_heads": 2,
        },
        "out.conv.conv",
    ),
]


def plain(network):
    """The same network as plain MONAI, with the weights of ours, strictly by name."""
    settings = network_settings(network)
    twin = getattr(nets, settings.pop("_target_").rpartition(".")[2])(**settings)
    twin.load_state_dict(network.state_dict())
    return twin.eval()


def logits_of(network, x):
    out = network(x)
    return out[0] if isinstance(out, list) else out


def save(path, network, **fields):
    checkpoint = {"format": 1, "state_dict": network.state_dict(), "network": network_settings(network), **fields}
    torch.save(checkpoint, path)
    return path


def segresnet(**arguments):
    return build_network({"_target_": "SegResNet", "blocks_down": [1, 1], "blocks_up": [1], **arguments}, n_classes=3)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_is_accepted_and_equals_its_plain_network(name):
    config = from_mapping(load_mapping(CONFIGS / name))
    spec = config.model.network
    if spec:
        spec = {key: NARROW.get(key, value) for key, value in spec.items()}
        spec |= {"depths": [1, 1, 1, 1]} if "swin" in name else {}
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


@pytest.mark.parametrize(
    ("spec", "head_name"), MONAI, ids=lambda value: value["_target_"] if value and "_target_" in value else ""
)
def test_a_split_network_equals_the_plain_one_and_keeps_its_keys(spec, head_name):
    network = build_network(spec, in_channels=2, n_classes=4, target_size=(32, 32, 48)).eval()
    x = torch.rand(1, 2, 32, 32, 48)
    with torch.no_grad():
        features, logits = network.features(x), network(x)
        torch.testing.assert_close(logits, logits_of(plain(network), x), rtol=1e-4, atol=1e-5)
    if head_name is None:
        assert network.head is None
        assert torch.equal(features, logits)
    else:
        assert network.head_name == head_name
        assert torch.equal(network.head(features), logits)
        assert network.head.kernel_size == (1, 1, 1)


def test_a_size_between_the_strides_is_padded_with_the_edge_and_cropped():
    network = build_network({"_target_": "UNet", **LEVELS}, n_classes=2, target_size=(17, 20, 31)).eval()
    x = torch.rand(1, 1, 17, 20, 31)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 0, 1, 2), mode="replicate")
    with torch.no_grad():
        assert torch.equal(network(x), plain(network)(padded)[..., 1:18, :, :31])


@pytest.mark.parametrize(("target", "divisor"), [("SegResNet", 8), ("BasicUNet", 1), ("MedNeXt", 16)])
def test_the_divisor_is_the_networks_own(target, divisor):
    arguments = {"MedNeXt": {"init_filters": 4, "kernel_size": 3}}.get(target, {})
    assert build_network({"_target_": target, **arguments}, target_size=(48, 64, 80)).divisor == divisor


def test_training_reaches_every_parameter_through_features_and_head():
    network = segresnet()
    network.head(network.features(torch.rand(1, 1, 12, 13, 14))).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.training


def test_building_leaves_the_weights_that_the_seed_gives():
    torch.manual_seed(7)
    ours = segresnet().state_dict()
    after = torch.rand(1)
    torch.manual_seed(7)
    theirs = nets.SegResNet(out_channels=3, blocks_down=[1, 1], blocks_up=[1]).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(torch.rand(1), after)


def test_inside_another_module_the_keys_keep_their_prefix():
    holder, other = nn.ModuleDict({"network": segresnet()}), nn.ModuleDict({"network": segresnet()})
    state = holder.state_dict()
    assert "network.conv_final.2.conv.weight" in state
    other.load_state_dict(state)
    x = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(other["network"](x), holder["network"](x))


def test_a_network_for_one_size_refuses_another_by_number():
    spec = {"_target_": "UNETR", "feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2}
    network = build_network(spec, n_classes=2, target_size=(32, 32, 48))
    assert network_settings(network)["img_size"] == [32, 32, 48]
    with pytest.raises(NetworkError, match=r"built for volumes of \(32, 32, 48\) voxels; found \(32, 32, 32\)"):
        network.features(torch.rand(1, 1, 32, 32, 32))


@pytest.mark.parametrize("name", [None, "BodyNet", "networks.body_net.BodyNet"])
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
        ({"_target_": "DynUNet", **DYN, "deep_supervision": True}, "DynUNet returns 2 outputs.* deep supervision"),
        ({"_target_": "BasicUNetPlusPlus", "features": WIDTHS, "deep_supervision": True}, "returns 4 outputs"),
        ({"_target_": "SegResNetDS", "init_filters": 8, "dsdepth": 2}, "returns 2 outputs.*dsdepth: 1"),
        ({"_target_": "MedNeXt", "init_filters": 4, "kernel_size": 3, "deep_supervision": True}, "returns 5 outputs"),
        ({"_target_": "torch.nn.Conv3d", "kernel_size": 64}, "takes no volumes of .64, 64, 64. voxels"),
        ({"_target_": "torch.nn.Flatten"}, r"returns the shape \(1, 262144\); expected \(B, 1, I, J, K\)"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(spec, text):
    with pytest.raises(NetworkError, match=text) as caught:
        build_network(spec, target_size=(64, 64, 64))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"light": True}, {"checkpointing": True}])
def test_options_of_body_net_are_refused_for_others(option):
    with pytest.raises(NetworkError, match="is a form of BodyNet"):
        build_network("SegResNet", **option)


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


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {"_target_": "SegResNet", "blocks_down": [1, 1], "blocks_up": [1]},
        {"_target_": "MedNeXt", "init_filters": 4, "kernel_size": 3},  # its head is transposed
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
        "another format": lambda: save(path, network, format=2),
        "no weights": lambda: save(path, network, state_dict={}),
        "other weights": lambda: save(path, network, state_dict=BodyNet(base_channels=8).state_dict()),
        "odd preprocessing": lambda: save(path, segresnet(), preprocessing={"target_size": 3}),
        "absent": path.unlink,
    }
    for name, damage in damages.items():
        damage()
        with pytest.raises(NetworkError, match=r"best_model\.ckpt") as caught:
            load_network(path)
        assert "\n" not in str(caught.value), name


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


@pytest.mark.fault(
    "a best_model.ckpt that describes a SwinUNETR of billions of numbers", "refused before their memory is touched"
)
def test_a_giant_that_cannot_be_built_on_the_meta_device_is_refused_before_it_takes_memory(tmp_path):
    path = tmp_path / "best_model.ckpt"
    spec = {"_target_": "monai.networks.nets.SwinUNETR", "in_channels": 1, "out_channels": 2, "feature_size": 24000}
    torch.save({"format": 1, "state_dict": {"w": torch.zeros(10)}, "network": spec}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkError, match=r"expected weights for a network of [\d,]+ numbers or more, found 10"):
        load_network(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_a_checkpoint_of_a_swin_unetr_is_loaded(tmp_path):
    spec = {"_target_": "SwinUNETR", "feature_size": 12, "depths": [1, 1, 1, 1]}
    network = build_network(spec, n_classes=2, target_size=(32, 32, 32))
    loaded = load_network(save(tmp_path / "best_model.ckpt", network, preprocessing={"target_size": [32, 32, 32]}))
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_a_network_from_elsewhere_does_not_know_its_settings():
    with pytest.raises(NetworkError, match="Linear does not know its settings"):
        network_settings(nn.Linear(1, 1))
