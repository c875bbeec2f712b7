"""Flags of `bodyseg check-geometry`."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.arguments import command_parser, show, with_value
from pipeline.cli.quick_imports import quick_imports
from pipeline.console.progress import Bar


def run(arguments: list[str]) -> int:
    """Prove that preprocessing and its way back move, mirror and swap nothing, and say what the target size costs.

    Balls of 60, 20, 8 and 4 mm radius and sided markers go through the chain and back on 48 orientations and on
    oblique, anisotropic and odd grids. Exit code 0: the geometry holds; 1: it does not.
    """
    parser = command_parser("check-geometry", run, "bodyseg check-geometry [RUN | CONFIG] [OPTION ...]")
    parser.add_argument("target", nargs="?", type=Path, metavar="RUN|CONFIG", help="Run, checkpoint or settings file.")
    parser.add_argument(
        "--target_size",
        nargs=3,
        type=int,
        metavar="N",
        help="Voxels (left-right, back-front, foot-head) in place of the size, or the voxel size, of run or settings.",
    )
    parser.add_argument(
        "--keep_aspect", type=bool | None, nargs="?", const=True, metavar="true|false",
        help="Pad instead of stretching (or not), whatever run or settings say.",
    )  # fmt: skip
    parser.switch("--json", "Print JSON.")
    given = parser.parse_args(with_value(arguments, "--keep_aspect", "true|false", "true", "true or false"))
    with quick_imports():
        from pipeline.check_geometry import check_geometry, to_json, to_text

    with Bar("Round trips") as bar:
        report = check_geometry(
            given.target, target_size=given.target_size, keep_aspect=given.keep_aspect, progress=bar.update
        )
    if given.json:
        print(to_json(report))
    else:
        show(to_text(report))
    return report.exit_code
