"""Arrays of one integer type, one floating type and one memory order, which remember what they held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Given:
    """Makes arrays of one integer type, one floating type and one memory order, and remembers what they held."""

    def __init__(self, integer: str, floating: str, *, reverse: bool, folder: Path) -> None:
        self.integer, self.floating, self.reverse, self.folder = integer, floating, reverse, folder
        self.kept: list[tuple[Any, Any]] = []
        self.types: set[str] = set()  # of the two, those that were asked for

    def keep(self, values: Tensor) -> Tensor:
        if self.reverse:  # the axes from the last to the first in memory: Fortran's order
            axes = list(range(values.ndim))[::-1]
            values = values.permute(axes).contiguous().permute(axes)
        self.kept.append((values, values.clone()))
        return values

    def floats(self, *shape: int, only: str = "") -> Tensor:
        self.types |= set() if only else {self.floating}
        return self.keep(torch.rand(shape).mul(3).sub(1).to(getattr(torch, only or self.floating)))

    def labels(self, *shape: int, n_classes: int = 4, only: str = "") -> Tensor:
        self.types |= set() if only else {self.integer}
        return self.keep(torch.randint(0, n_classes, shape).to(getattr(torch, only or self.integer)))

    def array(self, *shape: int, only: str = "") -> np.ndarray:
        """Floating numbers for numpy, which has no bfloat16."""
        numbers = self.floats(*shape, only=only or ("float16" if self.floating == "bfloat16" else ""))
        self.types |= set() if only else {self.floating}
        return numbers.numpy()

    def label_array(self, *shape: int, n_classes: int = 4, only: str = "") -> np.ndarray:
        return self.labels(*shape, n_classes=n_classes, only=only).numpy()

    def as_array(self, values: Any) -> np.ndarray:
        return self.keep(torch.as_tensor(np.asarray(values))).numpy()

    def affine(self, *edges: float) -> np.ndarray:
        return self.as_array(np.diag([*(edges or (2.0, 2, 3)), 1.0]))
