"""Settings as flags: one flag for every setting, its help from the setting's docstring; flags win over files."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from yaml import YAMLError

from pipeline.cli.arguments import with_value
from pipeline.cli.kept_settings import Groups, with_kept_settings
from pipeline.cli.plain_words import explain, type_of
from pipeline.config.files import load_mapping, read_yaml
from pipeline.config.settings import GROUPS, Config, ConfigError, takes_texts, tuple_and_words

SHORT_FLAGS: dict[str, str] = {
    "exp_name": "experiment.name",
    "log_dir": "experiment.log_dir",
    "dataset_root": "data.dataset_root",
    "follow_links": "data.follow_links",
    "skip_bad_cases": "data.skip_bad_cases",
    "target_size": "data.target_size",
    "batch_size": "data.batch_size",
    "num_workers": "data.num_workers",
    "data_aug": "data.data_aug",
    "base_channels": "model.base_channels",
    "use_light_model": "model.use_light_model",
    "lr": "training.lr",
    "weight_decay": "training.weight_decay",
    "max_epochs": "training.max_epochs",
    "warmup_epochs": "training.warmup_epochs",
    "n_gpus": "training.n_gpus",
    "precision": "training.precision",
    "seed": "training.seed",
    "use_class_weights": "loss.use_class_weights",
    "weight_alpha": "loss.weight_alpha",
}
"""The documented flags beside the full ones."""

ALL = tuple(f"{group}.{setting.name}" for group, cls in GROUPS.items() for setting in fields(cls))
"""The full names of all settings."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+|inf|nan)(e[-+]?\d+)?", re.IGNORECASE)

_METAVARS = {int: "N", float: "X", str: "NAME", list[int]: "[N,N,…]"}


def add_settings(
    parser: ArgumentParser, names: Collection[str] = ALL, short_flags: Mapping[str, str] = SHORT_FLAGS
) -> None:
    """Give `parser` one flag for every setting of `names`, a short flag beside the full one where it has one."""
    short_of = {full: short for short, full in short_flags.items()}
    for group_name, cls in GROUPS.items():
        if not any(name.startswith(f"{group_name}.") for name in names):
            continue
        group = parser.add_argument_group(group_name, cls.__doc__ or "")
        hints = typing.get_type_hints(cls)
        texts = {p.arg_name: p.description or "" for p in parse_from_object(cls).params}
        for setting in fields(cls):
            key = f"{group_name}.{setting.name}"
            if key not in names:
                continue
            flags = [f"--{key}"] + ([f"--{short_of[key]}"] if key in short_of else [])
            group.add_argument(*flags, help=texts[setting.name], **_argument_of(hints[setting.name], setting))


def _argument_of(hint: Any, setting: dataclasses.Field) -> dict[str, Any]:
    """Turn a field's type and default into the keyword arguments of `add_argument`."""
    default: Any = setting.default
    if hint is bool:
        return {"type": bool, "nargs": "?", "const": True, "default": default, "metavar": "true|false"}
    if takes_texts(hint):
        return {"type": str, "nargs": "+", "default": [default] if default else [], "metavar": setting.name.upper()}
    form = tuple_and_words(hint)
    if form is not None and form[1]:
        number = typing.get_args(form[0])[0]
        metavar = "|".join((*form[1], "X X" if number in (int, float) else "…"))
        return {"type": number | Literal[form[1]], "nargs": "+", "default": [default], "metavar": metavar}
    if form is not None:
        elements = typing.get_args(hint)
        count = "*" if elements[-1] is Ellipsis else len(elements)
        # A list: jsonargparse checks the elements in place.
        metavar = _METAVARS.get(elements[0], setting.name.upper())
        return {"type": elements[0], "nargs": count, "default": list(default), "metavar": metavar}
    if any(typing.get_origin(part) is dict for part in typing.get_args(hint)):
        hint = dict | None  # of Any: texts in it would be read as YAML again, and a class named "1" be an index
    argument: dict[str, Any] = {"type": hint, "default": default}
    if not isinstance(hint, types.UnionType) and typing.get_origin(hint) is Literal:
        return argument
    return argument | {"metavar": "true|false|null" if hint == bool | None else setting.name.upper()}


