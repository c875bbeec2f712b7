"""Load the models of one or several runs for prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from networks.checkpoint import load_network, read_checkpoint
from networks.errors import NetworkError
from pipeline.runs.run_folder import RunFolder
from transforms.chains import inference_chain


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network with what its checkpoint says about it."""

    name: str
    path: Path
    network: Any  # a module with `features` and `head`
    preprocessing: dict[str, Any]
    class_names: tuple[str, ...]
    n_channels: int
    flips: tuple[int, ...] = ()
    """Axes of its grid along which its training mirrored scans."""

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device


def load_models(runs: Sequence[Path | str], device: torch.device, *, trust: bool = False) -> tuple[Model, ...]:
    """Load the networks of run folders or best_model.ckpt files; nothing else is needed of a run.

    Raises:
        NetworkError: a checkpoint that is missing, damaged or incomplete, or networks whose classes differ.
    """
    models = tuple(_load_model(Path(run), device, trust) for run in runs)
    for other in models[1:]:
        if other.class_names != models[0].class_names:
            raise NetworkError(
                f"{models[0].path} and {other.path} cannot be joined: expected equal class names, found "
                f"{_difference(models[0].class_names, other.class_names)}; predict with each alone"
            )
    return models


def checkpoint_path(run: Path | str) -> Path:
    """The best_model.ckpt that a run folder or the file itself stands for."""
    run = Path(run)
    return RunFolder.at(run).best_checkpoint if run.is_dir() else run


def _load_model(run: Path, device: torch.device, trust: bool) -> Model:
    path = checkpoint_path(run)
    checkpoint = read_checkpoint(path)
    names, preprocessing = checkpoint.get("class_names"), checkpoint.get("preprocessing")
    if not isinstance(preprocessing, dict) or not isinstance(names, list) or len(names) < 2:
        raise NetworkError(f"{path}: expected preprocessing and class_names beside the weights, found none of use")
    network = load_network(path, map_location=device, trust=trust)
    name = str(checkpoint.get("run") or path.stem)
    try:
        inference_chain(**preprocessing)
        n_channels = len(checkpoint.get("channel_names") or ["image"])
        flips = tuple(int(axis) for axis in checkpoint.get("flips") or ())
    except Exception as error:  # whatever a chain says to arguments that no training wrote
        reason = " ".join(str(error).split())[:200]
        raise NetworkError(f"{path}: expected the preprocessing of a training, found another ({reason})") from error
    return Model(name, path, network, preprocessing, tuple(map(str, names)), n_channels, flips)


def _difference(first: Sequence[str], second: Sequence[str]) -> str:
    if len(first) != len(second):
        return f"{len(first)} and {len(second)} classes"
    index = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    return f"class {index} {first[index]!r} and {second[index]!r}"
