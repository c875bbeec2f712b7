"""The document of training_config.json: a run's settings and what it found out by itself. Writes no file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from networks.registry import network_settings
from pipeline.checks.modality import IntensityChoice
from pipeline.compute.devices import Devices
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config
from pipeline.datasets.dataset import Dataset, Folds, Split
from pipeline.files.json_files import now
from pipeline.training.prepared_data import PreparedData, Preprocessing

PACKAGES = ("torch", "monai", "pytorch-lightning", "numpy", "nibabel")


@dataclass(frozen=True)
class RunRecord:
    """What a run found out by itself, beside its settings."""

    dataset: Dataset
    """The data set, without skipped cases."""
    split: Split
    """Case ids of train, val and test."""
    folds: Folds | None
    """The folds that `split` is one of; None where there is one split."""
    intensity: IntensityChoice
    """How intensities are scaled, and why."""
    preprocessing: Preprocessing
    """How cases are prepared."""
    skipped: Mapping[str, str]
    """Cases left out, and why."""
    network_settings: Mapping[str, Any]
    """Enough to build the network again."""
    n_parameters: int
    """Parameters of the network."""
    devices: Devices
    """What it was trained on."""
    class_weights: np.ndarray | None
    """(n_classes,) weights of the loss."""
    absent_classes: tuple[str, ...]
    """Classes that no training case holds."""
    started_from: Mapping[str, Any] | None = None
    """What was taken over from another run, see `start_from.Started`; None: nothing."""

    def document(self, config: Config, *, start_time: str | None = None) -> dict[str, dict[str, Any]]:
        """Return training_config.json, a valid `--config` that repeats the run.

        Args:
            config: every setting.
            start_time: when the run was first started; None: now.
        """
        document = as_mapping(config)
        document["experiment"]["start_time"] = start_time or now()
        document["data"] |= self._data_facts()
        if self.folds is not None:
            document["data"]["cross_validation"] = folds_document(self.folds, config.data.fold)
        if "ct" in self.intensity.by_channel:
            document["data"]["window"] = list(self.preprocessing.window)  # numbers where the settings say "auto"
            mean_std = self.preprocessing.mean_std
            document["data"]["mean_std"] = list(mean_std) if mean_std else "none"
        if config.data.skip_bad_cases:
            document["data"]["skipped_cases"] = dict(self.skipped)
        document["model"] |= {
            "n_classes": len(self.dataset.classes.names),
            "total_parameters": self.n_parameters,
            "network_settings": dict(self.network_settings),
            "in_channels": len(self.dataset.channel_names),
            "class_names": list(self.dataset.classes.names),
        }
        document["training"] |= self._device_facts()
        if self.started_from is not None:
            document["training"]["started_from"] = dict(self.started_from)
        weights = self.class_weights
        document["loss"]["class_weights_stats"] = None if weights is None else weight_stats(weights)
        document["loss"]["classes_that_never_occur"] = list(self.absent_classes)
        document["system"] = _system_facts()
        return document

    def _data_facts(self) -> dict[str, Any]:
        split = {name: list(cases) for name, cases in self.split.items()}
        partly: dict[str, Any] = {}
        if self.dataset.parts:
            partly["data_sets"] = [asdict(part) | {"root": str(part.root)} for part in self.dataset.parts]
        if self.dataset.is_partly_labelled:
            counts = {name: self.dataset.n_annotated(cases) for name, cases in self.split.items() if name != "test"}
            partly["annotated"] = counts
        return partly | {
            "intensity_found": self.intensity.to_document(),
            "intensity_scaling": self.preprocessing.scaling,
            "channel_names": list(self.dataset.channel_names),
            "split": {
                "source": self.split.source,
                "hash": self.split.hash,
                "sizes": {name: len(cases) for name, cases in split.items()},
                **split,
            },
        }

    def _device_facts(self) -> dict[str, Any]:
        devices = self.devices
        facts = {
            "n_gpus": devices.n_gpus,
            "n_nodes": devices.n_machines,
            "effective_precision": devices.precision,
        }
        if not devices.n_gpus and devices.per_machine > 1:
            facts["n_processes"] = devices.per_machine
        return facts


def folds_document(folds: Folds, fold: int) -> dict[str, Any]:
    """What training_config.json says of the folds of a cross-validation, of which this run trains one."""
    return {"source": folds.source, "numbers": list(folds.splits), "fold": fold, "hash": folds.hash}


def run_record(
    prepared: PreparedData,
    network: torch.nn.Module,
    devices: Devices,
    class_weights: np.ndarray | None,
    started_from: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Collect what is known about a run before its first batch."""
    return RunRecord(
        dataset=prepared.dataset,
        split=prepared.split,
        folds=prepared.folds,
        intensity=prepared.intensity,
        preprocessing=prepared.preprocessing,
        skipped=prepared.skipped,
        network_settings=network_settings(network),
        n_parameters=sum(p.numel() for p in network.parameters()),
        devices=devices,
        class_weights=class_weights,
        absent_classes=absent_classes(prepared),
        started_from=started_from,
    )


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
