"""Settings that a training takes over from the run it starts from, beneath those of config files and flags."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.files import from_mapping, settings_of
from pipeline.config.settings import Config, ConfigError
from pipeline.console.text import printable

Groups = Mapping[str, Mapping[str, Any]]
Parse = Callable[[Groups | None], Groups]
"""Reads config files and flags over the settings given; returns every setting by group and key."""


def with_kept_settings(parse: Parse, *, resume: bool = False) -> Config:
    """Build the settings from config files and flags, over those that the run of training.start_from keeps.

    Args:
        parse: see `Parse`.
        resume: take them from the run that is resumed: what it was started from may be gone.

    Raises:
        ConfigError: an impossible combination of settings.
        NetworkError: what training.start_from names cannot be read.
    """
    groups = parse(None)
    start_from = groups["training"].get("start_from")
    if not start_from:
        return from_mapping(groups)
    if resume and (config := _of_resumed_run(parse, groups)):
        return config
    from pipeline.training.start_source import read_source  # torch, which --help does without

    return _over(parse, groups, read_source(start_from).kept, start_from)


def _of_resumed_run(parse: Parse, groups: Groups) -> Config | None:
    """The settings over those that a run of this name has kept, where they give that run's folder."""
    from pipeline.files.atomic import FileError
    from pipeline.runs.run_folder import RunFolder, run_name

    name, start_from = groups["experiment"]["name"], groups["training"]["start_from"]
    for path in sorted(Path(groups["experiment"]["log_dir"]).glob(f"{glob.escape(name)}_bs*")):
        try:
            training = RunFolder.at(path).read_config()["training"]
            kept = training.get("started_from", {}).get("kept", {})
            if training.get("start_from") != start_from:
                continue
            config = _over(parse, groups, kept, start_from)
        except (FileError, OSError, ConfigError, AttributeError, TypeError):
            continue  # a damaged run, or one of other settings
        if run_name(config) == path.name:
            return config
    return None


def _over(parse: Parse, groups: Groups, kept: Groups, start_from: str) -> Config:
    """Put the given settings over the kept ones, as far as they go together.

    A network that is given stands alone; a spacing or a proportion is of no use in another mode, nor a window for
    intensities that are scaled in another way.
    """
    layer = {group: dict(values) for group, values in kept.items()}
    if groups["model"].get("network") is not None:
        layer.pop("model", None)
    for key, way in (("window", "ct"), ("mean_std", "ct"), ("percentiles", "mr")):
        if groups["data"]["intensity"] not in ("auto", way):
            layer.get("data", {}).pop(key, None)
    found = parse(_checked(layer, start_from))
    mode = layer.get("data", {}).get("mode")
    if mode is not None and found["data"]["mode"] != mode:
        for key in ("mode", "target_size", "spacing_mm", "keep_aspect"):
            layer["data"].pop(key, None)
        found = parse(_checked(layer, start_from))
    return from_mapping(found)


def _checked(layer: Groups, start_from: str) -> Groups:
    try:
        return settings_of(layer, Path(start_from))
    except ConfigError as error:
        raise ConfigError(f"training.start_from {printable(start_from)}: damaged settings ({error})") from error
