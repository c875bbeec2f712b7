"""The command line of the benchmarks: which rows, how large; prints a table and writes one JSON file a row."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.readme import rewritten
from benchmarks.report import as_markdown, as_text, lines_of, read_results, write_result
from benchmarks.rows import FULL, REDUCED, ROWS, Places
from benchmarks.runner import BenchmarkError, run_row

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows asked for, or print what was measured as Markdown; 0, or 1 if a row failed."""
    given = _parser().parse_args(arguments)
    rows = given.rows.split(",") if given.rows else list(ROWS)
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        print(f"benchmarks: unknown row {unknown[0]!r}; known are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    if given.table:
        print(as_markdown(read_results(given.output, rows)))
        return 0
    if given.readme:
        README.write_text(rewritten(README.read_text(encoding="utf-8"), given.output), encoding="utf-8")
        return 0
    places = Places(given.hippocampus, given.nnunet)
    lines, failed = [], 0
    for row in rows:
        try:
            result = run_row(ROWS[row](FULL if given.full else REDUCED, places), _say)
        except BenchmarkError as error:
            print(f"benchmarks: row {row}: {error}", file=sys.stderr)
            failed = 1
            continue
        lines += lines_of(result)
        _say(f"written to {write_result(given.output, row, FULL if given.full else REDUCED, result, _command(given))}")
    print(as_text(lines))
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--full", action="store_true", help="The documented size, 160×160×256 (an hour).")
    parser.add_argument("--rows", metavar="ROW,…", help=f"Only these rows of {', '.join(ROWS)}.")
    parser.add_argument("--hippocampus", metavar="DIR", help="Folder of the hippocampus data set, for the row epoch.")
    parser.add_argument("--nnunet", metavar="BIN", help="bin folder of an environment with nnunetv2, for prediction.")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="Where the JSON files are.")
    parser.add_argument("--table", action="store_true", help="Measure nothing: print the results there as Markdown.")
    parser.add_argument("--readme", action="store_true", help="Measure nothing: write the results into README.md.")
    return parser


def _command(given: argparse.Namespace) -> str:
    """The command in general words: paths are this machine's own."""
    flags = ["--full"] * given.full + [f"--rows {given.rows}"] * bool(given.rows)
    places = ["--hippocampus DIR"] * bool(given.hippocampus) + ["--nnunet BIN"] * bool(given.nnunet)
    return " ".join(["python -m benchmarks", *flags, *places])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
