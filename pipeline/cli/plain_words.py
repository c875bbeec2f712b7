"""The parser's help and errors in plain words: no Python types, the flag that was probably meant, what is expected."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, set_loader
from yaml import YAMLError

from pipeline.config.files import OTHER_NUMBER, read_yaml
from pipeline.config.settings import ConfigError
from pipeline.console.text import one_line

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping such as '{name: value}'",
    "list[list": "a list of lists such as '[[name, name]]'",
    "Path": "a path",
}
"""How the types of arguments are called."""


set_loader("yaml", read_yaml, (YAMLError, RecursionError))  # mappings as those of config files


class CommandParser(ArgumentParser):
    """A parser of one command: wrong arguments raise ConfigError with one plain line, and paths may stand anywhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse as `ArgumentParser` does. Raises ConfigError."""
        if args and any(not action.option_strings for action in self._actions):
            flags = {name: action for action in self._actions for name in action.option_strings}
            args = (_paths_in_front(args[0], flags), *args[1:])
        try:
            return super().parse_args(*args, **kwargs)
        except ArgumentError as error:
            raise ConfigError(explain(str(error), self)) from None
        except OverflowError:
            word = next(word for word in args[0] if re.search(r"\d{309}", word))
            raise ConfigError(f"{word:.20}…: expected numbers below 1e308, found over 308 digits; correct it") from None

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuse 1:30 and 0x10 for numbers, which would be read as 90 and 16, what no config file may hold, such as a
        key twice, and "" for a path, which would be the working folder: argparse asks here for each argument."""
        hint = type_of(action)
        if _takes_numbers(hint):
            for word in filter(OTHER_NUMBER.match, arg_strings):
                raise ConfigError(
                    f"{_named(action.dest, self)}: expected a decimal number without zeros in front, found {word}"
                )
        if _takes_yaml(hint):
            for word in arg_strings:
                _refuse_as_in_files(word, _named(action.dest, self))
        if "" in arg_strings and Path in (hint, *typing.get_args(hint)):
            name = _named(action.dest, self)
            raise ConfigError(f'{name}: expected a path, found "" (an empty shell variable?); the working folder is .')
        return super()._get_values(action, arg_strings)

    def switch(self, flag: str, words: str) -> None:
        """Add a flag without a value, which is False where it is left out; `words` are its help."""
        self.add_argument(flag, action="store_true", help=words)


def type_of(action: argparse.Action) -> Any:
    """The type of an argument's values, as the settings have it where jsonargparse reads them."""
    return getattr(action, "_typehint", action.type)


def _takes_numbers(hint: Any) -> bool:
    return hint in (int, float) or any(map(_takes_numbers, typing.get_args(hint)))


def _takes_yaml(hint: Any) -> bool:
    kinds = (dict, list)
    return hint in kinds or typing.get_origin(hint) in kinds or any(map(_takes_yaml, typing.get_args(hint)))


def _refuse_as_in_files(word: str, name: str) -> None:
    """Raise ConfigError where a mapping or list is YAML, but of a kind that `read_yaml` refuses."""
    try:
        if word.startswith(("{", "[")):
            read_yaml(word)
    except (ValueError, YAMLError, RecursionError) as error:
        if type(error) is YAMLError:  # of its subclasses is what is no YAML at all: the parser says what it expected
            what = re.sub(r"^line 1( and below)?: ", "", str(error))
            raise ConfigError(f"{name}: {what}") from None


def _paths_in_front(arguments: Sequence[str], flags: Mapping[str, argparse.Action]) -> list[str]:
    """Move what belongs to no flag to the front: argparse takes such arguments only where they stand together.

    >>> parser = argparse.ArgumentParser()
    >>> roi = parser.add_argument("--roi", nargs=3)
    >>> _paths_in_front(["run", "--roi", "9", "9", "9", "scans"], {"--roi": roi})
    ['run', 'scans', '--roi', '9', '9', '9']
    """
    front: list[str] = []
    behind: list[str] = []
    n_values = 0.0
    for word in arguments:
        if re.match(r"-(?![\d.])", word):
            behind.append(word)
            flag, n_values = flags.get(word), math.inf  # what follows an unknown flag stays where it is
            if "=" in word:
                n_values = 0
            elif flag is not None:
                nargs = 1 if flag.nargs is None else flag.nargs
                n_values = nargs if isinstance(nargs, int) else 1 if nargs == "?" else math.inf
        elif n_values > 0:
            behind.append(word)
            n_values -= 1
        else:
            front.append(word)
    return [*front, *behind]


class PlainHelp(DefaultHelpFormatter):
    """Help with the default where it says something, and without types."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if isinstance(action, argparse._HelpAction):
            return "Show this help."
        default = action.default
        says_nothing = default is None or default is False or default in ("", [], argparse.SUPPRESS)
        if says_nothing or not action.option_strings:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
        return f"{text} (default: {shown})".replace("%", "%%")


def explain(error: str, parser: ArgumentParser) -> str:
    """Turn the parser's message into one line: which argument, what was expected, what was found."""
    text = one_line(error).removeprefix("Parser key ")
    for pattern, say in _MESSAGES:
        if found := re.match(pattern, text):
            return say(found, parser)
    return text


