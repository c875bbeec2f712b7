"""The time between two time stamps of a run's files."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def seconds_between(start: Any, end: Any) -> int | None:
    """The time between two time stamps of a run; None where one is damaged or the clock went back.

    >>> seconds_between("2024-01-15 10:30:00", "2024-01-15 10:31:05"), seconds_between(None, "2024-01-15 10:31:05")
    (65, None)
    """
    try:
        seconds = int((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
    except (TypeError, ValueError):
        return None
    return seconds if seconds >= 0 else None


def in_hours(seconds: int) -> str:
    """Write a time as hours, minutes and seconds.

    >>> in_hours(3725)
    '01:02:05'
    """
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
