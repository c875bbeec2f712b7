"""How long a run has trained, and the time between two time stamps of its files."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.runs.history import TrainingLog


def training_time(config: Mapping[str, Any], log: TrainingLog, summary: Mapping[str, Any]) -> float | None:
    """Seconds that the finished epochs of a run took.

    Of a run that an earlier version began, those from its start to its end, pauses included; None where unknown.

    Args:
        config: training_config.json.
        log: training_log.json.
        summary: training_summary.json; empty where there is none.
    """
    if log.training_seconds is not None:
        return log.training_seconds
    return seconds_between(config["experiment"].get("start_time"), summary.get("completion_time") or log.last_update)


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


def in_hours(seconds: float) -> str:
    """Write a time as hours, minutes and seconds.

    >>> in_hours(3725)
    '01:02:05'
    """
    seconds = int(seconds)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
