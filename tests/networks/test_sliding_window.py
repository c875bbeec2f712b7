"""Blended windows against MONAI's sliding window on logits, slice by slice along every axis."""

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from networks.sliding_window import SlidingWindow, count_windows, gaussian_weights, window_starts

WINDOW = (16, 12, 8)


class Net(nn.Module):
    """Features that depend on where in the window a voxel lies, as those of a network with padding do."""

    def __init__(self, n_features=4):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(2, n_features, 3, padding=1), nn.ReLU(), nn.Conv3d(n_features, n_features, 5, padding=2)
        )

    def forward(self, x):
        return self.body(x)


def all_slices(window, axis, n):
    size = window.size[axis]
    return torch.cat([window.slices(start, min(start + n, size)) for start in range(0, size, n)], dim=1 + axis)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 5, 100])
def test_slices_are_those_of_all_windows_blended_at_once(net, axis, n):
    image = torch.randn(2, 37, 29, 30)
    total, weight = torch.zeros(4, 37, 29, 30), torch.zeros(37, 29, 30)
    g = torch.einsum("i,j,k->ijk", *map(gaussian_weights, WINDOW))
    for i in window_starts(37, 16):
        for j in window_starts(29, 12):
            for k in window_starts(30, 8):
                box = (slice(i, i + 16), slice(j, j + 12), slice(k, k + 8))
                total[(slice(None), *box)] += net(image[(slice(None), *box)][None])[0] * g
                weight[box] += g
    found = all_slices(SlidingWindow(net, image, WINDOW, axis=axis), axis, n)
    torch.testing.assert_close(found, total / weight, rtol=1e-4, atol=1e-5)


def test_head_on_blended_features_is_the_blended_logits_of_monai(net):
    # Sizes for which MONAI's windows, which it pushes back at the end, lie where ours do
    image, head = torch.randn(2, 40, 30, 20), nn.Conv3d(4, 71, 1).requires_grad_(False)
    weights = torch.einsum("i,j,k->ijk", *map(gaussian_weights, WINDOW))  # MONAI's own are cut off below 0.001
    expected = sliding_window_inference(
        image[None], WINDOW, 1, lambda x: head(net(x)), overlap=0.5, roi_weight_map=weights
    )[0]
    found = head(all_slices(SlidingWindow(net, image, WINDOW, axis=0), 0, 7)[None])[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.argmax(0), expected.argmax(0))


def test_a_volume_smaller_than_the_window_is_padded_with_its_lowest_value(net):
    image = torch.randn(2, 7, 30, 8)
    padded = image.flatten(1).amin(1)[:, None, None, None].expand(-1, 16, 30, 8).clone()
    padded[:, 4:11] = image
    found = all_slices(SlidingWindow(net, image, WINDOW, axis=1), 1, 4)
    expected = all_slices(SlidingWindow(net, padded, WINDOW, axis=1), 1, 4)[:, 4:11]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("step", [0.5, 0.8, 1.0])
def test_windows_cover_every_voxel_and_are_at_most_a_step_apart(step):
    rng = np.random.default_rng(0)
    for _ in range(200):
        window = int(rng.integers(1, 60))
        size = window + int(rng.integers(0, 200))
        starts = window_starts(size, window, step)
        assert (starts[0], starts[-1]) == (0, size - window)
        assert max(np.diff(starts), default=0) <= max(1, window * step)


@pytest.mark.parametrize("size", [(16, 12, 8), (5, 40, 9), (17, 30, 21)])
def test_the_network_runs_once_for_every_window_that_is_counted(size):
    runs = []
    window = SlidingWindow(lambda image: runs.append(1) or image, torch.randn(1, *size), WINDOW)
    all_slices(window, 2, 3)
    assert len(runs) == count_windows(size, WINDOW) == window.n_windows


def test_memory_is_that_of_the_windows_in_work_whatever_the_length(net):
    def kept(length):
        window, most = SlidingWindow(net, torch.randn(2, 16, 12, length), WINDOW, axis=2), 0
        for start in range(0, length, 4):
            window.slices(start, start + 4)
            tensors = [part for _, part in window._ready] + ([] if window._open is None else [window._open])
            most = max(most, sum(tensor.untyped_storage().nbytes() for tensor in tensors))
        return most

    of_a_window = 4 * 4 * 16 * 12 * 8  # bytes of four features in float32
    assert kept(400) == kept(100) <= 2 * of_a_window


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (-1, 3), (5, 200)])
def test_slices_outside_the_volume_are_refused(net, start, stop):
    with pytest.raises(ValueError, match="slices: expected a range within 0 to 20"):
        SlidingWindow(net, torch.randn(2, 16, 12, 20), WINDOW).slices(start, stop)


def test_slices_that_were_forgotten_are_refused(net):
    window = SlidingWindow(net, torch.randn(2, 16, 12, 40), WINDOW)
    window.slices(20, 24)
    with pytest.raises(ValueError, match="ask in rising order"):
        window.slices(0, 4)


def test_a_window_larger_than_the_volume_and_a_step_of_nothing_are_refused():
    with pytest.raises(ValueError, match="window: expected 1 to 10 voxels"):
        window_starts(10, 11)
    with pytest.raises(ValueError, match="step: expected a share"):
        window_starts(10, 5, 0.0)


def test_slices_within_those_handed_out_before_come_alone():
    window = SlidingWindow(lambda x: x, torch.arange(26.0).view(1, 13, 2, 1), (5, 2, 1), step=1.0, axis=0)
    for start, stop in ((0, 9), (5, 9), (6, 7)):
        expected = torch.arange(2.0 * start, 2.0 * stop).view(1, -1, 2, 1)
        torch.testing.assert_close(window.slices(start, stop), expected)
