"""Flags of `bodyseg train`."""

from __future__ import annotations

from pipeline.cli import setting_flags
from pipeline.cli.arguments import TRUST, command_parser, complain, say, warn
from pipeline.cli.quick_imports import quick_imports
from pipeline.compute.signals import Stopped
from pipeline.config.files import to_yaml
from pipeline.config.without_effect import without_effect


def run(arguments: list[str]) -> int:
    """Train a network on a folder of scans and leave a run folder."""
    parser = command_parser("train", run, "bodyseg train --dataset_root DIR [--config FILE] [SETTING ...]")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file of settings, or a run's training_config.json."
    )
    parser.switch("--print_config", "Print the settings as YAML and stop.")
    parser.switch("--resume", "Go on with the interrupted run of the same name.")
    parser.switch("--overwrite", "Delete an earlier run of the same name first.")
    parser.switch("--trust_config", TRUST)
    setting_flags.add_settings(parser)
    # jsonargparse takes a flag of this name for its own and expects a value after it.
    given = [argument for argument in arguments if argument != "--print_config"]
    settings, flags = setting_flags.parse(parser, given, resume="--resume" in given)
    if "--print_config" in arguments:
        print(to_yaml(settings), end="")
        return 0
    with quick_imports():
        from pipeline.compute.ranks import is_first_process
        from pipeline.train import train

    if is_first_process():
        for note in without_effect(settings):
            warn(note)
    try:
        train(
            settings,
            resume=flags["resume"],
            overwrite=flags["overwrite"],
            trust=flags["trust_config"],
            auto_is_new=True,
            say=say,
        )
    except Stopped as stop:
        if not is_first_process():
            return stop.exit_code
        instead = " instead of --overwrite" if flags["overwrite"] and "--resume" in stop.advice else ""
        return complain(f"training stopped by {stop}; {stop.advice}{instead}", stop.exit_code)
    except BrokenPipeError as error:  # not our output's, which say takes
        return complain(f"nothing was trained: {error}, from another process; see whether memory ran out")
    return 0
