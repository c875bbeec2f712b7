"""Weigh the classes of a loss by how often they occur."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Integer


def median_frequency_weights(
    class_voxels: Integer[np.ndarray, "cases classes"], alpha: float | int
) -> Float64[np.ndarray, " classes"]:
    """Weigh classes by median frequency balancing: (median(f) / f_c)^alpha.

    >>> median_frequency_weights(np.array([[60, 40, 0], [50, 40, 10]]), alpha=1.0).round(2)
    array([0.73, 1.  , 4.  ])

    f_c is the share of class c among the voxels of the cases that hold it, the median is over the classes that
    occur (Eigen & Fergus 2015, section 6.3.2). A case that does not annotate a class does not hold it, so that its
    voxels do not make the class rarer; as the loss has it, what its label calls background is background.

    Args:
        class_voxels: Voxels of each class in each case.
        alpha: 0 = all occurring classes weigh 1; 1 = full balance.

    Returns:
        Weights; 0 for a class that no case holds.
    """
    holds = class_voxels > 0
    voxels_of_class = class_voxels.sum(axis=0)
    voxels_around = (holds * class_voxels.sum(axis=1, keepdims=True)).sum(axis=0)
    occurs = voxels_of_class > 0
    frequency = voxels_of_class[occurs] / voxels_around[occurs]
    weights = np.zeros(class_voxels.shape[1])
    weights[occurs] = (np.median(frequency) / frequency) ** alpha
    return weights
