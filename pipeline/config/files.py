"""Read settings from YAML and JSON files, and write them as mappings and YAML."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.settings import (
    FOUND_OUT,
    GROUPS,
    Config,
    ConfigError,
    require,
    takes_texts,
    tuple_and_words,
)

OTHER_ROOTS = "other_dataset_roots"
"""Key of the data group in a run's training_config.json: the data sets behind the first, where there are several. Its
data.dataset_root is documented as one text."""

LARGEST_CONFIG = 16 * 2**20
"""Bytes; a run's training_config.json with the split of 100,000 cases takes under 4 MB."""


OTHER_NUMBER = re.compile(r"[-+]?(0[\dbx][\da-fA-F_.:]*|\d[\d_.]*[_:][\d_.:eE+-]*)$")
"""What YAML 1.1 takes for a number and nobody means by it: 1:30 is 90 and 010 is 8."""


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a dozen lines of them stand for more values than memory holds ("billion laughs").

    Numbers may have an exponent without a point (1e-5), as in JSON and YAML 1.2, and dates are texts; `OTHER_NUMBER` is
    refused.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"line {mark.line + 1} has an alias (*name); write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            (twice, *_) = [key for n, key in enumerate(keys) if key in keys[:n]]
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} and below: {_TWICE.format(twice)}")
        return mapping

    def construct_decimal(self, node: yaml.ScalarNode) -> int | float:
        if OTHER_NUMBER.match(node.value):
            raise yaml.YAMLError(
                f"line {node.start_mark.line + 1}: expected a decimal number, found {node.value}; write one, without "
                "zeros in front, or a text in quotes, or a blank behind the colon of a mapping"
            )
        is_whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


class _PlainDumper(yaml.SafeDumper):
    """Writes what `_PlainLoader` reads back: texts that look like its numbers in quotes, and the line separator that
    readers would take for a blank escaped."""

    def analyze_scalar(self, scalar: str) -> Any:
        analysis = super().analyze_scalar(scalar)
        analysis.allow_single_quoted = analysis.allow_single_quoted and "\x85" not in scalar
        return analysis


_WITH_EXPONENT = ("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))
_PlainLoader.add_implicit_resolver(*_WITH_EXPONENT)
_PlainDumper.add_implicit_resolver(*_WITH_EXPONENT)
# YAML 1.1 takes 010 for a number, 08 for a text
_ZERO_IN_FRONT = ("tag:yaml.org,2002:int", re.compile(r"[-+]?0\d+$"), list("-+0"))
_PlainLoader.add_implicit_resolver(*_ZERO_IN_FRONT)
_PlainDumper.add_implicit_resolver(*_ZERO_IN_FRONT)
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_decimal)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_decimal)
_PlainLoader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: str(node.value))

_TWICE = "{!r} is given twice; the last would silently replace the first: keep one"


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(_TWICE.format(key))
        found[key] = value
    return found


def read_yaml(text: str) -> Any:
    """Read YAML as config files have it: plain types, no aliases, no key twice. Raises YAMLError, or ValueError."""
    return yaml.load(text.encode(), _PlainLoader)  # encoded: names that are no text are told from wrong YAML


def write_yaml(value: Any, *, in_one_line: bool = False) -> str:
    """Write plain types as YAML that `read_yaml` reads back, mappings in their own order."""
    width = 10**6 if in_one_line else None
    return yaml.dump(
        value, Dumper=_PlainDumper, default_flow_style=in_one_line, allow_unicode=True, sort_keys=False, width=width
    )


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file of settings; what a run found out by itself is left out.

    Raises:
        ConfigError: the file is missing or damaged, gives a key twice, or is not a mapping of the five groups.
    """
    try:
        with open(path, encoding="utf-8", opener=_opened) as file:
            text = file.read(LARGEST_CONFIG + 1)
        require(len(text) <= LARGEST_CONFIG, f"--config {path}: expected settings, found over {LARGEST_CONFIG} bytes")
        if path.suffix == ".json":
            document = json.loads(text, object_pairs_hook=_object_without_duplicates)
        else:
            document = read_yaml(text)
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error})") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"--config {path}: cannot be read as {kind} ({' '.join(str(error).split())})") from None
    return settings_of(document, path)


def settings_of(document: Any, path: Path) -> dict[str, Any]:
    """Return the settings in a document of groups as the parser takes them, see `load_mapping`. Raises ConfigError.

    Args:
        document: plain groups, as YAML and JSON have them.
        path: where they come from.
    """
    require(
        isinstance(document, Mapping), f"--config {path}: expected the groups {', '.join(GROUPS)}, found no mapping"
    )
    unknown = [key for key in document if key not in GROUPS and key != "system"]
    require(not unknown, f"--config {path}: unknown group {unknown[:1]}; known are {', '.join(GROUPS)}")
    settings: dict[str, Any] = {}
    for group, cls in GROUPS.items():
        if group in document:
            settings[group] = _settings_of_group(path, group, cls, document[group])
    return settings


def _opened(name: str, flags: int) -> int:
    """Open a pipe, too, as a shell's <(…) is one, but do not wait for somebody to open its other end."""
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _settings_of_group(path: Path, group: str, cls: type, values: Any) -> dict[str, Any]:
    require(isinstance(values, Mapping), f"--config {path}: group {group} must hold settings, found {values!r:.60}")
    if group == "data":
        try:
            values = with_roots_together(values)
        except ConfigError as error:
            raise ConfigError(f"--config {path}: {error}") from None
    known = [f.name for f in fields(cls)]
    for key in values:
        require(
            key in known or key in FOUND_OUT[group],
            f"--config {path}: unknown setting {group}.{key}; known are {', '.join(known)}",
        )
    kept = {key: value for key, value in values.items() if key in known}
    hints = typing.get_type_hints(cls)
    for key, value in kept.items():
        _checked(f"{group}.{key}", hints[key], value)
        if isinstance(value, str) and (takes_texts(hints[key]) or tuple_and_words(hints[key])):
            kept[key] = [value]  # as the flag gives it
    if isinstance(kept.get("precision"), int):
        kept["precision"] = str(kept["precision"])  # YAML reads a bare 16 as a number
    return kept


