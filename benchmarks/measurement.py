"""What a process found. Imports nothing, so that an interpreter of another program can return it, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Measurement:
    """What one process measured of one method of a comparison."""

    seconds: list[float]
    """Time of each repetition, or of each unit of work."""
    extra_bytes: int | None = None
    """Peak resident memory beyond what was there before the first repetition."""
    peak_bytes: int | None = None
    """Peak resident memory of the whole process; on a GPU the peak of its allocated memory."""
    value: list[float] = field(default_factory=list)
    """Numbers that both methods must agree in; empty where there is nothing to agree in."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else was measured, by name; written into the result."""


@dataclass(frozen=True)
class Skipped:
    """Why this machine cannot measure this."""

    reason: str
