"""Flags of `bodyseg compare`."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.arguments import command_parser


def run(arguments: list[str]) -> int:
    """Compare runs: best mIoU, epochs, parameters, time, and the settings that differ."""
    parser = command_parser("compare", run)
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN", help="Run folders, cross-validations, or a folder of them."
    )
    parser.add_argument("--csv", action="store_true", help="Print comma-separated values.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    given = parser.parse_args(arguments)
    from pipeline.compare import compare, to_csv, to_json, to_text

    table = compare(given.paths)
    print(to_json(table) if given.json else to_csv(table) if given.csv else to_text(table))
    return 0