def parse(parser: ArgumentParser, arguments: Sequence[str], *, resume: bool = False) -> tuple[Config, dict[str, Any]]:
    """Read flags (and the files named by `--config`, under the flags) into a Config.

    A parser may have an argument "dataset" of any number of words without dashes, anywhere among the flags: they are
    data.dataset_root.

    Args:
        parser: made with `exit_on_error=False`, `add_settings` and a `--config` that may be given several times.
        arguments: the command line without the program's name and command.
        resume: whether an interrupted run is to go on, see `kept_settings`.

    Returns:
        The settings, and the values of the parser's other flags.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible combination, by name.
        NetworkError: what training.start_from names cannot be read.
    """
    files = [load_mapping(path) for path in _config_files(arguments)]
    others: dict[str, Any] = {}

    def over(beneath: Groups | None) -> Groups:
        base = None
        try:
            for document in ([] if beneath is None else [beneath]) + files:
                base = parser.parse_object(copy.deepcopy(document), namespace=base)
            parsed = _parsed(parser, arguments, base)
        except ArgumentError as error:
            raise ConfigError(explain(str(error), parser)) from None
        groups = {name: parsed.pop(name) for name in GROUPS}
        if parsed.get("dataset"):
            if any(argument.split("=")[0] in ("--dataset_root", "--data.dataset_root") for argument in arguments):
                found = " ".join(parsed["dataset"])
                raise ConfigError(f"{found} and --dataset_root both name a data set; leave one out")
            groups["data"]["dataset_root"] = parsed["dataset"]
        others.update(parsed)
        return groups

    return with_kept_settings(over, resume=resume), others


