"""Flags of `bodyseg report`."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.arguments import command_parser
from pipeline.cli.quick_imports import quick_imports


def run(arguments: list[str]) -> int:
    """Write runs and their scores as one HTML page that needs no server and fetches nothing.

    The page shows curves, scores by structure, and the worst cases with image, reference and prediction. It then holds
    images of patients; --no_images leaves them out.
    """
    parser = command_parser("report", run)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="SOURCE",
        help="Run folders (their evaluations are found), a folder of runs, a cross-validation, or metrics.json files.",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="Page to write.")
    parser.switch("--no_images", "Leave images, labels and predictions out.")
    parser.add_argument("--cases", type=int, default=6, metavar="N", help="Worst cases that can be looked at.")
    given = parser.parse_args(arguments)
    with quick_imports():
        from pipeline.report_page.report import report

    print(report(given.sources, given.output, images=not given.no_images, n_cases=given.cases))
    return 0
