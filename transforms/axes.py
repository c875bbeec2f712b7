"""The voxel axes of a grid that runs along RAS."""

from __future__ import annotations

LEFT_RIGHT = 0
"""The voxel axis along which a patient's sides lie."""
