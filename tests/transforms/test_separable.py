"""Kernels as matrices against torch and scipy; products inside a band against full products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from transforms.separable import apply_along, band, gaussian_matrix, kernel_matrix, low_resolution_matrix, row_blocks


def centred(n_in, n_out):
    scale = n_in / n_out
    return {"scale": scale, "offset": (scale - 1) / 2}


@pytest.mark.parametrize(("n_in", "n_out"), [(50, 17), (13, 13), (9, 31), (7, 1), (1, 5)])
def test_linear_kernels_are_torchs_interpolation(n_in, n_out):
    x = torch.rand(1, 1, n_in, 4)
    expected = F.interpolate(x, (n_out, 4), mode="bilinear", antialias=True)[0, 0]
    torch.testing.assert_close(kernel_matrix(n_in, n_out, **centred(n_in, n_out)) @ x[0, 0], expected)
    plain = F.interpolate(x, (n_out, 4), mode="bilinear", align_corners=False)[0, 0]
    ours = kernel_matrix(n_in, n_out, **centred(n_in, n_out), antialias=False) @ x[0, 0]
    torch.testing.assert_close(ours, plain)


def test_a_cubic_kernel_reproduces_a_parabola():
    index = torch.arange(20.0)
    matrix = kernel_matrix(20, 40, 0.5, -0.25, kernel="cubic")
    at = 0.5 * torch.arange(40.0) - 0.25
    torch.testing.assert_close((matrix @ index**2)[4:-4], (at**2)[4:-4], atol=1e-3, rtol=0)


def test_centres_outside_the_field_of_view_have_no_weights():
    matrix = kernel_matrix(4, 8, 1.0, -2.0)
    assert matrix.any(1).tolist() == [False, False, True, True, True, True, False, False]
    torch.testing.assert_close(matrix[2:6], torch.eye(4))


def test_a_gaussian_is_scipys_away_from_the_border():
    x = torch.rand(40)
    theirs = ndimage.gaussian_filter1d(x.numpy().astype(np.float64), 1.7, truncate=4)
    np.testing.assert_allclose((gaussian_matrix(40, 1.7) @ x)[8:-8], theirs[8:-8], atol=2e-4)


def test_a_low_resolution_keeps_what_is_constant_and_flattens_what_is_fine():
    matrix = low_resolution_matrix(30, 2)
    torch.testing.assert_close(matrix @ torch.ones(30), torch.ones(30))
    fine = torch.tensor([1.0, -1.0]).repeat(15)
    assert (matrix @ fine).abs().max() < 0.2


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_products_inside_the_band_are_the_full_products(axis):
    x = torch.rand(3, 40, 37, 5)
    matrix = kernel_matrix(x.shape[axis], 45, **centred(x.shape[axis], 45))
    expected = torch.tensordot(matrix, x, dims=([1], [axis])).movedim(0, axis)
    torch.testing.assert_close(apply_along(x, matrix, axis), expected)
    assert apply_along(x, matrix, axis).is_contiguous()


def test_the_band_holds_every_weight_and_blocks_cover_every_row():
    matrix = torch.zeros(5, 9)
    assert band(matrix) == (0, 0)
    matrix[2, 3] = matrix[4, 6] = 1
    assert band(matrix) == (3, 7)
    assert [i for rows in row_blocks(70) for i in range(70)[rows]] == list(range(70))
