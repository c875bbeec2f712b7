"""Flags of `bodyseg check`."""

from __future__ import annotations

from pipeline.cli import setting_flags
from pipeline.cli.arguments import TRUST, command_parser
from pipeline.console.progress import Bar


def run(arguments: list[str]) -> int:
    """Open every case of a data set once and say what is wrong with it, and what training on it will cost.

    Exit code 0: nothing found; 1: warnings only; 2: errors.
    """
    parser = command_parser("check", run, "bodyseg check DATASET | --config FILE [SETTING ...]")
    parser.add_argument("dataset", nargs="?", type=str, metavar="DATASET", help="Folder or list file of a data set.")
    parser.add_argument("--config", metavar="FILE", help="Settings of a training: checks its data and its costs.")
    parser.add_argument("--no_measure", action="store_true", help="Estimate costs without a real training step.")
    parser.add_argument("--trust_config", action="store_true", help=TRUST)
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    setting_flags.add_settings(parser)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--dataset_root", arguments[0], *arguments]
    settings, flags = setting_flags.parse(parser, arguments)
    from pipeline.check import check, to_json, to_text

    target = settings if flags["config"] else flags["dataset"] or settings
    with Bar("Checking") as bar:
        report = check(
            target,
            measure=not flags["no_measure"],
            trust=flags["trust_config"],
            progress=bar.update,
        )
    print(to_json(report) if flags["json"] else to_text(report))
    return report.exit_code
