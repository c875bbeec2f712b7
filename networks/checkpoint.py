"""Load a trained network from best_model.ckpt."""

from __future__ import annotations

import math
import stat
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from networks.errors import NetworkError
from networks.parameter_limit import MOST_MODULES, limit_parameters
from networks.registry import (
    N_CLASSES,
    Specification,
    call_constructor,
    complete_arguments,
    for_size,
    leaves,
    read_specification,
    take_apart,
)

CHECKPOINT_FORMAT = 1
"""Version of best_model.ckpt."""
CHECKPOINT_KEYS = ("state_dict", "network")
MOST_VALUES = 1000
"""Numbers and words in a network's arguments; a DynUNet of six levels has 80."""
SMALL_SIZE = (64, 64, 64)
"""Voxels of the volumes that a network is built for where its checkpoint names no size."""


def load_network(path: str | Path, *, map_location: str | torch.device = "cpu", trust: bool = False) -> nn.Module:
    """Return the network in a best_model.ckpt with its weights, in evaluation mode.

    The file is read with weights_only=True: a checkpoint that would run code is refused, and one whose description asks
    for a larger network than its weights fill is refused before that network's parameters take memory.

    Args:
        path: best_model.ckpt of a run folder.
        map_location: Device of the weights.
        trust: See `build_network`.

    Raises:
        NetworkError: If the file is missing, damaged, holds code, is not one of this pipeline, or names a class
            outside the allow-list, or an argument that would fetch something, and `trust` is not given.
    """
    return network_of(read_checkpoint(path), path, map_location=map_location, trust=trust)


def network_of(
    checkpoint: Mapping[str, Any],
    path: str | Path,
    *,
    map_location: str | torch.device = "cpu",
    trust: bool = False,
) -> nn.Module:
    """Return what `load_network` returns, from what `read_checkpoint` has read from `path`. Raises NetworkError."""
    weights = checkpoint["state_dict"]
    try:
        specification = complete_arguments(read_specification(checkpoint["network"], trust=trust), known={})
        if not trust:
            refuse_large_arguments(specification)
        n_weights = sum(math.prod(value.shape) for value in weights.values())
        _refuse_giant(specification, n_weights)
        size = (checkpoint.get("preprocessing") or {}).get("target_size") or SMALL_SIZE
        specification = for_size(specification, size)
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced; nobody's random numbers change
            network = call_constructor(specification, n_weights)
            _refuse_other_weights(network, weights)  # a wide network's first forward pass takes its memory
            network = take_apart(network, specification, size, is_trusted=trust)
        network.load_state_dict(weights)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error
    except Exception as error:  # whatever building or loading raises is about what the file holds
        raise NetworkError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:500]}") from error
    return network.to(map_location).eval()


def _refuse_other_weights(network: nn.Module, weights: Mapping[str, Any]) -> None:
    """Raise NetworkError for the first weight that is not the network's by name and shape."""
    own, held = ({name: list(value.shape) for name, value in each.items()} for each in (network.state_dict(), weights))
    for name in {**own, **held}:
        expected, found = own.get(name, "none"), held.get(name, "none")
        if expected != found:
            raise NetworkError(
                f"state_dict: expected for {str(name)[:80]!r} the shape {expected}, found {found}; it is damaged, "
                "copy it again from its run"
            )


def refuse_large_arguments(specification: Specification) -> None:
    """Raise NetworkError for arguments that could make a constructor loop or fill memory before it has a layer."""
    values = list(leaves(specification.arguments))
    if len(values) > MOST_VALUES:
        raise NetworkError(
            f"network {specification.name}: expected at most {MOST_VALUES:,} values in its arguments, found "
            f"{len(values):,}; the file is damaged, copy it again"
        )
    for key, value in values:
        if isinstance(value, int) and abs(value) > MOST_MODULES:
            raise NetworkError(
                f"network {specification.name}: expected arguments up to {MOST_MODULES:,}, found {key} {value}; the "
                "file is damaged, copy it again"
            )


