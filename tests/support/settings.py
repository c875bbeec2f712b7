"""Settings as the command line reads them."""

from __future__ import annotations

from pipeline.cli.plain_words import CommandParser
from pipeline.cli.setting_flags import add_settings, parse
from pipeline.config.settings import Config


def settings(*arguments: str) -> Config:
    parser = CommandParser(prog="test", allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", metavar="FILE")
    add_settings(parser)
    return parse(parser, arguments)[0]