def _unknown(found: re.Match, parser: ArgumentParser) -> str:
    arguments = found[1].split(" ")
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    if not flags:
        if "--dataset_root" in parser._option_string_actions:
            return f"unexpected {arguments[0]!r}; did you mean --dataset_root {arguments[0]}?"
        return f"unexpected {arguments[0]!r}; {parser.prog} --help explains what is expected"
    flag = flags[0]
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    meant = closest(flag, known) or next((option for option in known if option.endswith(f".{flag[2:]}")), None)
    remedy = f"did you mean {meant}?" if meant else f"{parser.prog} --help lists the known ones"
    return f"unknown flag {flag}; {remedy}"


def _missing(found: re.Match, parser: ArgumentParser) -> str:
    names = [_written(name, parser) for name in found[1].split(", ")]
    return f"expected {' and '.join(names)}; {parser.prog} --help explains"


def _number_of_values(found: re.Match, parser: ArgumentParser) -> str:
    n_values = found[2].replace("one argument", "a value after it").replace("argument", "value")
    return f"{found[1]}: expected {n_values}"


def _choice(found: re.Match, parser: ArgumentParser) -> str:
    return f"{_written(found[1], parser)}: expected one of {found[3].replace(chr(39), '')}, found {found[2]}"


def _switch(found: re.Match, parser: ArgumentParser) -> str:
    return f"{found[1]}: expected no value, found {found[2]}"


def _type(found: re.Match, parser: ArgumentParser) -> str:
    return f"{_named(found[1], parser)}{found[2] or ''}: expected {_expected(found[3])}, found {found[4]!r:.60}"


def _no_text(found: re.Match, parser: ArgumentParser) -> str:
    encoding = sys.getfilesystemencoding()
    return (
        f"{_written(found[1], parser)}: expected a name in the encoding {encoding}, found bytes that are none; rename "
        "the file, or set LC_ALL=C.UTF-8 where it is the locale that lacks its letters"
    )


_MESSAGES: tuple[tuple[str, Callable[[re.Match, ArgumentParser], str]], ...] = (
    (r"[Uu]nrecognized arguments: (.*)", _unknown),
    (r"the following arguments are required: (.*)", _missing),
    (r"argument (\S+): expected (.*)", _number_of_values),
    (r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", _choice),
    (r"argument (\S+): ignored explicit argument (.*)", _switch),
    (r'"([^"]+)".*surrogates not allowed', _no_text),
    (r'"([^"]+)"( element \d+)?: (.*)(?:Got|Given) value: ?(.*)', _type),
)
"""Messages of argparse and jsonargparse, and what says them in plain words."""


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant: the last part of a dotted name counts as the whole.

    >>> closest("--learning_rat", ["--data.learning_rate", "--seed"])
    '--data.learning_rate'
    >>> closest("--cache_dir", ["--data.cache_dir", "--data.cache_limit"])
    '--data.cache_dir'
    >>> closest("--out", ["--output", "--overwrite"])
    '--output'
    """
    wanted = word.lstrip("-").casefold()
    forms = {option.lstrip("-"): option for option in known}
    for option in known:
        forms.setdefault(option.lstrip("-").rpartition(".")[2], option)
    found = difflib.get_close_matches(wanted, forms, n=1, cutoff=0.7)
    longer = sorted((form for form in forms if wanted and form.startswith(wanted)), key=len)
    return forms[(found + longer)[0]] if found or longer else None


def _named(name: str, parser: ArgumentParser) -> str:
    """How an argument with a wrong value is called: a setting by its full name."""
    return name if "." in name else _written(name, parser)


def _written(name: str, parser: ArgumentParser) -> str:
    """How a person writes an argument: its flag, or what the usage calls it."""
    for action in parser._actions:
        if name in (action.dest, *action.option_strings):
            if action.option_strings:
                return action.option_strings[0]
            return str(action.metavar or "|".join(action.choices or ()) or action.dest)
    return name


def _expected(text: str) -> str:
    """Say in words what a type check expected: words, a number beside them, or the first of several types."""
    kind = re.search(
        r"(?:<class '(?:\w+\.)*|Expected an? |Subtypes: \[)(int|float|bool|str|dict|list\[list|Path)\b", text
    )
    if choices := re.search(r"Literal\[([^]]*)\]", text):
        number = f"{_EXPECTED[kind[1]]} or " if kind and kind[1] in ("int", "float") else ""
        words = choices[1].replace(chr(39), "")
        return f"{number}{words if number and ',' not in words else f'one of {words}'}"
    return _EXPECTED[kind[1]] if kind else "another value"
