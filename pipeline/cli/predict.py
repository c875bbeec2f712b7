"""Flags of `bodyseg predict`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from pipeline.cli.arguments import EXIT_DONE_IN_PART, LINKS, TRUST, CommandParser, command_parser, with_value
from pipeline.cli.quick_imports import quick_imports
from pipeline.console.terminal import screen_width
from pipeline.console.text import words


def run(arguments: list[str]) -> int:
    """Segment scans with a trained run; several runs are averaged (ensemble).

    Every result lies exactly on its scan's own voxel grid. A bad scan is named at the end and does not stop the others;
    finished scans are skipped when the command is repeated. Exit code 0: all done; 1: some failed.
    """
    parser = _parser()
    axes = "auto or some of the letters x, y and z"
    given = parser.parse_args(with_value(arguments, "--tta", r"auto|[xyz,]+", "auto", axes))
    with quick_imports():
        from pipeline.predict import PredictionOptions, check_report_path, predict, split_runs

    runs, inputs = split_runs(given.paths)
    given.trust = given.trust_config
    for name in ("formats", "probabilities", "keep_largest"):
        given[name] = tuple(words(given[name]))
    given.roi = None if given.roi is None else tuple(given.roi)
    options = PredictionOptions(**{option.name: given[option.name] for option in fields(PredictionOptions)})
    if given.report is not None:
        check_report_path(given.report)
    report = predict(runs, inputs, given.output, options)
    print(json.dumps(report.to_document(), indent=2) if given.json else report.to_text(screen_width()))
    if given.report is not None:  # after the text: the disk may refuse
        report.write(given.report)
    return 0 if report.is_complete else EXIT_DONE_IN_PART


def _parser() -> CommandParser:
    parser = command_parser("predict", run, "bodyseg predict RUN [RUN ...] INPUT [INPUT ...] --output DIR [OPTION ...]")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN INPUT",
        help="First run folders, cross-validations (all their networks) or best_model.ckpt files, then scans: NIfTI, "
        "NRRD, MetaImage, DICOM folders, "
        "folders with any of these, or data sets.",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="Folder for the results.")
    parser.add_argument(
        "--formats", default="nifti", metavar="F,F",
        help="Of nifti (.nii.gz), nrrd (.seg.nrrd for 3D Slicer), dicom (DICOM SEG; DICOM scans only).",
    )  # fmt: skip
    parser.add_argument(
        "--label_values", default="data", metavar="V",
        help="Values in the label maps: data (those of the training's label files) or index (0, 1, 2, … in class "
        "order).",
    )  # fmt: skip
    parser.switch("--per_structure", "Also one mask a structure, in CASE/segmentations.")
    parser.add_argument(
        "--probabilities", default="", metavar="CLASS,CLASS",
        help="Also the probabilities (0 to 1) of these classes, in CASE/probabilities.",
    )  # fmt: skip
    parser.switch("--preview", "Also a picture of three planes for every scan.")
    parser.add_argument(
        "--tta", default="", metavar="AXES",
        help="Also show the scan mirrored: alone along the axes that the training mirrored (none if it mirrored none), "
        "or along those named of x (left-right), y (back-front), z (foot-head), such as xy; axes that the training did "
        "not mirror are warned of. Left and right classes are exchanged back by name. Slower.",
    )  # fmt: skip
    parser.add_argument(
        "--roi", nargs=3, type=int, metavar="N",
        help="Sliding window in voxels of the network's grid (left-right, back-front, foot-head); default: the patch "
        "of the training, else the whole scan.",
    )  # fmt: skip
    parser.add_argument(
        "--step", type=float, default=0.5, metavar="SHARE",
        help="Greatest distance of neighbouring windows as a share of the window, wherever one is used; 0.8 is up to "
        "four times faster than 0.5 and hardly worse.",
    )  # fmt: skip
    parser.add_argument(
        "--keep_largest", default="", metavar="CLASS,CLASS", help="Keep only the largest piece of these."
    )
    parser.add_argument(
        "--min_volume_ml", type=float, default=0.0, metavar="ML", help="Remove pieces below this volume."
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")
    parser.add_argument(
        "--precision",
        default="auto",
        metavar="P",
        help="auto (that of the training, where this machine has it), 32, bf16 or 16.",
    )
    parser.add_argument("--threads", type=int | None, metavar="N", help="Processor threads; default: all.")
    parser.switch("--overwrite", "Do finished scans again.")
    parser.add_argument("--report", type=Path | None, metavar="FILE", help="Write everything found as JSON.")
    parser.switch("--trust_config", TRUST)
    parser.switch("--follow_links", LINKS)
    parser.switch("--json", "Print the report as JSON.")
    return parser
