"""Flags of `bodyseg compare`."""

from __future__ import annotations

import importlib
from pathlib import Path

from pipeline.cli.arguments import verb_parser


def run(arguments: list[str]) -> int:
    """Compare runs: best mIoU, epochs, parameters, time, and the settings that differ."""
    parser = verb_parser("compare", run)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN", help="Run folders, or a folder that holds them.")
    parser.add_argument("--csv", action="store_true", help="Print comma-separated values.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    given = parser.parse_args(arguments)
    module = importlib.import_module("pipeline.compare")
    table = module.compare(given.paths)
    print(module.to_json(table) if given.json else module.to_csv(table) if given.csv else module.to_text(table))
    return 0
