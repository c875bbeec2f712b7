"""The document of training_config.json: a run's settings and what it found out by itself. Writes no file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from networks.registry import network_settings
from pipeline.checks.findings import findings_document
from pipeline.compute.devices import Devices
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config
from pipeline.datasets.dataset import Folds
from pipeline.files.json_files import now, plain
from pipeline.training.prepared_data import PreparedData

PACKAGES = ("torch", "monai", "pytorch-lightning", "numpy", "nibabel")


_NUMBERS_DEPEND_ON = {"max_epochs": 0, "n_gpus": 0, "n_nodes": 1, "n_processes": 1}
"""Of the settings that may change when a run is resumed: those with other learning rates or batches, and what they are
where training_config.json has none."""


def run_document(
    config: Config,
    prepared: PreparedData,
    network: torch.nn.Module,
    devices: Devices,
    class_weights: np.ndarray | None = None,
    started_from: Mapping[str, Any] | None = None,
    *,
    before: Mapping[str, Mapping[str, Any]] | None = None,
    epoch: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return training_config.json, a valid `--config` that repeats the run, from what is known before its first batch.

    Of a run that was resumed with other max_epochs or processes it repeats the last ones throughout, see `_parts`.

    Args:
        config: every setting.
        prepared: the data, as checked, divided and prepared.
        network: as built by `networks.registry.build_network`.
        devices: what it is trained on.
        class_weights: (n_classes,) weights of the loss.
        started_from: what was taken over from another run, see `start_from.Started`; None: nothing.
        before: training_config.json as it is, where the run is resumed.
        epoch: the first one that is trained now.
    """
    document = as_mapping(config)
    classes = prepared.dataset.classes.names
    document["experiment"]["start_time"] = (before and before["experiment"].get("start_time")) or now()
    document["data"] |= _data_facts(prepared)
    if prepared.folds is not None:
        document["data"]["cross_validation"] = folds_document(prepared.folds, config.data.fold)
    if "ct" in prepared.intensity.by_channel:
        document["data"]["window"] = list(prepared.preprocessing.window)  # numbers where the settings say "auto"
        mean_std = prepared.preprocessing.mean_std
        document["data"]["mean_std"] = list(mean_std) if mean_std else "none"
    if config.data.skip_bad_cases:
        document["data"]["skipped_cases"] = dict(prepared.skipped)
    document["model"] |= {
        "n_classes": len(classes),
        "total_parameters": sum(p.numel() for p in network.parameters()),
        "network_settings": network_settings(network),
        "in_channels": len(prepared.dataset.channel_names),
        "class_names": list(classes),
    }
    document["training"] |= _device_facts(devices)
    if started_from is not None:
        document["training"]["started_from"] = dict(started_from)
    if before and (parts := _parts(before["training"], document["training"], epoch)):
        document["training"]["resumed"] = parts
    document["loss"]["class_weights_stats"] = None if class_weights is None else weight_stats(class_weights)
    document["loss"]["classes_that_never_occur"] = list(absent_classes(prepared))
    document["system"] = _system_facts()
    return document


def _parts(before: Mapping[str, Any], now: Mapping[str, Any], epoch: int) -> list[dict[str, Any]]:
    """From which epoch on a resumed run was trained with which of `_NUMBERS_DEPEND_ON`; [] where none ever changed."""
    then, today = (
        {key: group.get(key) or default for key, default in _NUMBERS_DEPEND_ON.items()} for group in (before, now)
    )
    parts = [part for part in before.get("resumed", [{"epoch": 0} | then]) if part["epoch"] < epoch]
    if not parts or parts[-1] | today != parts[-1]:
        parts.append({"epoch": epoch} | today)
    return parts if len(parts) > 1 else []


def _data_facts(prepared: PreparedData) -> dict[str, Any]:
    dataset, split = prepared.dataset, prepared.split
    ids = {name: list(cases) for name, cases in split.items()}
    facts: dict[str, Any] = {}
    if dataset.parts:
        facts["data_sets"] = [asdict(part) | {"root": str(part.root)} for part in dataset.parts]
    if prepared.augmented_on_device is not None:
        facts["augmented_on_device"] = prepared.augmented_on_device
    if dataset.is_partly_labelled:
        facts["annotated"] = {name: dataset.n_annotated(cases) for name, cases in split.items() if name != "test"}
    sizes = {name: len(cases) for name, cases in ids.items()}
    return facts | {
        "intensity_found": prepared.intensity.to_document(),
        "intensity_scaling": prepared.preprocessing.scaling,
        "channel_names": list(dataset.channel_names),
        "check": _check_facts(prepared),
        "split": {"source": split.source, "hash": split.hash, "sizes": sizes, **ids},
    }


def _check_facts(prepared: PreparedData) -> dict[str, Any]:
    """The data in numbers, and what was unusual about them, for a person who asks later what was trained on."""
    found = plain(prepared.fingerprint)
    of_class = ("name", "n_cases", "n_train", "n_val", "median_ml")
    return {
        "n_subjects": found["n_subjects"],
        "layout": found["layout"],
        "size_voxels": found["sizes"],
        "spacing_mm": found["spacings_mm"],
        **{name: found[name] for name in ("orientations", "formats", "dtypes")},
        "classes": [{name: one[name] for name in of_class} for one in found["classes"]],
        "findings": findings_document(prepared.findings),
    }


def _device_facts(devices: Devices) -> dict[str, Any]:
    facts = {"n_gpus": devices.n_gpus, "n_nodes": devices.n_machines, "effective_precision": devices.precision}
    if not devices.n_gpus and devices.per_machine > 1:
        facts["n_processes"] = devices.per_machine
    return facts


def folds_document(folds: Folds, fold: int) -> dict[str, Any]:
    """What training_config.json says of the folds of a cross-validation, of which this run trains one."""
    return {"source": folds.source, "numbers": list(folds.splits), "fold": fold, "hash": folds.hash}


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


def absent_classes(prepared: PreparedData) -> tuple[str, ...]:
    """Names of the classes that no training case holds at the target size."""
    voxels = prepared.class_voxels.sum(axis=0)
    return tuple(name for name, count in zip(prepared.dataset.classes.names, voxels, strict=True) if count == 0)
