"""The settings in which runs differ, and those that are no longer what a run was begun with."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.config.files import as_mapping
from pipeline.config.settings import Config, DataConfig

NOT_COMPARED = (
    "experiment.",
    "system.",
    "loss.class_weights_stats",
    "loss.classes_that_never_occur",
    "data.check.",
    "data.intensity_found",
    "data.split.train",
    "data.split.val",
    "data.split.test",
    "data.cross_validation.fold",
    "model.base_channels",
    "model.total_parameters",
    "model.network_settings",
    "training.started_from.trained_on",
)
"""Beginnings of the keys that name the run, were found out by it, or have a column or hash of their own."""


SELDOM_COMPARED = (
    "data.augment_on_device",
    "data.augmented_on_device",
    "data.cache_dir",
    "data.cache_limit_gb",
    "data.channel_names",
    "data.cross_validation.",
    "data.follow_links",
    "data.intensity_scaling",
    "data.layout",
    "data.num_workers",
    "data.skipped_cases",
    "data.split.",
    "data.subject_pattern",
    "model.checkpointing",
    "model.class_names",
    "model.in_channels",
    "training.compile",
    "training.effective_precision",
    "training.n_gpus",
    "training.n_nodes",
    "training.n_processes",
    "training.on_nan_loss",
    "training.overlay_every",
    "training.started_from",
)
"""Beginnings of the keys that say where and how fast a run was computed, or follow from data and other settings."""


class ChangedSetting(NamedTuple):
    """A setting that is no longer what it was when a run was begun."""

    name: str
    """As "training.lr"."""
    before: Any
    now: Any
    was_there: bool
    """Whether the version of then had it; else `before` is its default."""

    @property
    def in_words(self) -> str:
        """As "training.lr 0.1, now 0.2"."""
        of_then = "" if self.was_there else " (the version of then had no such setting)"
        return f"{self.name} {json.dumps(self.before)}{of_then}, now {json.dumps(self.now)}"


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


def who_augmented(data: Mapping[str, Any]) -> bool | None:
    """Whether what was begun with this data group augments on the device that trains; None: that was left open.

    A run that was not told so found it out. It was the workers' work unless said otherwise, before it could be left
    open: the noise of a GPU is another.
    """
    told = data.get("augment_on_device", False)
    return data.get("augmented_on_device") if told is None else told


def changed_settings(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], may_change: Collection[str]
) -> Iterator[ChangedSetting]:
    """Find the settings that are no longer those of then, but for those that may change.

    A setting that the version of then did not have yet counts as its default: a new setting's default is what was done
    before it came. Where that is no longer so, the default of then must be named here, as `who_augmented` does. Left
    open, data.augment_on_device is what it was.

    Args:
        before: the settings, or a run's training_config.json.
        now: as `config.files.as_mapping` gives them.
        may_change: names of settings.
    """
    defaults = as_mapping(Config(data=DataConfig(dataset_root=".")))
    for group, values in now.items():
        then = before.get(group, {})
        for key, value in values.items():
            changed = ChangedSetting(f"{group}.{key}", then.get(key, defaults[group][key]), value, key in then)
            if changed.name == "data.augment_on_device":
                changed = changed._replace(before=None if value is None else who_augmented(then))
            if changed.before != value and changed.name not in may_change:
                yield changed
