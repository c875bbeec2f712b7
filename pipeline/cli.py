"""The command line: finds the verb, parses its arguments, turns expected errors into one line and an exit code.

Exit codes: 0 done; 1 done in part (a batch with failures); 2 wrong input or settings; 130 / 138 / 143 stopped by
SIGINT / SIGUSR1 / SIGTERM. Help answers without importing torch: a verb's room is imported when it runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

from pipeline import config, config_flags
from pipeline.command import (
    EXIT_DONE_IN_PART,
    EXIT_WRONG_INPUT,
    LINKS,
    TRUST,
    complain,
    say,
    silence_stdout,
    verb_parser,
    with_value,
    words,
)
from pipeline.progress import Bar

EXPECTED_ERRORS = (
    ("pipeline.config", "ConfigError"),
    ("pipeline.dataset", "DatasetError"),
    ("pipeline.cache_entry", "CacheError"),
    ("pipeline.run_folder", "RunFolderError"),
    ("pipeline.module", "TrainingError"),
    ("pipeline.processes", "ProcessError"),
    ("transforms.load", "VolumeError"),
    ("transforms.chains", "ChainError"),
    ("networks.registry", "NetworkError"),
    ("pipeline.phantom", "PhantomError"),
    ("pipeline.segmentation", "SegmentationError"),
    ("pipeline.pairing", "EvaluationError"),
    ("pipeline.metrics_comparison", "ComparisonError"),
)
"""Where the errors live whose message says everything to the person who reads it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is returned.

    Args:
        arguments: verb and flags; None: the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0 if given else EXIT_WRONG_INPUT
    verb = VERBS.get(given[0])
    if verb is None:
        return complain(f"unknown verb {given[0]!r}; known are {', '.join(VERBS)}")
    try:
        return verb(given[1:])
    except BrokenPipeError:
        # The reader of our output has gone (`bodyseg compare logs | head`): nothing is wrong.
        silence_stdout()
        return 0
    except Exception as error:
        if debug or not _is_expected(error):
            raise
        # Bad data have a line for every error, any other message is one line.
        return [complain(line) for line in getattr(error, "lines", [str(error)])][-1]
    except KeyboardInterrupt:
        return complain("stopped", 130)


