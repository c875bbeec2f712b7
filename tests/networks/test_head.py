"""A 1×1×1 convolution as a matrix, against the convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks.head import head_matrix, is_pointwise


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_the_matrix_times_the_features_is_the_convolution(convolution, bias):
    n_axes = [nn.Conv1d, nn.Conv2d, nn.Conv3d].index(convolution) + 1
    head, sample = convolution(4, 3, 1, bias=bias), torch.randn(4, *(5, 6, 7)[:n_axes])
    weight, shift = head_matrix(head, 4)
    assert (shift is not None) == bias
    product = weight @ sample.flatten(1) + (0 if shift is None else shift[:, None])
    torch.testing.assert_close(product.view(3, *sample.shape[1:]), head(sample[None])[0])


def test_without_a_head_the_features_are_the_logits():
    assert head_matrix(None, 7) == (None, None)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Conv3d(8, 7, 3), "head: expected a 1×1×1 convolution"),
        (nn.Conv3d(8, 7, 1, stride=2), "head: expected a 1×1×1 convolution"),
        (nn.Conv3d(8, 4, 1, groups=2), "head: expected a 1×1×1 convolution"),
        (nn.Conv3d(8, 7, 1, padding=1), "head: expected a 1×1×1 convolution"),
        (nn.ConvTranspose3d(8, 7, 1), "head: expected a 1×1×1 convolution"),
        (nn.Linear(8, 7), "head: expected a 1×1×1 convolution"),
        (nn.Conv3d(5, 7, 1), "head: expected 8 input channels, as the features have, found 5"),
    ],
)
def test_what_cannot_be_applied_slab_by_slab_is_refused(head, message):
    with pytest.raises(ValueError, match=message):
        head_matrix(head, 8)


def test_a_transposed_convolution_of_one_voxel_is_pointwise_too():
    assert is_pointwise(nn.ConvTranspose3d(8, 7, 1))
    assert not is_pointwise(nn.ConvTranspose3d(8, 7, 2, stride=2))
    assert is_pointwise(nn.Conv3d(8, 7, 1, padding="same"))
