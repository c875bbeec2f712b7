"""MONAI's networks in small: specifications, and a network of ours as MONAI's own with the same weights."""

from __future__ import annotations

from typing import Any

from monai.networks import nets
from torch import nn

from networks.registry import build_network, network_settings

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
            "img_size": [16, 16, 32],
            "feature_size": 8,
            "hidden_size": 24,
            "mlp_dim": 32,
            "num_heads": 2,
        },
        "out.conv.conv",
    ),
]
DEEP = [
    {"_target_": "DynUNet", **DYN, "deep_supervision": True, "deep_supr_num": 2},
    {"_target_": "SegResNetDS", "init_filters": 8, "blocks_down": [1, 1, 1, 1], "dsdepth": 3},
    {"_target_": "MedNeXt", "init_filters": 4, "kernel_size": 3, "deep_supervision": True},
]
"""Networks that return several levels in training."""
SMALL: dict[str, Any] = {
    "BodyNet": "BodyNet",
    "SwinUNETR": {"_target_": "SwinUNETR", "feature_size": 12, "depths": [1, 1, 1, 1]},
    "VNet": "VNet",
}
"""A specification for every network that the registry knows by its short name."""
for _spec, _ in MONAI:
    SMALL.setdefault(_spec["_target_"], {key: value for key, value in _spec.items() if key != "img_size"})

NARROW = {
    "channels": [4, 8, 8, 16, 16],
    "filters": [4, 8, 8, 16, 16, 16],
    "init_filters": 8,
    "feature_size": 12,
    "blocks_down": [1, 1, 1, 1],
}
"""Arguments of a network that trains in a moment in place of those in a shipped configuration."""


def narrowed(settings: dict[str, Any]) -> dict[str, Any]:
    """The network of a shipped configuration with few channels and blocks."""
    few = {key: NARROW.get(key, value) for key, value in settings.items()}
    return few | ({"depths": [1, 1, 1, 1]} if settings["_target_"].endswith("SwinUNETR") else {})


def plain(network: nn.Module) -> nn.Module:
    """The same network as plain MONAI, with the weights of ours, strictly by name, in evaluation mode."""
    settings = network_settings(network)
    twin = getattr(nets, settings.pop("_target_").rpartition(".")[2])(**settings)
    twin.load_state_dict(network.state_dict())
    return twin.eval()


def small_segresnet(**arguments: Any) -> nn.Module:
    """A SegResNet of two levels and three classes as our registry builds it."""
    return build_network({"_target_": "SegResNet", "blocks_down": [1, 1], "blocks_up": [1], **arguments}, n_classes=3)
