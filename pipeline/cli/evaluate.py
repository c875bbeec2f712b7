"""Flags of `bodyseg evaluate`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from pipeline.cli.arguments import LINKS, TRUST, command_parser, show
from pipeline.cli.quick_imports import quick_imports
from pipeline.config.settings import ConfigError
from pipeline.console.progress import Bar
from pipeline.console.terminal import screen_width
from pipeline.console.text import counted, printable, some_of
from pipeline.files.atomic import check_writable

if TYPE_CHECKING:  # what computes is imported when the command runs: help answers without torch
    from pipeline.evaluation.comparison import MetricsComparison
    from pipeline.evaluation.options import ScoringOptions
    from pipeline.evaluation.summary import Evaluation


def run(arguments: list[str]) -> int:
    """Score segmentations against labels: Dice, IoU, HD95, surface Dice and volumes, by structure and case.

    Either folders of predictions and labels, or a run, whose own cases are predicted first (finished ones are reused);
    of a cross-validation each case by the network that has not seen it, or with --split test those of no fold by all.
    Cases are paired by file name, structures by their names; what only predictions or only labels know is left out and
    named. Writes metrics.json and metrics.csv and prints a table, worst cases first. Exit code 0: all pairs scored; 1:
    some were refused, by name.
    """
    given = _parser().parse_args(arguments)
    if (given.run is None) == (given.predictions is None) or (given.predictions is None) != (given.labels is None):
        raise ConfigError("name a RUN, or both --predictions DIR and --labels DIR")
    if given.run is not None and given.class_names:
        raise ConfigError("--class_names is for --predictions and --labels; a RUN and its data name their classes")
    with quick_imports():
        from pipeline.evaluate import default_output
        from pipeline.evaluation.comparison import check_baseline, compare_metrics
        from pipeline.evaluation.metrics_file import metrics_path, refuse_other_files, write_files
        from pipeline.evaluation.options import ScoringOptions
        from pipeline.evaluation.report import comparison_text, evaluation_text
    from pipeline.runs.study import is_study_folder, metrics_at

    surface = None if given.surface == "none" else given.surface
    options = ScoringOptions(given.tolerance_mm, surface, given.resample, given.seed, given.workers)
    is_study = given.run is not None and is_study_folder(given.run)
    given.split = given.split or ("val" if is_study else "test")
    if is_study and given.split == "val" and given.output:
        raise ConfigError(f"--output: the scores of {given.run} lie in its own folder; leave --output out")
    folder = given.output or default_output(given.run, given.split, given.predictions)
    check_writable(folder)
    refuse_other_files(folder)
    if given.compare:
        given.compare = metrics_at(given.compare)
        options = check_baseline(given.compare, metrics_path(folder), given.compare_by, options)
    evaluation = _evaluated(given, options, folder)
    metrics, _ = write_files(evaluation, folder)
    compare = partial(compare_metrics, metrics, given.compare, given.compare_by, seed=given.seed)
    if given.json:
        print(_as_json(metrics, compare() if given.compare else None))
        return evaluation.exit_code
    width = screen_width()
    print(evaluation_text(evaluation, width))
    try:
        if given.compare:
            print("\n" + comparison_text(compare(), width))
    finally:
        show("\n" + _where(evaluation, metrics, predictions=folder / "predictions" if given.run is not None else None))
    return evaluation.exit_code


def _where(evaluation: Evaluation, metrics: Path, predictions: Path | None) -> str:
    """The last lines: where the results lie, and how many failed."""
    lines = [f"Scores: {metrics} and {metrics.with_suffix('.csv').name} beside it"]
    if predictions is not None:
        lines.append(f"Segmentations: {predictions}")
    if evaluation.refused:
        failed = some_of(evaluation.refused, 5)
        lines.append(f"{counted(len(evaluation.refused), 'case')} could not be scored, see above: {failed}")
    return "\n".join(map(printable, lines))


def _parser() -> ArgumentParser:
    usage = "bodyseg evaluate --predictions DIR --labels DIR | RUN [--split train|val|test] [OPTION ...]"
    parser = command_parser("evaluate", run, usage)
    parser.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="Run folder of a training, or folder of a cross-validation."
    )
    parser.add_argument(
        "--split", choices=["train", "val", "test"],
        help="Which of the run's cases (with RUN); default: test, of a cross-validation val, its folds' cases.",
    )  # fmt: skip
    parser.add_argument(
        "--predictions", type=Path | None, metavar="DIR",
        help="Folder of label maps (CASE.nii.gz, .nrrd, .seg.nrrd, .mha, .dcm) or of one folder of masks a case "
        "(CASE/liver.nii.gz or CASE/segmentations/liver.nii.gz); or a single case.",
    )  # fmt: skip
    parser.add_argument(
        "--labels", type=Path | None, metavar="DIR", help="The same with the true labels, or a data set of training."
    )
    parser.add_argument(
        "--output", type=Path | None, metavar="DIR",
        help="Folder for metrics.json and metrics.csv; default: RUN/evaluation/SPLIT, or that of the predictions.",
    )  # fmt: skip
    parser.add_argument(
        "--class_names", default="", metavar="NAMES",
        help="What the numbers in the files mean, where nothing says so: liver=1,spleen=2,… for those to be scored, or "
        "background,liver,spleen,… for all of 0, 1, 2, …; where the files name their classes those to be scored, "
        "liver,spleen,…: of masks that overlap the later one counts.",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance_mm", type=float | None, metavar="MM",
        help="Surfaces that lie so close count as equal in the surface Dice; default: 2, or two voxels where these are "
        "below 0.5 mm (with --compare_by surface_dice that of the other file).",
    )  # fmt: skip
    parser.add_argument(
        "--surface", choices=["voxels", "area", "none"], default="voxels",
        help="What surfaces consist of: voxels (as in MONAI), area (as in DeepMind's surface-distance), or none to "
        "leave HD95 and surface Dice out, which is faster.",
    )  # fmt: skip
    parser.switch("--resample", "Bring predictions of other grids onto the label's.")
    parser.add_argument(
        "--compare", type=Path | None, metavar="FILE",
        help="metrics.json of another run on the same cases, or the folder of a cross-validation: is the difference of "
        "the two more than chance?",
    )  # fmt: skip
    parser.add_argument(
        "--compare_by", choices=["dice", "iou", "hd95_mm", "surface_dice"], default="dice", help="What is compared."
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (with RUN).")
    parser.add_argument("--precision", default="auto", metavar="P", help="auto, 32, bf16 or 16 (with RUN).")
    parser.switch("--overwrite", "Predict finished cases again (with RUN).")
    parser.switch("--trust_config", TRUST)
    parser.switch("--follow_links", LINKS)
    parser.add_argument("--workers", type=int | None, metavar="N", help="Cases scored at once; default: what fits.")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of the bootstrap intervals.")
    parser.switch("--json", "Print JSON instead of tables.")
    return parser


def _evaluated(given: Namespace, options: ScoringOptions, folder: Path) -> Evaluation:
    from pipeline.evaluate import evaluate, evaluate_run, evaluate_study
    from pipeline.evaluation.class_names import parse_class_names
    from pipeline.runs.study import is_study_folder

    with Bar("Evaluating") as bar:
        how: dict[str, Any] = {"progress": bar.update, "case_progress": bar.update_part}
        if given.run is None:
            names = parse_class_names(given.class_names)
            return evaluate(
                given.predictions, given.labels, options, class_names=names, follow_links=given.follow_links, **how
            )
        how |= {"device": given.device, "precision": given.precision}
        how |= {"overwrite": given.overwrite, "trust": given.trust_config}
        if given.split == "val" and is_study_folder(given.run):
            return evaluate_study(given.run, options, **how)
        return evaluate_run(given.run, given.split, options, output=folder, **how)


def _as_json(metrics: Path, comparison: MetricsComparison | None) -> str:
    """metrics.json as it was written, with the comparison under a key of its own."""
    from pipeline.evaluation.comparison import to_json

    text = metrics.read_text(encoding="utf-8")
    if comparison is None:
        return text
    return json.dumps({**json.loads(text), "comparison": json.loads(to_json(comparison))}, indent=2)
