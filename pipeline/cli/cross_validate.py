"""Flags of `bodyseg cross-validate`."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Literal

from pipeline.cli import setting_flags
from pipeline.cli.arguments import TRUST, command_parser, say, warn
from pipeline.cli.quick_imports import quick_imports
from pipeline.compute.signals import Stopped
from pipeline.config.settings import ConfigError
from pipeline.config.without_effect import without_effect
from pipeline.console.terminal import screen_width
from pipeline.console.text import fitted, printable

if TYPE_CHECKING:  # what computes is imported when the command runs: help answers without torch
    from pipeline.cross_validate import StudyReport


def run(arguments: list[str]) -> int:
    """Train a network for each fold of the cases, and score every case by the network that has not seen it.

    The cases are divided by patient into folds (data.folds; 5, unless the data set brings its own). For each fold a
    network is trained on the others; then it segments the cases of its fold, and all of them are scored together.
    LOG_DIR/NAME (--exp_name) holds a run for each fold, the segmentations, and metrics.json; `bodyseg predict
    LOG_DIR/NAME SCANS` segments new scans with all networks together. Stopped or killed at any moment, the same command
    goes on where it stood. In a SLURM job array each task trains the fold of its number, and the one that finishes last
    scores. Exit code 0: done, or this call's folds are; 1: some cases could not be segmented or scored.
    """
    parser = command_parser(
        "cross-validate", run, "bodyseg cross-validate --dataset_root DIR [--config FILE] [SETTING ...]"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file of settings, or a run's training_config.json."
    )
    parser.add_argument(
        "--folds", default="", metavar="N,N",
        help="Folds that this call trains, such as 0,1,2; all: every one. Left out, that of SLURM_ARRAY_TASK_ID where "
        "a job array sets it, else all.",
    )  # fmt: skip
    parser.switch("--json", "Print JSON at the end; what happens goes to standard error.")
    parser.switch("--trust_config", TRUST)
    setting_flags.add_settings(parser)
    settings, flags = setting_flags.parse(parser, arguments)
    chosen = _folds(flags["folds"])
    with quick_imports():
        from pipeline.compute.ranks import is_first_process
        from pipeline.cross_validate import cross_validate

    if is_first_process():
        for note in without_effect(settings):
            warn(note)
    try:
        report = cross_validate(
            settings,
            folds=chosen,
            trust=flags["trust_config"],
            workers=None,
            auto_is_new=True,
            say=_say_on_standard_error if flags["json"] else say,
        )
    except Stopped as stop:
        if not is_first_process():
            return stop.exit_code
        raise
    if is_first_process():
        print(json.dumps(report.to_document(), indent=2) if flags["json"] else _text(report))
        if report.incomplete:
            warn(report.incomplete)
    return report.evaluation.exit_code if report.evaluation is not None else 0


def _folds(text: str) -> list[int] | Literal["all"] | None:
    if text in ("", "all"):
        return "all" if text else None
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
        raise ConfigError(f"--folds: expected numbers such as 0,1,2, or all, found {text!r}")
    return [int(number) for number in text.split(",")]


def _say_on_standard_error(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def _text(report: StudyReport) -> str:
    from pipeline.evaluation.report import evaluation_text

    lines = [""]
    for fold in report.folds:
        best = "undefined" if fold.best_val_miou is None else f"{fold.best_val_miou:.4f}"
        lines.append(f"fold {fold.number}: {fold.status}, {fold.n_epochs} epochs, best val mIoU {best}")
    if report.evaluation is None:
        missing = ", ".join(map(str, report.unfinished))
        if missing:
            lines.append(
                f"Folds still missing: {missing}; run the same command again, or let the others finish; whoever is "
                "last segments and scores all cases"
            )
        return fitted("\n".join(map(printable, lines)), screen_width())
    folder = report.folder
    lines += [
        f"Scores: {folder.metrics}; segmentations: {folder.predictions}",
        f"All {len(report.folds)} networks together: bodyseg predict {folder.path} SCANS --output DIR",
    ]
    width = screen_width()
    return "\n".join([evaluation_text(report.evaluation, width), fitted("\n".join(map(printable, lines)), width)])
