"""Read the weights in a file: a best_model.ckpt, or a plain state_dict as MONAI and PyTorch programs save it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from networks.checkpoint import CHECKPOINT_KEYS, checked_checkpoint, load_safely, problem_of_weights
from networks.errors import NetworkError

HOLDERS = ("state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Where programs put a state_dict in what they save."""
NNUNET_KEY = "network_weights"
"""Where nnU-Net puts it (nnUNetTrainer.save_checkpoint)."""
LARGEST_PICKLE = 64 * 2**20
"""Bytes of a file's table of contents that are searched for nnU-Net's keys."""


class WeightsFile(NamedTuple):
    """What a file of weights holds."""

    weights: dict[str, Tensor]
    """By the names in the file."""
    checkpoint: Mapping[str, Any] | None
    """All of a best_model.ckpt; None for a plain file, which says nothing about its network."""


def read_weights(path: Path) -> WeightsFile:
    """Read a best_model.ckpt or a plain state_dict, with weights_only=True: nothing in the file is run.

    Raises:
        NetworkError: If there is no such file, it is damaged, would run code, was written by nnU-Net, or holds no
            weights, or some that are no numbers.
    """
    remedy = "save the weights alone, torch.save(network.state_dict(), FILE)"
    try:
        content = load_safely(path, remedy)
    except NetworkError:
        if path.is_file() and _is_of_nnunet(path):  # opening a pipe would wait for its other end
            raise _nnunet_error(path) from None
        raise
    if isinstance(content, dict) and NNUNET_KEY in content:
        raise _nnunet_error(path)
    if isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in CHECKPOINT_KEYS):
        checkpoint = checked_checkpoint(content, path)
        weights = checkpoint["state_dict"]
    else:
        checkpoint, weights = None, _plain_weights(content, path)
    problem = problem_of_weights(weights) or _undefined(weights)
    if problem:
        raise NetworkError(f"{path}: {problem}; {remedy}")
    return WeightsFile(dict(weights), checkpoint)


def _plain_weights(content: Any, path: Path) -> dict[str, Any]:
    found = content if isinstance(content, dict) else {}
    candidates = [found, *(found[key] for key in HOLDERS if isinstance(found.get(key), dict))]
    for candidate in candidates:
        if candidate and all(isinstance(value, Tensor) for value in candidate.values()):
            return {str(name): value for name, value in candidate.items()}
    keys = ", ".join(str(key)[:40] for key in list(found)[:6]) or type(content).__name__
    raise NetworkError(
        f"{path}: expected a state_dict, by itself or under {', '.join(HOLDERS[:3])}, found {keys}; "
        "save the weights alone, torch.save(network.state_dict(), FILE)"
    )


def _undefined(weights: Mapping[str, Tensor]) -> str:
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"expected weights that are numbers, found NaN or infinity in {name[:80]!r}"
    return ""


def _is_of_nnunet(path: Path) -> bool:
    """Whether a file that was refused has the keys of nnU-Net's checkpoints, which hold pickled objects beside them."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
            with archive.open(entry) as file:
                pickled = file.read(LARGEST_PICKLE)
    except (OSError, zipfile.BadZipFile, StopIteration, NotImplementedError, RuntimeError):
        return False
    return NNUNET_KEY.encode() in pickled and b"trainer_name" in pickled


def _nnunet_error(path: Path) -> NetworkError:
    return NetworkError(
        f"{path}: a checkpoint of nnU-Net, which cannot be started from: its network (dynamic_network_architectures) "
        "and its preprocessing (plans.json) are nnU-Net's own; convert nothing, train on its data set, which is read "
        "as it is, or compare its predictions by bodyseg evaluate --predictions"
    )
