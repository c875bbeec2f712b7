"""best_model.ckpt: the best weights and what prediction needs to know about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from networks.checkpoint import CHECKPOINT_FORMAT
from pipeline.files.atomic import write_atomically
from pipeline.files.json_files import plain
from pipeline.planning.scan_range import ScanRange
from pipeline.training.prepared_data import Preprocessing


@dataclass(frozen=True)
class CheckpointDescription:
    """What best_model.ckpt carries beside weights and score."""

    run: str
    """Name of the run folder."""
    network: Mapping[str, Any]
    """What `networks.registry.network_settings` says: enough to build the network again."""
    preprocessing: Preprocessing
    """How an image must be prepared for the network."""
    class_names: tuple[str, ...]
    """Background first."""
    channel_names: tuple[str, ...]
    """Image channels in the network's order."""
    flips: tuple[int, ...]
    """Voxel axes that training mirrored; prediction may mirror them too."""
    sided_pairs: Sequence[Sequence[str]] | None = None
    """(left, right) class names that a mirror exchanges; None: recognised by name."""
    precision: str = ""
    """What the network computed in, as Lightning calls it: 32-true, 16-mixed or bf16-mixed; "" where it is not said."""
    scans: ScanRange | None = None
    """The scans that the network was trained on; prediction warns of others."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain containers, as the file holds them."""
        return plain(self) | {"preprocessing": self.preprocessing.arguments()}


def write_best(
    path: Path, network: torch.nn.Module, description: CheckpointDescription, *, epoch: int, val_miou: float | None
) -> None:
    """Write the weights of `network` with their description, epoch (counted from 0) and score.

    Raises FileError where the disk refuses; the old file is then untouched.
    """
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    content = {"format": CHECKPOINT_FORMAT, "state_dict": weights, "epoch": epoch, "val_mIoU": val_miou}
    write_tensors(path, description.to_dict() | content)


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain containers and tensors as a file of torch.save, whole or not at all. Raises FileError."""

    def write(file: BinaryIO) -> None:
        torch.save(content, file)

    write_atomically(path, write)
