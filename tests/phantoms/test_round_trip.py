"""The geometry phantom through a chain and back on one grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.phantoms.phantom import PhantomError
from pipeline.phantoms.round_trip import Grid, round_trip


def test_every_structure_comes_back_to_its_own_position(tmp_path: Path) -> None:
    affine = np.diag([-3.1, 2.5, 3.7, 1.0])
    affine[:3, 3] = (120.0, -130.0, 40.0)
    grid = Grid("mirrored", (81, 100, 68), affine)
    assert grid.spacing_mm == (3.1, 2.5, 3.7)
    trip = round_trip(grid, {"target_size": (64, 64, 72)})
    assert trip.target_size == (64, 64, 72)
    assert trip.coarsest_mm == pytest.approx(81 * 3.1 / 64)
    large = [structure for structure in trip.structures if structure.radius_mm >= 8]
    assert [structure.name for structure in large] == [structure.lies_at for structure in large]
    assert max(structure.shift_mm for structure in trip.structures) < 0.1
    assert trip.structures[0].radius_mm == 60
    assert trip.structures[0].dice > 0.98


def test_a_grid_that_is_too_small_is_refused() -> None:
    with pytest.raises(PhantomError, match="leaves the grid"):
        round_trip(Grid("small", (20, 20, 20), np.eye(4)), {})
