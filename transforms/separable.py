"""Linear filters along one voxel axis as matrices: resampling kernels, Gaussian blur, and how to apply them.

Everything separable in the chains (image and label resizing, blur, simulated low resolution) is one small matrix an
axis. A matrix row holds the weights of one output voxel; rows are banded, and `apply_along` multiplies only inside the
band.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

ROWS_PER_BLOCK = 32
"""Output voxels multiplied at once: enough for a matrix product at full speed, few enough to stay in the band."""


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution with a = −0.5 (IEEE ASSP 29(6), 1981), the value that reproduces parabolas."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


KERNELS = {"linear": _triangle, "cubic": _cubic}


def kernel_matrix(
    n_in: int, n_out: int, scale: float | int, offset: float | int, *, kernel: str = "linear", antialias: bool = True
) -> Float[Tensor, "{n_out} {n_in}"]:
    """Weights that sample an axis of `n_in` voxels at the indices `scale · o + offset`, o = 0 … n_out − 1.

    `antialias` widens the kernel by `scale` where voxels get larger (scale > 1), as Pillow and torch's
    `interpolate(antialias=True)` do; without it this is plain interpolation. Weights that fall off the axis are left
    out and the rest rescaled to sum 1, which for linear interpolation is the repeated border voxel. A centre that lies
    outside the field of view (half a voxel beyond the outermost centres) gives a row of zeros.

    >>> kernel_matrix(4, 2, scale=2, offset=0.5, antialias=False)  # the means of two voxels
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    centre = scale * torch.arange(n_out, dtype=torch.float64) + offset
    distance = (torch.arange(n_in, dtype=torch.float64) - centre[:, None]).abs()
    weights = KERNELS[kernel](distance / (max(1.0, scale) if antialias else 1.0))
    inside = (centre > -0.5 - 1e-9) & (centre < n_in - 0.5 + 1e-9)
    weights = torch.where(inside[:, None], weights / weights.sum(1, keepdim=True), torch.zeros_like(weights))
    return weights.float()


def gaussian_matrix(n: int, sigma: float | int) -> Float[Tensor, "{n} {n}"]:
    """Gaussian blur of an axis of `n` voxels; `sigma` in voxels, cut at 4 sigma, borders rescaled to sum 1."""
    index = torch.arange(n, dtype=torch.float64)
    distance = (index - index[:, None]).abs()
    weights = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance <= max(1.0, 4 * sigma))
    return (weights / weights.sum(1, keepdim=True)).float()


def low_resolution_matrix(n: int, factor: float | int) -> Float[Tensor, "{n} {n}"]:
    """Sample an axis of `n` voxels `factor` times coarser (antialiased) and linearly back."""
    coarse = max(1, round(n / factor))
    step = n / coarse
    down = kernel_matrix(n, coarse, step, (step - 1) / 2)
    up = kernel_matrix(coarse, n, 1 / step, (1 / step - 1) / 2, antialias=False)
    return up @ down


def band(matrix: Float[Tensor, "rows columns"]) -> tuple[int, int]:
    """Half-open range of the columns that hold a weight; (0, 0) where there is none."""
    used = torch.nonzero(matrix.any(0)).flatten()
    return (int(used[0]), int(used[-1]) + 1) if used.numel() else (0, 0)


def row_blocks(n_rows: int) -> Iterator[slice]:
    """Slices of at most `ROWS_PER_BLOCK` rows that cover `n_rows`."""
    for start in range(0, n_rows, ROWS_PER_BLOCK):
        yield slice(start, min(n_rows, start + ROWS_PER_BLOCK))


def apply_along(x: Float[Tensor, "*axes"], matrix: Float[Tensor, "n_out n_in"], axis: int) -> Float[Tensor, "*out"]:
    """Multiply one axis of `x`, of length n_in, by `matrix`, on a CPU block of rows by block of rows inside the band.

    `axis` counts from the front. Returns the same axes with n_out there, contiguous.

    >>> apply_along(torch.ones(2, 4, 3), torch.full((1, 4), 0.25), axis=1).shape
    torch.Size([2, 1, 3])
    """
    shape = tuple(x.shape)
    flat = x.reshape(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))
    out = flat.new_empty((flat.shape[0], matrix.shape[0], flat.shape[2]))
    on_cpu = x.device.type == "cpu"
    for rows in row_blocks(matrix.shape[0]) if on_cpu else [slice(None)]:  # a GPU waits for each block's weights
        low, high = band(matrix[rows])
        weights = matrix[rows, low:high].to(x.device)
        if flat.shape[2] == 1:
            out[:, rows, 0] = flat[:, low:high, 0] @ weights.T
        else:
            out[:, rows] = weights @ flat[:, low:high]
    return out.reshape(*shape[:axis], matrix.shape[0], *shape[axis + 1 :])
