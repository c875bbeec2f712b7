"""What training_config.json says of a run: its settings and what it found out by itself. Writes no file."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from networks.registry import network_settings
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config
from pipeline.files.json_files import now
from pipeline.training.prepared_data import PreparedData

PACKAGES = ("torch", "monai", "pytorch-lightning", "numpy", "nibabel")


def run_record(
    config: Config,
    prepared: PreparedData,
    weights: np.ndarray | None,
    network: torch.nn.Module,
    devices: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Build the document of training_config.json, a valid `--config` that repeats the run.

    Args:
        config: every setting.
        prepared: the data, divided.
        weights: (n_classes,) class weights of the loss, or None.
        network: what is trained.
        devices: what `devices.choose_devices` chose.

    Returns:
        The documented groups; experiment.start_time is now.
    """
    document = as_mapping(config)
    document["experiment"]["start_time"] = now()
    document["data"] |= _data_facts(prepared, may_skip=config.data.skip_bad_cases)
    document["model"] |= {
        "n_classes": prepared.n_classes,
        "total_parameters": sum(p.numel() for p in network.parameters()),
        "network_settings": network_settings(network),
        "in_channels": prepared.in_channels,
        "class_names": list(prepared.dataset.classes.names),
    }
    document["training"] |= {
        "n_gpus": devices["devices"] if devices["accelerator"] == "gpu" else 0,
        "n_nodes": devices["num_nodes"],
        "effective_precision": devices["precision"],
    }
    if devices["accelerator"] == "cpu" and devices["devices"] > 1:
        document["training"]["n_processes"] = devices["devices"]
    document["loss"]["class_weights_stats"] = None if weights is None else weight_stats(weights)
    if weights is not None:
        document["loss"]["classes_that_never_occur"] = classes_that_never_occur(prepared)
    document["system"] = _system_facts()
    return document


def _data_facts(prepared: PreparedData, *, may_skip: bool) -> dict[str, Any]:
    return {
        "intensity_found": prepared.intensity_found,
        "channel_names": list(prepared.dataset.channel_names),
        **({"skipped_cases": dict(prepared.skipped)} if may_skip else {}),
        "split": {
            "source": prepared.split.source,
            "hash": prepared.split.hash,
            "sizes": {name: len(cases) for name, cases in prepared.split.items()},
            **{name: list(cases) for name, cases in prepared.split.items()},
        },
    }


def _system_facts() -> dict[str, Any]:
    return {
        "pytorch_version": torch.__version__,
        "cuda_available": torch.cuda.is_available(),
        "cuda_version": torch.version.cuda,
        "python_version": sys.version.split()[0],
        "packages": {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
    }


def weight_stats(weights: np.ndarray) -> dict[str, float]:
    """Smallest, largest, mean and standard deviation over the classes that occur (the others weigh 0)."""
    used = weights[weights > 0]
    return {"min": float(used.min()), "max": float(used.max()), "mean": float(used.mean()), "std": float(used.std())}


def classes_that_never_occur(prepared: PreparedData) -> list[str]:
    """Names of the classes that no training case holds."""
    voxels = prepared.class_voxels().sum(axis=0)
    return [name for name, count in zip(prepared.dataset.classes.names, voxels, strict=True) if count == 0]
