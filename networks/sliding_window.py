"""Features of a volume from overlapping windows, blended and handed out slice by slice.

A window is what the network saw in training (a patch). Overlapping windows are averaged with Gaussian weights, as
nnU-Net does with logits (Isensee et al. 2021, `predict_from_raw_data.py`). Here the *features* are averaged: the head
is linear, so that applying it to blended features gives the blended logits, and memory does not grow with the number of
classes. Windows run along one axis; slices that no later window reaches are final and are handed out, so that memory
does not grow with the length of the volume either.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

STEP = 0.5
"""Distance of neighbouring windows as a share of their size, nnU-Net's default."""

GAUSSIAN_SIGMA = 1 / 8
"""Standard deviation of the weights as a share of the window, nnU-Net's."""


def window_starts(size: int, window: int, step: float = STEP) -> list[int]:
    """First voxels of the windows along one axis: spread evenly, neighbours at most `step` windows apart.

    Args:
        size: voxels of the volume, at least `window`.
        window: voxels of a window.
        step: greatest distance of neighbouring windows, as a share of `window`, above 0 and at most 1.

    Raises:
        ValueError: if the window is longer than the volume, or `step` is not in (0, 1].

    >>> window_starts(100, 40)
    [0, 20, 40, 60]
    >>> window_starts(40, 40)
    [0]
    """
    if not 1 <= window <= size:
        raise ValueError(f"window: expected 1 to {size} voxels, the volume's size, found {window}")
    if not 0 < step <= 1:
        raise ValueError(f"step: expected a share above 0 and at most 1, found {step}")
    n_steps = _n_steps(size, window, step)
    return [round((size - window) * i / n_steps) for i in range(n_steps + 1)] if n_steps else [0]


def _n_steps(size: int, window: int, step: float) -> int:
    """Steps from the first window to the last."""
    return math.ceil((size - window) / max(1, int(window * step)))


def count_windows(size: Sequence[int], window: Sequence[int]) -> int:
    """Number of windows over a volume, `STEP` apart; it is padded to a window's size along axes where it is smaller.

    >>> count_windows((100, 20, 41), (40, 40, 40))
    8
    """
    return math.prod(1 + _n_steps(max(n, w), w, STEP) for n, w in zip(size, window, strict=True))


def gaussian_weights(window: int) -> Float[Tensor, " window"]:
    """Weights of a window's voxels along one axis, 1 in the middle, standard deviation `GAUSSIAN_SIGMA` windows."""
    distance = (torch.arange(window) - (window - 1) / 2) / (window * GAUSSIAN_SIGMA)
    return torch.exp(-0.5 * distance.square())


