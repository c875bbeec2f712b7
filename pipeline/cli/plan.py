"""Flags of `bodyseg plan`."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.cli import setting_flags
from pipeline.cli.arguments import command_parser, warn
from pipeline.cli.quick_imports import quick_imports
from pipeline.config.settings import ConfigError
from pipeline.console.progress import Bar
from pipeline.planning.data_settings import DESCRIBING, refuse_chosen

_UNITS = {"s": 1, "min": 60, "h": 3600}


def run(arguments: list[str]) -> int:
    """Choose the settings of a training from the data, this machine and the time at hand, and write them as a file.

    Checks every case, measures training steps here, and writes an ordinary config file in which every number has its
    reason. `bodyseg train --config FILE` then ends about when the time does.
    """
    usage = "bodyseg plan DATASET --budget 30min [--memory GB] [--output FILE] [SETTING ...]"
    parser = command_parser("plan", run, usage)
    parser.add_argument(
        "dataset", nargs="+", type=str, metavar="DATASET", help="Folder or list file of a data set, or of several."
    )
    parser.add_argument("--budget", default="1h", metavar="TIME", help="Time for the training, such as 30min or 8h.")
    parser.add_argument(
        "--memory", type=float | None, metavar="GB",
        help="Memory of the GPU, or where there is none of the machine, to plan for; training takes four fifths of it "
        "at most; default: all there is.",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("plan.yaml"), metavar="FILE", help="The file to write.")
    parser.add_argument("--exp_name", default="plan", metavar="NAME", help="Name of the training.")
    parser.switch("--json", "Print JSON.")
    names = [f"data.{name}" for name in DESCRIBING]
    setting_flags.add_settings(parser, names, setting_flags.SHORT_FLAGS | {"cache_dir": "data.cache_dir"})
    others = setting_flags.settings_without_flag(parser, arguments)
    refuse_chosen([name for name in others if name != "data.dataset_root"])
    settings, given = setting_flags.parse_some(parser, arguments)
    budget_s = parse_time(given["budget"])
    with quick_imports():
        from pipeline.plan import plan, to_json, to_text

    with Bar("Planning") as bar:
        report = plan(
            given["dataset"],
            budget_s,
            given["output"],
            name=given["exp_name"],
            memory_gb=given["memory"],
            data=settings.get("data"),
            progress=bar.update,
        )
    for warning in report.warnings:
        warn(warning)
    print(to_json(report) if given["json"] else to_text(report, budget_s))
    return 0


def parse_time(text: str) -> float:
    """Return the seconds of "90s", "30min", "8h" or "1.5h". Raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text.strip())
    if match is None:
        raise ConfigError(f"--budget: expected a time such as 30min or 8h, found {text!r}")
    return float(match[1]) * _UNITS[match[2]]
