"""The settings in which runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOT_COMPARED = (
    "experiment.",
    "system.",
    "loss.class_weights_stats",
    "loss.classes_that_never_occur",
    "data.intensity_found",
    "data.split.train",
    "data.split.val",
    "data.split.test",
    "data.cross_validation.fold",
    "model.base_channels",
    "model.total_parameters",
    "model.network_settings",
)
"""Beginnings of the keys that name the run, were found out by it, or have a column or hash of their own."""


def flat_settings(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting under its whole name.

    >>> dict(flat_settings({"training": {"lr": 0.1}}))
    {'training.lr': 0.1}
    """
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat_settings(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the keys with more than one value, in the configs' own order; an absent key counts as null.

    Args:
        configs: of each run, as `flat_settings` gives them.
    """
    keys = {key: None for config in configs for key in config if not key.startswith(NOT_COMPARED)}
    return [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
