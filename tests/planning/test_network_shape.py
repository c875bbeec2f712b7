"""Spacing, strides and kernels against what nnU-Net 2.8.1 computes for the same patches and spacings."""

import numpy as np
import pytest

from pipeline.planning.network_shape import network_shape, target_spacing


def triples(text):
    return tuple(tuple(map(int, word)) for word in text.split())


# Computed with get_pool_and_conv_props(spacing, patch, 4, 999999) of nnunetv2 2.8.1
@pytest.mark.parametrize(
    ("patch", "spacing_mm", "strides", "kernels"),
    [
        ((40, 56, 40), (1, 1, 1), "222 222 222", "333 333 333 333"),
        ((20, 320, 256), (3.6, 0.625, 0.625), "122 122 222 222 122 122", "133 133 333 333 333 333 333"),
        ((128, 128, 128), (1, 1, 1), "222 222 222 222 222", "333 333 333 333 333 333"),
        ((96, 160, 160), (3, 0.8, 0.8), "122 222 222 222 222", "133 333 333 333 333 333"),
        ((14, 320, 320), (10, 1.25, 1.25), "122 122 122 222 122 122", "133 133 133 333 333 333 333"),
        ((48, 192, 192), (2.5, 0.8, 0.8), "122 222 222 222 122", "133 333 333 333 333 333"),
    ],
)
def test_strides_and_kernels_are_nnunets(patch, spacing_mm, strides, kernels):
    assert network_shape(patch, spacing_mm) == (triples(strides), triples(kernels))


def test_a_patch_too_small_to_be_halved_has_one_level():
    assert network_shape((7, 7, 7), (1, 1, 1)) == ((), ((3, 3, 3),))


@pytest.mark.parametrize(("patch", "spacing_mm"), [((0, 8, 8), (1, 1, 1)), ((8, 8, 8), (1, 0, 1))])
def test_what_is_not_positive_is_refused(patch, spacing_mm):
    with pytest.raises(ValueError, match="expected positive numbers"):
        network_shape(patch, spacing_mm)


def test_spacing_is_the_median_along_each_axis():
    spacings = [(0.7, 0.7, 1.0), (0.8, 0.9, 2.0), (0.9, 0.8, 3.0)]
    assert target_spacing([(512, 512, 200)] * 3, spacings) == pytest.approx((0.8, 0.8, 2.0))


def test_a_coarse_axis_with_few_voxels_takes_its_fine_spacings():
    # ACDC's case in nnU-Net: most scans at 10 mm, some at 5 mm
    spacings = [(1.5, 1.5, 10.0)] * 9 + [(1.5, 1.5, 5.0)]
    expected = np.percentile([mm[2] for mm in spacings], 10)
    assert target_spacing([(216, 256, 10)] * 10, spacings) == pytest.approx((1.5, 1.5, expected))
    assert target_spacing([(216, 256, 100)] * 10, spacings) == pytest.approx((1.5, 1.5, 10.0))
