"""Turn, scale, shift and mirror a volume within its grid: the voxel map of such a move, and sampling under it.

Image and label are sampled in one pass, the one linearly, the other at its nearest voxel, on any device. At 160×160×256
on one core a pass over both takes 0.18 s; torch's affine_grid and grid_sample need 0.45 s for the same values, scipy's
affine_transform 0.66 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64, Integer
from torch import Tensor

VOXELS_AT_ONCE = {"cpu": 2**16}
"""Voxels sampled together: on a CPU their indices and weights stay in its cache; a GPU takes `VOXELS_ON_DEVICE`."""
VOXELS_ON_DEVICE = 2**25


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
    size = source if size is None else tuple(size)
    strides = ((source[1] + 2) * (source[2] + 2), source[2] + 2, 1)
    channels = []
    if image is not None:
        # The lowest not as numbers, for which the host would wait for a GPU
        values: Iterable[Tensor | float] = image.amin((1, 2, 3)) if outside is None else outside
        channels = [_bordered(channel, value) for channel, value in zip(image, values, strict=True)]
    classes = None if label is None else _bordered(indexable(label)[0], 0)
    new_image = None if image is None else image.new_empty(len(image), *size)
    new_label = None if classes is None else torch.empty(size, dtype=classes.dtype, device=volume.device)
    at_once = VOXELS_AT_ONCE.get(volume.device.type, VOXELS_ON_DEVICE)
    planes = max(1, at_once // (size[1] * size[2]))
    for start in range(0, size[0], planes):
        rows = slice(start, min(size[0], start + planes))
        base, nearest, weights = _indices(matrix, rows, size, source, strides, volume.device)
        if new_image is not None:
            for channel, out in zip(channels, new_image, strict=True):
                _trilinear(channel, base, weights, strides, out[rows])
        if classes is not None and new_label is not None:
            new_label[rows] = classes.index_select(0, nearest.flatten()).view(nearest.shape)
    return new_image, None if label is None or new_label is None else new_label[None].to(label.dtype)


def indexable(label: Tensor) -> Tensor:
    """torch (2.13) can neither index nor flip uint16."""
    return label.int() if label.dtype == torch.uint16 else label


def _bordered(volume: Tensor, outside: Tensor | float | int) -> Tensor:
    """Flat volume with one voxel of `outside` on every side."""
    bordered = volume.new_empty([n + 2 for n in volume.shape])
    bordered[...] = outside
    bordered[1:-1, 1:-1, 1:-1] = volume
    return bordered.flatten()


def _indices(
    matrix: np.ndarray,
    rows: slice,
    size: Sequence[int],
    source: Sequence[int],
    strides: Sequence[int],
    device: torch.device,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Flat index of the lower corner, of the nearest voxel, and the weight of the upper neighbour along each axis.

    Positions are float32, exact to 2e-5 voxels at 512; indices are integer, since float32 cannot count a volume.
    """
    i = torch.arange(rows.start, rows.stop, dtype=torch.float32, device=device)[:, None, None]
    j = torch.arange(size[1], dtype=torch.float32, device=device)[:, None]
    k = torch.arange(size[2], dtype=torch.float32, device=device)
    base = torch.zeros((), dtype=torch.int32, device=device)
    nearest = base
    weights = []
    for row, n, stride in zip(matrix[:3].tolist(), source, strides, strict=True):
        position = (row[0] * i + row[1] * j + (row[3] + 1)) + row[2] * k  # + 1: the border voxel
        position.clamp_(0, n + 1)
        corner = position.int().clamp_(max=n)
        weights.append(position.sub_(corner))
        base = base + corner * stride
        nearest = nearest + (corner + (weights[-1] >= 0.5)) * stride
    return base, nearest, weights


def _trilinear(flat: Tensor, base: Tensor, weights: Sequence[Tensor], strides: Sequence[int], out: Tensor) -> None:
    """Interpolate between the eight neighbours of each index, into `out`."""
    index = base.flatten()
    i, j, _ = strides

    def pair(offset: int) -> Tensor:
        lower = flat[offset:].index_select(0, index).view(base.shape)
        return lower.lerp_(flat[offset + 1 :].index_select(0, index).view(base.shape), weights[2])

    near = pair(0).lerp_(pair(j), weights[1])
    far = pair(i).lerp_(pair(i + j), weights[1])
    torch.lerp(near, far, weights[0], out=out)
