"""Flags of `bodyseg compare`."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.arguments import command_parser, warn


def run(arguments: list[str]) -> int:
    """Compare runs: best mIoU, Dice where evaluated, epochs, parameters, time, and settings that differ.

    Epochs are numbered from 0, as in training_log.json.
    """
    parser = command_parser("compare", run)
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN", help="Run folders, cross-validations, or a folder of them."
    )
    parser.switch("--all", "Show memory and every setting that differs, also those that seldom explain a score.")
    parser.switch("--csv", "Print comma-separated values.")
    parser.switch("--json", "Print JSON.")
    given = parser.parse_args(arguments)
    from pipeline.compare import compare, to_csv, to_json, to_text

    table = compare(given.paths)
    print(to_json(table) if given.json else to_csv(table) if given.csv else to_text(table, all_settings=given.all))
    if given.csv:  # the table has no place for them
        for line in (*table.skipped, *table.seen, *table.incomplete, *table.left_out):
            warn(line)
    return 0
