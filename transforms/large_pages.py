"""New memory for whole volumes, in large pages where the system has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def empty_like(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an uninitialised tensor of a shape, with the dtype and device of another.

    On a CPU the memory is numpy's, which asks Linux for pages of 2 MB from 4 MB on. torch's comes in pages of 4 kB,
    each fetched from the system when it is first written, which takes longer than the writing.
    """
    if tensor.device.type != "cpu":
        return tensor.new_empty(tuple(shape))
    memory = np.empty(math.prod(shape) * tensor.itemsize, np.uint8)  # bytes: numpy has no bfloat16
    return torch.from_numpy(memory).view(tensor.dtype).view(tuple(shape))
