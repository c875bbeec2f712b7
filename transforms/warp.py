"""Turn, scale, shift and mirror a volume within its grid: the voxel map of such a move, and sampling under it.

Image and label are sampled in one pass, the one linearly, the other at its nearest voxel, on any device. At 160×160×256
on one core, torch's affine_grid and grid_sample take three times as long for the same values, and scipy's
affine_transform nearly five times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Integer
from torch import Tensor

from transforms.large_pages import empty_like

VOXELS_AT_ONCE = {"cpu": 2**17}
"""Voxels sampled together: on a CPU their indices and weights stay in its cache; a GPU takes `VOXELS_ON_DEVICE`."""
VOXELS_ON_DEVICE = 2**25


class _Scratch(NamedTuple):
    """Memory for the voxels of one block, used for every block: new memory takes longer to get than to compute in."""

    weights: Tensor
    """(3, n) float32: weight of the upper neighbour along each axis."""
    voxel: Tensor
    """(n,) int32: flat index of a voxel's lower corner, then of its nearest neighbour."""
    corner: Tensor
    """(n,) int32: index along one axis."""
    values: Tensor
    """(4, n) float32: values of neighbours."""

    def of(self, n: int) -> _Scratch:
        """The memory of the first `n` voxels."""
        return _Scratch(*(part[..., :n] for part in self))


class _Bordered(NamedTuple):
    """The grid that is sampled, with one more voxel on every side."""

    size: tuple[int, ...]
    """Voxels (I, J, K) without the border."""
    strides: tuple[int, int, int]
    """Steps in flat memory along I, J, K, border included."""


def affine_map(
    size: Sequence[int],
    spacing_mm: Sequence[float | int],
    *,
    rotation_deg: Sequence[float | int] = (0.0, 0.0, 0.0),
    scale: Sequence[float | int] = (1.0, 1.0, 1.0),
    translation: Sequence[float | int] = (0.0, 0.0, 0.0),
    flips: Sequence[int] = (),
) -> Float64[np.ndarray, "4 4"]:
    """Map a voxel index of the moved volume to the index of the original that is sampled there.

    The content is scaled, then turned about the axes i, j, k in this order (both in mm, about the centre of the volume,
    so that unequal voxels do not shear it), shifted by shares of the field of view, and mirrored along `flips`. This is
    the inverse of that. `size` and `spacing_mm` describe the grid, which stays.

    >>> affine_map((10, 10, 10), (1, 1, 1), flips=(0,)) @ [0, 3, 3, 1]
    array([9., 3., 3., 1.])
    """
    spacing = np.diag(np.asarray(spacing_mm, np.float64))
    centre = (np.asarray(size, np.float64) - 1) / 2
    turn = _rotation(rotation_deg) @ np.diag(scale)
    mirror = np.diag([-1.0 if axis in flips else 1.0 for axis in range(3)])
    forward = mirror @ np.linalg.inv(spacing) @ turn @ spacing
    shifted = mirror @ (np.asarray(translation) * np.asarray(size))
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.inv(forward)
    matrix[:3, 3] = centre - matrix[:3, :3] @ (centre + shifted)
    return matrix


