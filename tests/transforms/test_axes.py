"""The axes of a grid along RAS, as nibabel names them."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from transforms.axes import LEFT_RIGHT


def test_the_sides_of_a_patient_lie_along_the_first_axis_of_an_ras_grid():
    assert nib.aff2axcodes(np.eye(4))[LEFT_RIGHT] == "R"