def parse_some(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Read flags where `parser` has those of some settings alone.

    Returns:
        Those of these settings that are given, by group and name, and the values of the parser's other flags.

    Raises:
        ConfigError: an unknown flag or a wrong type, by name.
    """
    parsed = _parsed(parser, arguments, None)
    settings = {name: parsed.pop(name) for name in GROUPS if name in parsed}
    given = given_settings(parser, arguments)
    return {
        group: {name: value for name, value in values.items() if f"{group}.{name}" in given}
        for group, values in settings.items()
    }, parsed


def given_settings(parser: ArgumentParser, arguments: Sequence[str]) -> set[str]:
    """The full names of the settings that are given by flags that `parser` has, also where they have their default."""
    flags, actions = _flags(arguments), parser._option_string_actions
    given = {actions[flag].dest if flag in actions else flag.removeprefix("--") for flag in flags}
    # --data.label_remap.7 is an entry of a setting
    return {".".join(name.split(".")[:2]) for name in given} & set(ALL)


def settings_without_flag(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """The full names of the settings that are given, by long or short flags, to a parser that lacks these."""
    unknown = [flag.removeprefix("--") for flag in _flags(arguments) if flag not in parser._option_string_actions]
    return [SHORT_FLAGS.get(name, name) for name in unknown if SHORT_FLAGS.get(name, name) in ALL]


def _flags(arguments: Sequence[str]) -> list[str]:
    """The words that are flags, without the value that follows "=" in some."""
    return [word.partition("=")[0] for word in arguments if word.startswith("--")]


def _parsed(parser: ArgumentParser, given: Sequence[str], base: Namespace | None) -> dict[str, Any]:
    """The values of all flags, with a data set behind the values of a list in its place. Raises ConfigError."""
    arguments = _with_true(parser, _with_lists(parser, given))
    apart = _with_dataset_in_front(parser, arguments)
    may_be_apart = apart != arguments and any(action.dest == "dataset" for action in parser._actions)
    as_written: ConfigError | None = None
    try:
        parsed = _parsed_as_given(parser, arguments, copy.deepcopy(base))
        if not may_be_apart or parsed["dataset"] or parsed["data"]["dataset_root"]:
            return parsed
    except ConfigError as error:
        if not may_be_apart:
            raise
        as_written = error
    try:
        parsed = _parsed_as_given(parser, apart, base)
    except ConfigError as error:
        raise as_written or error from None
    if as_written and len(parsed["dataset"]) > 1 and not Path(apart[0]).exists():
        raise as_written  # a wrong value behind a data set that is named already
    return parsed


def _parsed_as_given(parser: ArgumentParser, arguments: list[str], base: Namespace | None) -> dict[str, Any]:
    """The values of all flags; one of a single entry, --model.network.norm batch, is of its type in a config file."""
    parsed: dict[str, Any] = parser.parse_args(arguments, namespace=base).as_dict()
    for found in filter(None, (re.match(r"--(\w+)\.(\w+)\.([^=]+)", argument) for argument in arguments)):
        group, name, entry = found.groups()
        mapping = parsed[group][name] if group in GROUPS else None
        if isinstance(mapping, dict) and isinstance(mapping.get(entry), str):
            with contextlib.suppress(ValueError, YAMLError):
                mapping[entry] = read_yaml(mapping[entry])
    return parsed


def _with_dataset_in_front(parser: ArgumentParser, arguments: list[str]) -> list[str]:
    """Move the data set in front where it stands behind the values of a list, which argparse would add it to.

    That is the last word behind a flag which takes any number of values: where they are numbers one that is none, where
    they are names that of a path that exists.
    """
    for position, flag in enumerate(arguments):
        action = parser._option_string_actions.get(flag)
        if action is None or action.nargs not in ("+", "*") or "." not in flag:
            continue
        hint = type_of(action)
        end = next((i for i in range(position + 1, len(arguments)) if arguments[i].startswith("--")), len(arguments))
        last = arguments[end - 1]
        is_value = not Path(last).exists() if hint is str else _is_number_or_word(last, hint)
        if end > position + 1 and not is_value:
            return [last, *arguments[: end - 1], *arguments[end:]]
    return arguments


def _is_number_or_word(text: str, hint: Any) -> bool:
    """Say whether a text is a value of a list of numbers, of lists of them, or of words like auto."""
    words = [word for part in typing.get_args(hint) for word in typing.get_args(part)]
    return text in words or text.startswith("[") or _NUMBER.fullmatch(text) is not None


def _with_lists(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Write several numbers behind a flag of one number or a list (--data.fill_nan -1024 0) as that list."""
    given = list(arguments)
    for flag, action in parser._option_string_actions.items():
        hint = type_of(action)
        if not {float, list[float]} <= set(typing.get_args(hint)):
            continue
        for start in [place for place, word in enumerate(given, 1) if word == flag][::-1]:
            numbers = list(itertools.takewhile(_NUMBER.fullmatch, given[start:]))
            if len(numbers) > 1:
                given[start : start + len(numbers)] = [f"[{', '.join(numbers)}]"]
    return given


def _with_true(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Give switches that stand alone (--data_aug) their value: argparse would take the next path for it."""
    given = list(arguments)
    values_of = {
        bool: (r"(?i)true|false|yes|no", "true, false, yes or no"),
        bool | None: (r"(?i)true|false|yes|no|null", "true, false, yes, no or null"),
    }
    for flag, action in parser._option_string_actions.items():
        hint = type_of(action)
        if hint in values_of:
            pattern, values = values_of[hint]
            given = with_value(given, flag, pattern, "true", values)
    return given


def _config_files(arguments: Sequence[str]) -> list[Path]:
    found = []
    for position, argument in enumerate(arguments):
        if argument.startswith("--config="):
            found.append(Path(argument.removeprefix("--config=")))
        elif argument == "--config":
            if position + 1 == len(arguments):
                raise ConfigError("--config: expected a file after it")
            found.append(Path(arguments[position + 1]))
    return found