def _rotation(degrees: Sequence[float | int]) -> np.ndarray:
    """Rz · Ry · Rx, 3×3."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a = (axis + 1) % 3
        b = (axis + 2) % 3
        step = np.eye(3)
        step[a, a] = step[b, b] = math.cos(angle)
        step[a, b], step[b, a] = -math.sin(angle), math.sin(angle)
        rotation = step @ rotation
    return rotation


def sample_affine(
    image: Float32[Tensor, "C I J K"] | None,
    label: Integer[Tensor, "1 I J K"] | None,
    matrix: Float64[np.ndarray, "4 4"],
    *,
    size: Sequence[int] | None = None,
    outside: Sequence[float] | None = None,
) -> tuple[Float32[Tensor, "C X Y Z"] | None, Integer[Tensor, "1 X Y Z"] | None]:
    """Sample an image linearly and a label at the nearest voxel, both at `matrix` @ (index of the output voxel).

    Args:
        image: on one grid and device with the label; either may be None.
        label: see image.
        matrix: output voxel index -> index in image and label.
        size: voxels of the output; None: those of the input.
        outside: value outside the image's grid, a channel each; None: each channel's lowest. Outside the label is 0.

    Returns:
        New tensors of the given size and the same dtypes.
    """
    # One border voxel holds the outside, so that no neighbour needs a test; image and label share the indices.
    volume = image if image is not None else label
    assert volume is not None
    source = tuple(volume.shape[1:])
    grid = _Bordered(source, ((source[1] + 2) * (source[2] + 2), source[2] + 2, 1))
    size = source if size is None else tuple(size)
    channels = []
    new_image = new_label = classes = None
    if image is not None:
        # The lowest not as numbers, for which the host would wait for a GPU
        values: Iterable[Tensor | float] = image.amin((1, 2, 3)) if outside is None else outside
        channels = [_bordered(channel, value) for channel, value in zip(image, values, strict=True)]
        new_image = empty_like(image, (len(image), *size))
    if label is not None:
        classes = _bordered(indexable(label)[0], 0)
        new_label = empty_like(classes, size)
    blocks = list(_blocks(size, VOXELS_AT_ONCE.get(volume.device.type, VOXELS_ON_DEVICE)))
    memory = _scratch(max(math.prod(block.shape) for block in blocks), volume.device)
    for block in blocks:
        scratch = memory.of(math.prod(block.shape))
        _find_corners(matrix, block, grid, scratch)
        if new_image is not None:
            for channel, out in zip(channels, new_image, strict=True):
                _trilinear(channel, grid.strides, scratch, block.of(out))
        if classes is not None and new_label is not None:
            _find_nearest(grid.strides, scratch)
            torch.index_select(classes, 0, scratch.voxel, out=block.of(new_label))
    return new_image, None if label is None or new_label is None else new_label[None].to(label.dtype)


def indexable(label: Tensor) -> Tensor:
    """torch (2.13) can neither index nor flip uint16."""
    return label.int() if label.dtype == torch.uint16 else label


def is_label_map(volume: Tensor) -> bool:
    """Whether a volume is what label transforms take: whole numbers, (1, I, J, K)."""
    is_whole = not volume.dtype.is_floating_point and volume.dtype != torch.bool
    return is_whole and volume.ndim == 4 and len(volume) == 1


def _bordered(volume: Tensor, outside: Tensor | float | int) -> Tensor:
    """Flat volume with one voxel of `outside` on every side."""
    bordered = empty_like(volume, [n + 2 for n in volume.shape])
    bordered[...] = outside
    bordered[1:-1, 1:-1, 1:-1] = volume
    return bordered.flatten()


class _Block(NamedTuple):
    """Voxels of the output that lie together in memory: whole planes, or rows of one plane."""

    planes: range
    """Along I."""
    rows: range
    """Along J; all of them where there are several planes."""
    n: int
    """Voxels along K, all of them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (I, J, K)."""
        return len(self.planes), len(self.rows), self.n

    def of(self, volume: Tensor) -> Tensor:
        """The block's voxels of (I, J, K), flat."""
        return volume[self.planes.start : self.planes.stop, self.rows.start : self.rows.stop].view(-1)


def _blocks(size: Sequence[int], at_once: int) -> Iterator[_Block]:
    """Cut an output into blocks of about `at_once` voxels."""
    rows = max(1, at_once // size[2])
    planes = max(1, rows // size[1])
    for i in range(0, size[0], planes):
        for j in range(0, size[1], min(rows, size[1])):
            yield _Block(range(i, min(size[0], i + planes)), range(j, min(size[1], j + rows)), size[2])


def _scratch(n: int, device: torch.device) -> _Scratch:
    return _Scratch(
        torch.empty(3, n, device=device),
        torch.empty(n, dtype=torch.int32, device=device),
        torch.empty(n, dtype=torch.int32, device=device),
        torch.empty(4, n, device=device),
    )


def _find_corners(matrix: np.ndarray, block: _Block, grid: _Bordered, scratch: _Scratch) -> None:
    """Find the lower corner of every voxel of a block, and the weight of the upper neighbour along each axis.

    Positions are float32, exact to 2e-5 voxels at 512; indices are integer, since float32 cannot count a volume.
    """
    device = scratch.voxel.device
    i = torch.arange(block.planes.start, block.planes.stop, dtype=torch.float32, device=device)[:, None, None]
    j = torch.arange(block.rows.start, block.rows.stop, dtype=torch.float32, device=device)[:, None]
    k = torch.arange(block.n, dtype=torch.float32, device=device)
    scratch.voxel.zero_()
    for position, row, n, stride in zip(scratch.weights, matrix[:3].tolist(), grid.size, grid.strides, strict=True):
        first = row[0] * i + row[1] * j + (row[3] + 1)  # + 1: the border voxel
        torch.add(first, row[2] * k, out=position.view(block.shape)).clamp_(0, n + 1)
        scratch.corner.copy_(position).clamp_(max=n)
        scratch.voxel.add_(scratch.corner, alpha=stride)
        position.sub_(scratch.corner)


def _find_nearest(strides: Sequence[int], scratch: _Scratch) -> None:
    """Turn the index of every lower corner into that of the nearest neighbour."""
    for weight, stride in zip(scratch.weights, strides, strict=True):
        scratch.corner.copy_(torch.add(weight, 0.5, out=scratch.values[0]))
        scratch.voxel.add_(scratch.corner, alpha=stride)


def _trilinear(flat: Tensor, strides: Sequence[int], scratch: _Scratch, out: Tensor) -> None:
    """Interpolate between the eight neighbours of each index, into `out`."""
    i, j, _ = strides
    along_i, along_j, along_k = scratch.weights
    near, far, other, upper = scratch.values

    def pair(offset: int, into: Tensor) -> Tensor:
        torch.index_select(flat[offset:], 0, scratch.voxel, out=into)
        torch.index_select(flat[offset + 1 :], 0, scratch.voxel, out=upper)
        return into.lerp_(upper, along_k)

    pair(0, near).lerp_(pair(j, other), along_j)
    pair(i, far).lerp_(pair(i + j, other), along_j)
    torch.lerp(near, far, along_i, out=out)
