"""Flags of `bodyseg plot`."""

from __future__ import annotations

import importlib
from pathlib import Path

from pipeline.cli.arguments import verb_parser


def run(arguments: list[str]) -> int:
    """Draw the training curves of one or several runs."""
    parser = verb_parser("plot", run)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="Run folders; several share the axes.")
    parser.add_argument("--output", type=Path | None, metavar="FILE", help="Picture to write (PNG).")
    given = parser.parse_args(arguments)
    print(importlib.import_module("pipeline.plot").plot(given.runs, given.output))
    return 0
