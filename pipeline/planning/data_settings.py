"""Settings of the group data that say what a data set is: a plan takes these as given, and chooses the others."""

from __future__ import annotations

import json
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pipeline.config.settings import ConfigError, DataConfig, takes_texts, tuple_and_words

DESCRIBING = (
    "layout",
    "folds",
    "fold",
    "split_file",
    "split_shares",
    "class_names",
    "missing_masks",
    "label_remap",
    "subject_pattern",
    "follow_links",
    "skip_bad_cases",
    "intensity",
    "window",
    "mean_std",
    "percentiles",
    "fill_nan",
    "sided_pairs",
    "cache_dir",
    "cache_limit_gb",
)
"""How the data set is read and divided, what its labels and intensities mean, and where its prepared cases go."""


def refuse_chosen(given: Iterable[str]) -> None:
    """Raise ConfigError for the first of `given`, such as data.batch_size, that is not in `DESCRIBING`."""
    known = [f"data.{name}" for name in DESCRIBING]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{name}: bodyseg plan takes settings that describe the data set, and chooses the others or leaves "
                "them at their defaults; change it in the file that it writes, or give it to bodyseg train"
            )


def described(data: DataConfig, given: Collection[str] = ()) -> dict[str, Any]:
    """The settings of `DESCRIBING` that differ from their defaults, by name, as a config file has them.

    given: full names of settings that are kept with their defaults, too: a plan has others of its own.

    >>> described(DataConfig("scans", fill_nan=-1024, window=(-100, 300), batch_size=1))
    {'window': [-100, 300], 'fill_nan': -1024}
    """
    values = {name: getattr(data, name) for name in DESCRIBING}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value != getattr(DataConfig, name) or f"data.{name}" in given
    }


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings of the group data as the words of a command line.

    >>> as_flags({"window": [-100, 300], "label_remap": {7: "liver"}})
    ['--data.window', '-100', '300', '--data.label_remap', '{"7": "liver"}']
    >>> as_flags({"fill_nan": [-1024, 0]})
    ['--data.fill_nan', '[-1024, 0]']
    """
    words = []
    hints = typing.get_type_hints(DataConfig)
    for name, value in settings.items():
        takes_words = takes_texts(hints[name]) or tuple_and_words(hints[name]) is not None
        values = value if takes_words and isinstance(value, list) else [value]
        words += [f"--data.{name}", *(each if isinstance(each, str) else json.dumps(each) for each in values)]
    return words
