"""Weigh the classes of a loss by how often they occur."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Integer

from pipeline.config.settings import ConfigError


def median_frequency_weights(
    class_voxels: Integer[np.ndarray, "cases classes"], alpha: float | int, class_names: Sequence[str] | None = None
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
        class_names: for the message; None: their indices.

    Returns:
        Weights; 0 for a class that no case holds.

    Raises:
        ConfigError: a weight that float32, in which the loss is computed, does not hold.
    """
    holds = class_voxels > 0
    voxels_of_class = class_voxels.sum(axis=0)
    voxels_around = (holds * class_voxels.sum(axis=1, keepdims=True)).sum(axis=0)
    occurs = voxels_of_class > 0
    frequency = voxels_of_class[occurs] / voxels_around[occurs]
    weights = np.zeros(class_voxels.shape[1])
    with np.errstate(over="ignore", under="ignore"):
        weights[occurs] = (np.median(frequency) / frequency) ** alpha
    held = np.finfo(np.float32)
    for index in np.flatnonzero(occurs).tolist():
        if not held.tiny <= weights[index] <= held.max:
            name = index if class_names is None else class_names[index]
            raise ConfigError(
                f"loss.weight_alpha {alpha:g}: expected weights of {held.tiny:.2g} to {held.max:.2g}, found "
                f"{weights[index]:.2g} for class {name}; lower it (0.5 is usual, 1 is full balance)"
            )
    return weights
