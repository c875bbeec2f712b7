"""Flags of `bodyseg plot`."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.arguments import command_parser


def run(arguments: list[str]) -> int:
    """Draw the training curves of one or several runs."""
    parser = command_parser("plot", run)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="Run folders, or folders of runs; several share the axes."
    )
    parser.add_argument(
        "--output", type=Path | None, metavar="FILE",
        help="Picture to write, .png, .pdf or .svg; default: training_curves.png in the run, of several in the working "
        "folder.",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    from pipeline.plot import plot

    print(plot(given.runs, given.output))
    return 0
