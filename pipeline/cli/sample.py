"""Flags of `bodyseg sample`."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.arguments import command_parser
from pipeline.console.progress import Bar


def run(arguments: list[str]) -> int:
    """Write the embedded sample data set: whole-body phantoms with 70 labelled structures."""
    parser = command_parser("sample", run)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="Where to; nnU-Net raw layout.")
    parser.add_argument("--n_cases", type=int, default=24, metavar="N", help="Number of bodies.")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Decides every body and every grid.")
    parser.add_argument("--voxel_mm", type=float, default=7.0, metavar="MM", help="Mean voxel edge.")
    given = parser.parse_args(arguments)
    from pipeline.phantoms.sample_dataset import write_dataset

    with Bar("Writing phantoms") as bar:
        write_dataset(
            given.folder, n_cases=given.n_cases, seed=given.seed, voxel_mm=given.voxel_mm, progress=bar.update
        )
    print(given.folder)
    return 0