def from_mapping(groups: Mapping[str, Mapping[str, Any]]) -> Config:
    """Build a Config from plain groups whose values have the right types already.

    Raises:
        ConfigError: a value that is null, out of range or contradicts another, by name.
    """
    built = {}
    for group, cls in GROUPS.items():
        hints = typing.get_type_hints(cls)
        values = groups.get(group, {}).items()
        built[group] = cls(**{key: _checked(f"{group}.{key}", hints[key], value) for key, value in values})
    return Config(**built)


def _checked(key: str, hint: Any, value: Any) -> Any:
    """The value as the settings have it; refuses what their types have no place for, and the parser no message."""
    require(
        value is not None or type(None) in typing.get_args(hint),
        f"{key}: expected a value, found null; give one, or leave the setting out",
    )
    require(
        not (hint is str or takes_texts(hint)) or not isinstance(value, int | float),
        f"{key}: expected a text, found the number {value}; write it in quotes",
    )
    require(
        not takes_texts(hint) or isinstance(value, str | list | tuple),
        f"{key}: expected a text, or a list of texts, found {value!r:.60}",
    )
    require(
        hint is str or takes_texts(hint) or not re.search(r"\d{309}", str(value)),
        f"{key}: expected numbers below 1e308, found one of over 308 digits; correct it",
    )
    if takes_texts(hint) and isinstance(value, list | tuple):
        return value[0] if len(value) == 1 else tuple(value) or ""
    form = tuple_and_words(hint)
    return value if form is None else _as_tuple(key, form, value)


def _as_tuple(key: str, form: tuple[Any, tuple[str, ...]], value: Any) -> tuple | str:
    """Check the length of a list; one of the words that may stand for it comes back as it is."""
    hint, words = form
    for word in words:
        if value in (word, [word]):
            return word
    elements = typing.get_args(hint)
    require(isinstance(value, list | tuple), f"{key}: expected a list, found {value!r:.60}")
    require(
        elements[-1] is Ellipsis or len(value) == len(elements),
        f"{key}: expected {len(elements)} values, found {len(value)}",
    )
    return tuple(value)


def as_mapping(config: Config) -> dict[str, dict[str, Any]]:
    """Every setting as plain JSON types, in the documented order; nulls stay."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def with_roots_apart(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data group as training_config.json has it: data.dataset_root a text, the other data sets under OTHER_ROOTS.

    >>> with_roots_apart({"dataset_root": ["a", "b", "c"], "fold": 0})
    {'dataset_root': 'a', 'other_dataset_roots': ['b', 'c'], 'fold': 0}
    """
    written: dict[str, Any] = {}
    for key, value in data.items():
        written[key] = value
        if key == "dataset_root" and isinstance(value, list | tuple):
            written |= {key: value[0], OTHER_ROOTS: list(value[1:])}
    return written


def with_roots_together(data: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `with_roots_apart`; runs of earlier versions have their data sets in one list already.

    >>> with_roots_together({"dataset_root": "a", "other_dataset_roots": ["b", "c"], "fold": 0})
    {'dataset_root': ['a', 'b', 'c'], 'fold': 0}

    Raises:
        ConfigError: no first data set, or others that are no list of texts.
    """
    read = dict(data)
    if OTHER_ROOTS not in read:
        return read
    others, first = read.pop(OTHER_ROOTS), read.get("dataset_root")
    is_right = isinstance(others, list) and all(isinstance(root, str) for root in (first, *others))
    require(
        is_right,
        f"data.{OTHER_ROOTS}: expected a list of the data sets behind the one of data.dataset_root, found "
        f"{others!r:.60} behind {first!r:.60}",
    )
    return read | {"dataset_root": [first, *others]} if others else read


def to_yaml(config: Config) -> str:
    """The settings as a YAML file that `--config` reads."""
    return write_yaml(as_mapping(config))
