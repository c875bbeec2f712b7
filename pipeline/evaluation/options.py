"""What a person chooses about scoring, and the error for an evaluation that cannot be made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.metrics.surface_elements import SurfaceKind

Kind = Literal["prediction", "label"]
"""Which of the two that are compared."""


class EvaluationError(ValueError):
    """Predictions that cannot be evaluated: which, expected, found, what to do."""

    is_input_error = True


@dataclass(frozen=True)
class ScoringOptions:
    """How predictions are scored. Raises EvaluationError for a tolerance that is no distance or a negative seed."""

    tolerance_mm: float | None = None
    """Distance in mm up to which two surfaces agree, for the surface Dice; None: as `default_tolerance_mm` chooses."""
    surface: SurfaceKind | None = "voxels"
    """What surfaces consist of: "voxels" as monai.metrics has it by default, or "area" as surface-distance has it, see
    `pipeline.metrics.surface_elements`; None: no HD95 and no surface Dice, which is faster."""
    resample: bool = False
    """Bring a prediction on another grid onto its label's, by nearest neighbour, instead of refusing it."""
    seed: int = 0
    """Of the bootstrap intervals."""
    workers: int | None = 1
    """Processes that score a case each; None: by cores, memory and the number of cases. More than one only from a
    script whose main part is guarded by `if __name__ == "__main__"`, as Python's multiprocessing has it."""

    def __post_init__(self) -> None:
        if self.tolerance_mm is not None and not (math.isfinite(self.tolerance_mm) and self.tolerance_mm >= 0):
            raise EvaluationError(f"tolerance_mm is {self.tolerance_mm:g}, expected a distance of 0 mm or more")
        if self.seed < 0:  # before hours of scoring
            raise EvaluationError(f"seed is {self.seed}, expected 0 or more")
