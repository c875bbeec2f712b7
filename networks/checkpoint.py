"""Load a trained network from best_model.ckpt."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from networks.bounded import bounded
from networks.registry import assemble, fill_in, find_class, parse_description, refuse_fetching
from networks.split import NetworkError

CHECKPOINT_KEYS = ("state_dict", "network")


def load_network(path: str | Path, *, map_location: str | torch.device = "cpu", trust: bool = False) -> nn.Module:
    """The network in a best_model.ckpt with its weights, in evaluation mode.

    The file is read with weights_only=True: a checkpoint that would run code is refused, and one whose description asks
    for a larger network than its weights fill is refused before that network's parameters take memory.

    Args:
        path: best_model.ckpt of a run folder.
        map_location: Where the weights shall lie.
        trust: See `build_network`.

    Raises:
        NetworkError: If the file is missing, damaged, holds code, is no checkpoint of this pipeline, or names a class
            outside the allow-list, or an argument that would fetch something, and `trust` is not given.
    """
    checkpoint = read_checkpoint(path)
    try:
        class_path, arguments = parse_description(checkpoint["network"])
        network_class = find_class(class_path, trust)
        if not trust:
            refuse_fetching(network_class, class_path, arguments)
        arguments = fill_in(network_class, class_path, arguments, {})
        held = sum(math.prod(v.shape) for v in checkpoint["state_dict"].values() if isinstance(v, torch.Tensor))
        _refuse_giant(network_class, arguments, held)
        size = (checkpoint.get("preprocessing") or {}).get("target_size") or (64, 64, 64)
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced; nobody's random numbers change
            network = assemble(network_class, class_path, arguments, size, n_held=held)
        network.load_state_dict(checkpoint["state_dict"])
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error
    except Exception as error:  # whatever building or filling raises is about what stands in the file
        raise NetworkError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:500]}") from error
    return network.to(map_location).eval()


def _refuse_giant(network_class: type[nn.Module], arguments: Mapping[str, Any], held: int) -> None:
    """Raise NetworkError where the description asks for more numbers than the file holds; nothing is allocated."""
    try:
        with torch.device("meta"), bounded(held):
            described = network_class(**arguments)
    except NetworkError:
        raise
    except Exception:  # a constructor that computes with its weights cannot be sized so; the true one runs bounded
        return
    claimed = sum(math.prod(parameter.shape) for parameter in described.parameters())
    if claimed > held:
        raise NetworkError(
            f"expected weights for a network of {claimed:,} numbers, found {held:,}; it is damaged, copy it again"
        )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Everything in a best_model.ckpt, its tensors on the CPU, as ARCHITECTURE.md describes it.

    Raises:
        NetworkError: If the file is missing, damaged, holds code, or is no checkpoint of this pipeline.
    """
    try:
        _refuse_compressed(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise NetworkError(f"{path}: no such file; expected the best_model.ckpt of a run folder") from None
    except OSError as error:
        raise NetworkError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    except Exception as error:  # the safe loader raises many kinds for a damaged or hostile file
        raise NetworkError(
            f"{path}: refused, it is damaged or holds more than weights and plain values, which could run code "
            f"({' '.join(str(error).split())[:160]}); copy it again from its run"
        ) from error
    missing = [
        key for key in CHECKPOINT_KEYS if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict)
    ]
    if missing:
        raise NetworkError(
            f"{path}: no best_model.ckpt of this pipeline; it has no mapping {missing[0]}, "
            f"expected {' and '.join(CHECKPOINT_KEYS)}"
        )
    if checkpoint.get("format") != 1:
        raise NetworkError(f"{path}: checkpoint format {checkpoint.get('format')!r}; this version reads format 1")
    return checkpoint


def _refuse_compressed(path: str | Path) -> None:
    """Raise ValueError for what torch.save did not write: it compresses nothing, so a small file stays small in memory.

    torch.load would also take the unzipped format of old, whose header says how much to allocate.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("not a file of torch.save")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > Path(path).stat().st_size:
        raise ValueError(f"compressed, {unpacked} bytes when unpacked")
