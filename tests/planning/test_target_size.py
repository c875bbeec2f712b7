"""The suggested target size keeps the median scan's voxels where it can, and never has more than the documented one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.planning.target_size import MOST_VOXELS, suggest_target_size


def test_small_scans_keep_their_own_voxels_as_nnunet_plans_them():
    """nnU-Net's patch for the Decathlon's hippocampus is 40×56×40, whose median case has 36×50×35 voxels of 1 mm."""
    found = suggest_target_size([(35, 50, 36)] * 3, [(1.0, 1.0, 1.0)] * 3)
    assert found.size == (40, 56, 40)
    assert found.times_coarser == 1.0


@pytest.mark.parametrize(
    ("size", "spacing"),
    [((512, 512, 700), (0.8, 0.8, 1.0)), ((512, 512, 80), (0.7, 0.7, 5.0)), ((400, 20, 3000), (0.5, 4.0, 0.5))],
)
def test_large_scans_become_coarser_along_their_finest_axes_first(size, spacing):
    found = suggest_target_size([size], [spacing])
    assert math.prod(found.size) <= MOST_VOXELS
    assert math.prod(found.size) > MOST_VOXELS / 1.6
    np.testing.assert_allclose(np.array(found.voxel_mm) * found.size, np.array(size) * spacing)
    assert found.times_coarser == pytest.approx(max(np.array(found.voxel_mm) / spacing), rel=1e-6)
    coarsened = [mm for mm, own in zip(found.voxel_mm, spacing, strict=True) if mm > 1.05 * own]
    assert max(coarsened) <= 1.15 * min(coarsened)


def test_no_edge_is_below_what_a_training_takes():
    assert suggest_target_size([(5, 40, 3)], [(1.0, 1.0, 1.0)]).size == (16, 40, 16)
