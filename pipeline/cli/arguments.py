"""What the command lines of all commands share: their parser, words between commas, what they print."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.cli.plain_words import CommandParser, PlainHelp
from pipeline.config.settings import ConfigError
from pipeline.console.terminal import screen_width
from pipeline.console.text import fitted, one_line, printable

EXIT_DONE_IN_PART = 1
EXIT_WRONG_INPUT = 2

TRUST = "Import network classes from any package; its code then runs."
LINKS = "Follow symbolic links that lead out of a data set or folder."


def command_parser(command: str, function: Callable, usage: str | None = None) -> CommandParser:
    """A parser whose description is the docstring of the command's function, and whose errors are raised."""
    return CommandParser(
        prog=f"bodyseg {command}",
        description=function.__doc__,
        usage=usage,
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=PlainHelp,
    )


def with_value(arguments: list[str], flag: str, values: str, default: str, expected: str) -> list[str]:
    """Give a flag that stands alone its default: argparse would take the next path for its value.

    Args:
        arguments: the command line.
        flag: with its dashes.
        values: pattern of what may follow it as its value.
        default: its value where it stands alone.
        expected: its values in words.

    Raises:
        ConfigError: what follows is neither one of its values nor a flag or path.
    """
    result = []
    for argument, following in itertools.pairwise([*arguments, ""]):
        alone = argument == flag and not re.fullmatch(values, following)
        if alone and re.fullmatch(r"(-\d|\w)[\w,;+ ]*", following) and not Path(following).exists():
            raise ConfigError(f"{flag}: expected {expected}, found {following!r}")
        result.append(f"{flag}={default}" if alone else argument)
    return result


def complain(message: str, code: int = EXIT_WRONG_INPUT) -> int:
    """Print one line to standard error, on a terminal wrapped between words; the exit code is handed through."""
    print(fitted(f"bodyseg: {printable(one_line(message))}", screen_width(sys.stderr)), file=sys.stderr)
    return code


def warn(message: str) -> None:
    """Print a warning of one line to standard error."""
    complain(f"warning: {message}")


def say(line: str) -> None:
    """Print a line at once, on a terminal wrapped between words."""
    show(printable(line))


def show(text: str) -> None:
    """Print lines at once, on a terminal wrapped between words."""
    print(fitted(text, screen_width()), flush=True)
