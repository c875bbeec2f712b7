"""Flags of `bodyseg check`."""

from __future__ import annotations

from dataclasses import replace

from pipeline.cli import setting_flags
from pipeline.cli.arguments import TRUST, command_parser, warn
from pipeline.cli.quick_imports import quick_imports
from pipeline.config.settings import Config, DataConfig, LossConfig, ModelConfig, TrainingConfig
from pipeline.config.without_effect import without_effect
from pipeline.console.progress import Bar
from pipeline.console.terminal import screen_width
from pipeline.console.text import some_of

_COST_SETTINGS = ("mode", "target_size", "batch_size", "num_workers", "cache_dir", "cache_limit_gb")


def run(arguments: list[str]) -> int:
    """Open every case of a data set once and say what is wrong with it, and what training on it will cost.

    Costs are estimated for the settings of a training: those of --config, or flags that change them; of a data set
    alone for a first training that is suggested. Exit code 0: nothing found; 1: warnings only; 2: errors.
    """
    parser = command_parser("check", run, "bodyseg check [DATASET ...] [--config FILE] [SETTING ...]")
    parser.add_argument(
        "dataset",
        nargs="*",
        type=str,
        default=[],
        metavar="DATASET",
        help="Folder or list file of a data set, or of several.",
    )
    parser.add_argument("--config", metavar="FILE", help="Settings of a training: checks its data and its costs.")
    parser.switch("--no_measure", "Take no training steps; only the disk that a training needs is then estimated.")
    parser.switch("--write_labels", "Write labels.json beside data without class names, for you to edit.")
    parser.switch("--trust_config", TRUST)
    parser.switch("--json", "Print JSON.")
    setting_flags.add_settings(parser)
    settings, flags = setting_flags.parse(parser, arguments)
    with quick_imports():
        from pipeline.check import check, to_json, to_text
        from pipeline.checks.draft_labels import draft_labels

    describes_training = bool(flags["config"]) or not flags["dataset"] or _changes_costs(settings)
    for note in without_effect(settings):
        warn(note)
    with Bar("Checking") as bar:
        if flags["write_labels"]:
            path, labels = draft_labels(settings, bar.update)
            names = some_of([name for name, value in labels.items() if value > 0], 4)
            warn(f"written to {path}: the classes are called {names}; name them before a training")
        report = check(
            settings,
            costs=describes_training,
            suggest=True,
            given=setting_flags.given_settings(parser, arguments),
            measure=not flags["no_measure"],
            trust=flags["trust_config"],
            progress=bar.update,
        )
    print(to_json(report) if flags["json"] else to_text(report, screen_width()))
    return report.exit_code


def _changes_costs(settings: Config) -> bool:
    """Say whether a setting that the costs of a training depend on differs from its default."""
    return (
        replace(settings.model, n_classes=None) != ModelConfig()
        or replace(settings.training, seed=TrainingConfig.seed) != TrainingConfig()
        or settings.loss != LossConfig()
        or any(getattr(settings.data, name) != getattr(DataConfig, name) for name in _COST_SETTINGS)
    )