def _refuse_giant(specification: Specification, n_weights: int) -> None:
    """Raise NetworkError where the network has more numbers than the file's weights; nothing is allocated."""
    try:
        with torch.device("meta"), limit_parameters(n_weights):
            described = specification.network_class(**specification.arguments)
    except NetworkError:
        raise
    except Exception:  # a constructor that computes with its weights fails here; it runs with the limit later
        return
    n_described = sum(math.prod(parameter.shape) for parameter in described.parameters())
    if n_described > n_weights:
        raise NetworkError(
            f"expected weights for a network of {n_described:,} numbers, found {n_weights:,}; "
            "it is damaged, copy it again"
        )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return everything in a best_model.ckpt, its tensors on the CPU.

    Raises:
        NetworkError: If the file is missing or not a regular file, is damaged, holds code, or is not one of this
            pipeline: without weights and the network's description, with weights that are not real numbers, or with
            class names that are not one text for each of the network's classes.
    """
    return checked_checkpoint(load_safely(path), path)


def load_safely(path: str | Path, remedy: str = "copy it again from its run") -> Any:
    """Return what a file of torch.save holds, its tensors on the CPU; nothing in it is run.

    Args:
        path: The file.
        remedy: What to do where it is refused.

    Raises:
        NetworkError: If the file is missing or not a regular file, is damaged, or holds code.
    """
    try:
        _refuse_foreign(Path(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except NetworkError:
        raise
    except FileNotFoundError:
        raise NetworkError(
            f"{path}: no such file; expected the best_model.ckpt of a run folder, which a training writes after its "
            "first validation"
        ) from None
    except OSError as error:
        raise NetworkError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    except Exception as error:  # the safe loader raises many kinds for a damaged or hostile file
        raise NetworkError(
            f"{path}: refused, it is damaged or holds more than weights and plain values, which could run code "
            f"({' '.join(str(error).split())[:160]}); {remedy}"
        ) from error


def checked_checkpoint(checkpoint: Any, path: str | Path) -> dict[str, Any]:
    """Return what `read_checkpoint` returns, from what `load_safely` has read from `path`. Raises NetworkError."""
    missing = [
        key for key in CHECKPOINT_KEYS if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict)
    ]
    if missing:
        raise NetworkError(
            f"{path}: no best_model.ckpt of this pipeline; it has no mapping {missing[0]}, "
            f"expected {' and '.join(CHECKPOINT_KEYS)}"
        )
    if checkpoint.get("format") != CHECKPOINT_FORMAT:
        found = f"checkpoint format {checkpoint.get('format')!r}"
        raise NetworkError(f"{path}: {found}; this version reads format {CHECKPOINT_FORMAT}")
    problem = problem_of_weights(checkpoint["state_dict"]) or _problem_of_class_names(checkpoint)
    if problem:
        raise NetworkError(f"{path}: {problem}; it is damaged, copy it again from its run")
    if isinstance(checkpoint.get("preprocessing"), dict):
        # Runs from before this argument scaled to 0…1; the chain's own default is another.
        checkpoint["preprocessing"].setdefault("scaling", "unit")
    return checkpoint


def _refuse_foreign(path: Path) -> None:
    """Raise NetworkError for what is not a regular file, ValueError for a file that torch.save did not write.

    A pipe or a device would be read for ever. torch.save compresses nothing, so that a small file stays small in
    memory; torch.load would also take the unzipped format of old, whose header says how much to allocate.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise NetworkError(f"{path}: expected a file, found a folder, pipe or device; give a best_model.ckpt")
    if not zipfile.is_zipfile(path):
        raise ValueError("not a file of torch.save")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > status.st_size:
        raise ValueError(f"compressed, {unpacked} bytes when unpacked")


def problem_of_weights(weights: Mapping[str, Any]) -> str:
    """Return what is wrong with a state_dict: of a complex weight torch would drop the imaginary half, and one number
    that a tensor shows a billion times would pass for as many."""
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor) or value.is_complex() or value.layout != torch.strided or value.is_meta:
            is_tensor = isinstance(value, torch.Tensor)
            found = f"{value.device} {value.layout} {value.dtype}" if is_tensor else type(value).__name__
            return f"state_dict: expected tensors of real numbers, found {found} in {str(name)[:80]!r}"
    storages = [(value.untyped_storage(), value.element_size()) for value in weights.values()]
    n_held = sum({storage.data_ptr(): storage.nbytes() // size for storage, size in storages}.values())
    n_numbers = sum(value.numel() for value in weights.values())
    if n_numbers > 8 * n_held:  # weights may be shared, as of a network that a model, its loss and its metrics hold
        return f"state_dict: expected numbers that the file holds, found {n_numbers:,}, of which it holds {n_held:,}"
    return ""


def _problem_of_class_names(checkpoint: Mapping[str, Any]) -> str:
    """Return what is wrong with the class names, where there are some, for the network that is described."""
    names = checkpoint.get("class_names")
    if names is None:
        return ""
    if not isinstance(names, list | tuple):
        return f"class_names: expected a list of names, found {type(names).__name__}"
    n_classes = next((checkpoint["network"][key] for key in N_CLASSES if key in checkpoint["network"]), len(names))
    if len(names) != n_classes:
        return f"class_names: expected {n_classes}, one for each of the network's classes, found {len(names)}"
    odd = next((name for name in names if not isinstance(name, str) or not name), None)
    if odd is not None:
        return f"class_names: expected texts, found {str(odd)[:80]!r}"
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    return "" if twice is None else f"class_names: expected every name once, found {twice[:80]!r} twice"