def _overview() -> str:
    lines = ["usage: bodyseg VERB [arguments]   (bodyseg VERB --help explains them)", ""]
    return "\n".join(lines + [f"  {name:10} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()])


def _is_expected(error: Exception) -> bool:
    kinds = tuple(
        getattr(sys.modules[room], name) for room, name in EXPECTED_ERRORS if hasattr(sys.modules.get(room), name)
    )
    return isinstance(error, (*kinds, ArgumentError))


def _train(arguments: list[str]) -> int:
    """Train a network on a folder of scans and leave a run folder."""
    parser = verb_parser("train", _train, "bodyseg train --dataset_root DIR [--config FILE] [SETTING ...]")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file of settings, or a run's training_config.json."
    )
    parser.add_argument("--print_config", action="store_true", help="Print the settings as YAML and stop.")
    parser.add_argument("--resume", action="store_true", help="Go on with the interrupted run of the same name.")
    parser.add_argument("--overwrite", action="store_true", help="Delete an earlier run of the same name first.")
    parser.add_argument("--trust_config", action="store_true", help=TRUST)
    config_flags.add_settings(parser)
    # jsonargparse takes a flag of this name for its own and wants a value after it.
    settings, flags = config_flags.parse(parser, [argument for argument in arguments if argument != "--print_config"])
    if "--print_config" in arguments:
        print(config.to_yaml(settings), end="")
        return 0
    rooms = importlib.import_module("pipeline.train")
    try:
        rooms.train(
            settings, resume=flags["resume"], overwrite=flags["overwrite"], trust=flags["trust_config"], say=say
        )
    except importlib.import_module("pipeline.recorder").RunStopped as stop:
        code = 128 + signal.Signals[str(stop)]
        return complain(f"training stopped by {stop}; go on with --resume", code) if rooms.is_first_process() else code
    except BrokenPipeError as error:  # not our output's, which say takes
        return complain(f"nothing was trained: {error}, from another process; see whether memory ran out")
    return 0


def _check(arguments: list[str]) -> int:
    """Open every case of a data set once and say what is wrong with it, and what training on it will cost.

    Exit code 0: nothing found; 1: warnings only; 2: errors.
    """
    parser = verb_parser("check", _check, "bodyseg check DATASET | --config FILE [SETTING ...]")
    parser.add_argument("dataset", nargs="?", type=str, metavar="DATASET", help="Folder or list file of a data set.")
    parser.add_argument("--config", metavar="FILE", help="Settings of a training: checks its data and its costs.")
    parser.add_argument("--no_measure", action="store_true", help="Estimate costs without a real training step.")
    parser.add_argument("--trust_config", action="store_true", help=TRUST)
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    config_flags.add_settings(parser)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--dataset_root", arguments[0], *arguments]
    settings, flags = config_flags.parse(parser, arguments)
    room = importlib.import_module("pipeline.check")
    target = settings if flags["config"] else flags["dataset"] or settings
    with Bar("Checking") as bar:
        report = room.check(
            target,
            measure=not flags["no_measure"],
            trust=flags["trust_config"],
            progress=lambda what, done, total: bar.update(done, total, what),
        )
    print(room.to_json(report) if flags["json"] else room.to_text(report))
    return report.exit_code


def _predict(arguments: list[str]) -> int:
    """Segment scans with a trained run; several runs are averaged (ensemble).

    Every result lies exactly on its scan's own voxel grid. A bad scan is named at the end and does not stop the others;
    finished scans are skipped when the command is repeated. Exit code 0: all done; 1: some failed.
    """
    parser = verb_parser(
        "predict", _predict, "bodyseg predict RUN [RUN ...] INPUT [INPUT ...] --output DIR [OPTION ...]"
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN INPUT",
        help="First run folders or best_model.ckpt files, then scans: NIfTI, NRRD, MetaImage, DICOM folders, "
        "folders with any of these, or data sets.",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="Folder for the results.")
    parser.add_argument(
        "--formats", default="nifti", metavar="F,F",
        help="Of nifti (.nii.gz), nrrd (.seg.nrrd for 3D Slicer), dicom (DICOM SEG; DICOM scans only).",
    )  # fmt: skip
    parser.add_argument(
        "--per_structure", action="store_true", help="Also one mask a structure, in CASE/segmentations."
    )
    parser.add_argument("--probabilities", default="", metavar="CLASS,CLASS", help="Also the probabilities of classes.")
    parser.add_argument("--preview", action="store_true", help="Also a picture of three planes for every scan.")
    parser.add_argument(
        "--tta", default="", metavar="AXES",
        help="Also show the scan mirrored: alone along the axes that the training mirrored (left-right if it mirrored "
        "none), or along those named of x (left-right), y (back-front), z (foot-head), such as xy; left and right "
        "classes are exchanged back by name. Slower.",
    )  # fmt: skip
    parser.add_argument(
        "--roi", nargs=3, type=int, metavar="N", help="Sliding window in voxels, for networks trained on patches."
    )
    parser.add_argument(
        "--keep_largest", default="", metavar="CLASS,CLASS", help="Keep only the largest piece of these."
    )
    parser.add_argument(
        "--min_volume_ml", type=float, default=0.0, metavar="ML", help="Remove pieces below this volume."
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")
    parser.add_argument("--precision", default="auto", metavar="P", help="auto, 32 or bf16.")
    parser.add_argument("--threads", type=int | None, metavar="N", help="Processor threads; default: all.")
    parser.add_argument("--overwrite", action="store_true", help="Do finished scans again.")
    parser.add_argument("--report", type=Path | None, metavar="FILE", help="Write everything found as JSON.")
    parser.add_argument("--trust_config", action="store_true", help=TRUST)
    parser.add_argument("--follow_links", action="store_true", help=LINKS)
    parser.add_argument("--json", action="store_true", help="Print the report as JSON.")
    given = parser.parse_args(with_value(arguments, "--tta", r"auto|[xyz,]+", "auto"))
    room = importlib.import_module("pipeline.predict")
    runs, inputs = room.split_runs(given.paths)
    document = room.predict(
        runs, inputs, given.output,
        formats=words(given.formats), per_structure=given.per_structure, probabilities=words(given.probabilities),
        preview=given.preview, tta=given.tta, roi=given.roi, keep_largest=words(given.keep_largest),
        min_volume_ml=given.min_volume_ml, device=given.device, precision=given.precision, threads=given.threads,
        overwrite=given.overwrite, report=given.report, trust=given.trust_config,
        follow_links=given.follow_links,
    )  # fmt: skip
    print(json.dumps(document, indent=2) if given.json else room.to_text(document))
    return EXIT_DONE_IN_PART if document["n_failed"] else 0


def _evaluate(arguments: list[str]) -> int:
    """Score segmentations against labels: Dice, IoU, HD95, surface Dice and volumes, by structure and case.

    Either folders of predictions and labels, or a run, whose own cases are predicted first (finished ones are reused).
    Cases belong together by file name, structures by their names; what only one side knows is left out and said.
    Writes metrics.json and metrics.csv and prints a table, worst cases first. Exit code 0: all cases scored; 1: some
    were refused, by name.
    """
    usage = "bodyseg evaluate --predictions DIR --labels DIR | RUN [--split val|test] [OPTION ...]"
    parser = verb_parser("evaluate", _evaluate, usage)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="Run folder of a training.")
    parser.add_argument(
        "--split", choices=["train", "val", "test"], default="test", help="Which of the run's cases (with RUN)."
    )
    parser.add_argument(
        "--predictions", type=Path | None, metavar="DIR",
        help="Folder of label maps (CASE.nii.gz, .nrrd, .seg.nrrd, .mha) or of one folder of masks a case "
        "(CASE/liver.nii.gz or CASE/segmentations/liver.nii.gz); or a single case.",
    )  # fmt: skip
    parser.add_argument(
        "--labels", type=Path | None, metavar="DIR", help="The same with the true labels, or a data set of training."
    )
    parser.add_argument("--output", type=Path | None, metavar="DIR", help="Folder for metrics.json and metrics.csv.")
    parser.add_argument(
        "--class_names", default="", metavar="NAMES",
        help="What the numbers in the files mean, where nothing says so: liver=1,spleen=2,… or, for 0, 1, 2, …, "
        "background,liver,spleen,….",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance_mm", type=float, default=2.0, metavar="MM",
        help="Surfaces that lie so close count as equal in the surface Dice.",
    )  # fmt: skip
    parser.add_argument(
        "--surface", choices=["voxels", "area", "none"], default="voxels",
        help="What surfaces consist of: voxels (as in MONAI), area (as in DeepMind's surface-distance), or none to "
        "leave HD95 and surface Dice out, which is faster.",
    )  # fmt: skip
    parser.add_argument("--resample", action="store_true", help="Bring predictions of other grids onto the label's.")
    parser.add_argument(
        "--compare", type=Path | None, metavar="FILE",
        help="metrics.json of another run on the same cases: is the difference of the two more than chance?",
    )  # fmt: skip
    parser.add_argument(
        "--compare_by", choices=["dice", "iou", "hd95_mm", "surface_dice"], default="dice", help="What is compared."
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (with RUN).")
    parser.add_argument("--precision", default="auto", metavar="P", help="auto, 32 or bf16 (with RUN).")
    parser.add_argument("--overwrite", action="store_true", help="Predict finished cases again (with RUN).")
    parser.add_argument("--trust_config", action="store_true", help=TRUST)
    parser.add_argument("--follow_links", action="store_true", help=LINKS)
    parser.add_argument("--workers", type=int | None, metavar="N", help="Cases scored at once; default: what fits.")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Of the bootstrap intervals.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    given = parser.parse_args(arguments)
    if (given.run is None) == (given.predictions is None) or (given.predictions is None) != (given.labels is None):
        raise config.ConfigError("name a RUN, or both --predictions DIR and --labels DIR")
    if given.run is not None and given.class_names:
        raise config.ConfigError(
            "--class_names is for --predictions and --labels; a RUN and its data name their classes"
        )
    room = importlib.import_module("pipeline.evaluate")
    surfaces = {"tolerance_mm": given.tolerance_mm, "surface": None if given.surface == "none" else given.surface}
    folder = given.output or room.default_output(given.run, given.split, given.predictions)
    room.check_output(folder)
    if given.compare:
        room.check_baseline(given.compare, room.metrics_path(folder), given.compare_by, **surfaces)
    with Bar("Evaluating") as bar:
        common = {
            **surfaces, "resample": given.resample, "seed": given.seed, "workers": given.workers,
            "case_progress": bar.update_part,
            "progress": lambda what, done, total, note: bar.update(done, total, what.capitalize(), note),
        }  # fmt: skip
        if given.run is not None:
            found, _ = room.evaluate_run(
                given.run, given.split, output=folder, device=given.device, precision=given.precision,
                overwrite=given.overwrite, trust=given.trust_config, **common,
            )  # fmt: skip
        else:
            names = importlib.import_module("pipeline.pairing").parse_class_names(given.class_names)
            found = room.evaluate(
                given.predictions, given.labels, class_names=names, follow_links=given.follow_links, **common
            )
    metrics, _ = room.write_files(found, folder)
    compared = given.compare and room.compare_metrics(metrics, given.compare, given.compare_by, seed=given.seed)
    print(_evaluation_as_json(metrics, compared) if given.json else room.to_text(found))
    if compared and not given.json:
        print("\n" + importlib.import_module("pipeline.metrics_comparison").to_text(compared))
    return found.exit_code


def _evaluation_as_json(metrics: Path, comparison: Any) -> str:
    """metrics.json as it was written, with the comparison under a key of its own."""
    text = metrics.read_text(encoding="utf-8")
    if comparison is None:
        return text
    to_json = importlib.import_module("pipeline.metrics_comparison").to_json
    return json.dumps({**json.loads(text), "comparison": json.loads(to_json(comparison))}, indent=2)


def _check_geometry(arguments: list[str]) -> int:
    """Prove that preprocessing and its way back move, mirror and swap nothing, and say what the target size costs.

    Balls of 60, 20, 8 and 4 mm and sided markers go through the chain and back on 48 orientations and on oblique,
    anisotropic and odd grids. Exit code 0: the geometry holds; 1: it does not.
    """
    parser = verb_parser("check-geometry", _check_geometry, "bodyseg check-geometry [RUN | CONFIG] [OPTION ...]")
    parser.add_argument("target", nargs="?", type=Path, metavar="RUN|CONFIG", help="Run, checkpoint or settings file.")
    parser.add_argument(
        "--target_size", nargs=3, type=int, metavar="N", help="Another size than that of the run or settings."
    )
    parser.add_argument(
        "--keep_aspect", type=bool | None, nargs="?", const=True, metavar="true|false",
        help="Pad instead of stretching (or not), whatever run or settings say.",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    given = parser.parse_args(with_value(arguments, "--keep_aspect", "true|false", "true"))
    room = importlib.import_module("pipeline.check_geometry")
    with Bar("Round trips") as bar:
        report = room.check_geometry(
            given.target, target_size=given.target_size, keep_aspect=given.keep_aspect, progress=bar.update
        )
    print(room.to_json(report) if given.json else room.to_text(report))
    return report.exit_code


def _sample(arguments: list[str]) -> int:
    """Write the embedded sample data set: whole-body phantoms with 70 labelled structures."""
    parser = verb_parser("sample", _sample)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="Where to; nnU-Net raw layout.")
    parser.add_argument("--n_cases", type=int, default=24, metavar="N", help="Number of bodies.")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Decides every body and every grid.")
    parser.add_argument("--voxel_mm", type=float, default=7.0, metavar="MM", help="Mean voxel edge.")
    given = parser.parse_args(arguments)
    room = importlib.import_module("pipeline.phantom")
    with Bar("Writing phantoms") as bar:
        room.write_dataset(
            given.folder, n_cases=given.n_cases, seed=given.seed, voxel_mm=given.voxel_mm, progress=bar.update
        )
    print(given.folder)
    return 0


def _cache(arguments: list[str]) -> int:
    """Show what the cache holds, or remove what was used longest ago."""
    parser = verb_parser("cache", _cache)
    parser.add_argument("action", choices=["info", "prune"], help="info shows; prune removes.")
    parser.add_argument("--cache_dir", type=Path, default=Path("cache"), metavar="DIR", help="The cache folder.")
    parser.add_argument("--max_gb", type=float, default=0.0, metavar="GB", help="prune: size to shrink the folder to.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    given = parser.parse_args(arguments)
    room = importlib.import_module("pipeline.cache")
    if given.action == "prune":
        pruned = room.prune(given.cache_dir, int(given.max_gb * 2**30))
        text = f"removed {len(pruned.files)} files, {pruned.n_bytes / 2**30:.2f} GiB"
        print(json.dumps(dataclasses.asdict(pruned), default=str) if given.json else text)
        return 0
    found = room.cache_info(given.cache_dir)
    if given.json:
        print(json.dumps(dataclasses.asdict(found), default=str))
        return 0
    print(
        f"{found.folder}: {found.n_entries} cases, {found.n_bytes / 2**30:.2f} GiB; {found.free_bytes / 2**30:.1f} free"
    )
    for chain in found.chains:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(chain.last_used))
        size = chain.n_bytes / 2**30
        print(f"  {chain.chain}  {chain.n_entries} cases  {size:.2f} GiB  last used {used}  {chain.parameters}")
    return 0


def _plot(arguments: list[str]) -> int:
    """Draw the training curves of one or several runs."""
    parser = verb_parser("plot", _plot)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="Run folders; several share the axes.")
    parser.add_argument("--output", type=Path | None, metavar="FILE", help="Picture to write (PNG).")
    given = parser.parse_args(arguments)
    print(importlib.import_module("pipeline.plot").plot(given.runs, given.output))
    return 0


def _compare(arguments: list[str]) -> int:
    """Compare runs: best mIoU, epochs, parameters, time, and the settings that differ."""
    parser = verb_parser("compare", _compare)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN", help="Run folders, or a folder that holds them.")
    parser.add_argument("--csv", action="store_true", help="Print comma-separated values.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    given = parser.parse_args(arguments)
    room = importlib.import_module("pipeline.compare")
    table = room.compare(given.paths)
    print(room.to_json(table) if given.json else room.to_csv(table) if given.csv else room.to_text(table))
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "check": _check,
    "predict": _predict,
    "evaluate": _evaluate,
    "check-geometry": _check_geometry,
    "plot": _plot,
    "compare": _compare,
    "sample": _sample,
    "cache": _cache,
}