class SlidingWindow:
    """Blended features of a volume, computed window by window as slices along one axis are asked for.

    Equal to blending the features of all windows at once (to float32 rounding), in the memory of one window's length.
    The features of a single window are handed out as they are.

    Args:
        features: (1, C, *window) -> (1, F, *window), the network without its head.
        image: (C, I, J, K), on any device; where it is smaller than the window, it is padded at both ends with each
            channel's lowest value, as training pads patches.
        window: voxels of a window along I, J, K.
        step: see `window_starts`.
        axis: 0, 1 or 2, along which the windows advance and slices are handed out.
        device: where features are computed and summed up; None takes the image's.

    Raises:
        ValueError: see `window_starts`.
    """

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        image: Float[Tensor, "C I J K"],
        window: Sequence[int],
        *,
        step: float = STEP,
        axis: int = 2,
        device: torch.device | None = None,
    ) -> None:
        self.axis = axis
        self.size = tuple(image.shape[1:])
        self._features = features
        self._device = image.device if device is None else device
        self._window = tuple(int(n) for n in window)
        self._before = [max(0, w - n) // 2 for w, n in zip(self._window, self.size, strict=True)]
        self._image = _padded(image, self._window, self._before)
        padded = self._image.shape[1:]
        self._starts = [window_starts(n, w, step) for n, w in zip(padded, self._window, strict=True)]
        self._weights = [gaussian_weights(w).to(self._device) for w in self._window]
        # The windows form a grid, so that the sum of their weights is a product of three sums along the axes.
        self._sums = [self._sum_of_weights(i, n) for i, n in enumerate(padded)]
        self._n_done = 0
        """Groups of windows with the same start along the axis that have been computed."""
        self._open: Tensor | None = None
        """Weighted sums that later windows still reach, (F, slices, …): the axis comes second."""
        self._ready: list[tuple[int, Tensor]] = []
        """Final features with the padded index of their first slice."""

    @property
    def n_windows(self) -> int:
        """Number of windows over the whole volume."""
        return math.prod(map(len, self._starts))

    def slices(self, start: int, stop: int) -> Float[Tensor, "F i j k"]:
        """Features of the slices start … stop along the axis; what lies before `start` is forgotten.

        Raises:
            ValueError: if the slices were forgotten or do not exist.
        """
        if not 0 <= start < stop <= self.size[self.axis]:
            raise ValueError(f"slices: expected a range within 0 to {self.size[self.axis]}, found {start} to {stop}")
        first, last = start + self._before[self.axis], stop + self._before[self.axis]
        while not self._ready or self._end() < last:
            self._forget(first)
            self._next_group()
        self._ready = [(at, part) for at, part in self._ready if at + part.shape[1] > first]
        if self._ready[0][0] > first:
            raise ValueError(f"slices: {start} to {stop} lie before what is kept; ask in rising order")
        parts = [part[:, max(0, first - at) : max(0, last - at)] for at, part in self._ready]
        found = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return self._cropped(found.movedim(1, 1 + self.axis))

    def _forget(self, first: int) -> None:
        """Free the slices before the padded index `first`, where that is more than half of a part."""
        kept = []
        for at, part in self._ready:
            n_old = min(max(0, first - at), part.shape[1])
            if n_old == part.shape[1]:
                continue
            kept.append((first, part[:, n_old:].clone()) if 2 * n_old > part.shape[1] else (at, part))
        # The last one stays, though empty: it says how far the windows have come.
        self._ready = kept or [(at + part.shape[1], part[:, :0].clone()) for at, part in self._ready[-1:]]

    def _end(self) -> int:
        at, part = self._ready[-1]
        return at + part.shape[1]

    def _cropped(self, features: Tensor) -> Tensor:
        """Without the padding of the two other axes."""
        for i in range(3):
            if i != self.axis:
                features = features.narrow(1 + i, self._before[i], self.size[i])
        return features

    def _sum_of_weights(self, i: int, n: int) -> Tensor:
        total = torch.zeros(n, device=self._device)
        for start in self._starts[i]:
            total[start : start + self._window[i]] += self._weights[i]
        return total

    def _next_group(self) -> None:
        """Compute the windows with the next start along the axis; what they complete is ready."""
        if self.n_windows == 1:
            whole = self._features(self._image[None].to(self._device))[0]
            self._ready.append((0, whole.movedim(1 + self.axis, 1)))
            return
        starts, width = self._starts[self.axis], self._window[self.axis]
        start = starts[self._n_done]
        self._n_done += 1
        following = starts[self._n_done] if self._n_done < len(starts) else start + width
        across = [self._starts[i] if i != self.axis else [start] for i in range(3)]
        for corner in itertools.product(*across):
            self._add(corner)
        assert self._open is not None
        n_final = following - start
        final = self._open[:, :n_final].clone()
        for i in range(3):
            sums = self._sums[i] if i != self.axis else self._sums[i][start:following]
            final.movedim(1, 1 + self.axis).div_(_along(sums, i))
        self._ready.append((start, final))
        if self._n_done == len(starts):
            self._open = None
            return
        for at in range(0, width, n_final):  # in place: a second tensor of this size would be the peak of the memory
            part = self._open[:, at : at + n_final]
            following_part = self._open[:, at + n_final : at + 2 * n_final]
            part[:, : following_part.shape[1]] = following_part
            part[:, following_part.shape[1] :] = 0

    def _add(self, corner: Sequence[int]) -> None:
        """Add the weighted features of the window that begins at `corner`."""
        box = [slice(at, at + w) for at, w in zip(corner, self._window, strict=True)]
        found = self._features(self._image[(slice(None), *box)][None].to(self._device))[0].float()
        for i, weights in enumerate(self._weights):
            found = found * _along(weights, i) if i == 0 else found.mul_(_along(weights, i))
        if self._open is None:
            size = [
                w if i == self.axis else n
                for i, (w, n) in enumerate(zip(self._window, self._image.shape[1:], strict=True))
            ]
            self._open = torch.zeros(len(found), *size, device=self._device).movedim(1 + self.axis, 1)
        box[self.axis] = slice(0, self._window[self.axis])
        self._open.movedim(1, 1 + self.axis)[(slice(None), *box)] += found


def _along(values: Tensor, i: int) -> Tensor:
    """Values along spatial axis i, shaped to be multiplied with (F, I, J, K)."""
    shape = [1, 1, 1, 1]
    shape[1 + i] = -1
    return values.view(shape)


def _padded(image: Tensor, window: Sequence[int], before: Sequence[int]) -> Tensor:
    """The image at least as large as the window, filled up with each channel's lowest value."""
    size = [max(n, w) for n, w in zip(image.shape[1:], window, strict=True)]
    if list(image.shape[1:]) == size:
        return image
    padded = image.flatten(1).amin(1)[:, None, None, None].expand(-1, *size).clone()
    box = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    padded[(slice(None), *box)] = image
    return padded
