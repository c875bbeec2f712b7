"""The verb "evaluate": pairs predictions with labels, predicts a run's cases first where asked, and scores them all.

Which file and class belong to which is `pairing`'s, a case's scores are `case_scores`', what they say together
`evaluation`'s, and two evaluations side by side `metrics_comparison`'s. Predicting is `batch`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.compute.devices import choose_device, choose_precision
from pipeline.console.progress import CaseProgress
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import Case, Dataset
from pipeline.datasets.listing import list_cases
from pipeline.evaluation.case_scores import Pair
from pipeline.evaluation.class_matching import CommonClasses
from pipeline.evaluation.comparison import MetricsComparison, check_baseline, compare_metrics
from pipeline.evaluation.pairing import ClassNames, EvaluationError, Progress, list_side, match
from pipeline.evaluation.report import to_csv, to_text, write_files
from pipeline.evaluation.scoring import check_tolerance, evaluate_pairs
from pipeline.evaluation.summary import Evaluation, metrics_path, to_document
from pipeline.inference.batch import segment_cases
from pipeline.inference.inputs import InputCase
from pipeline.inference.model import load_models
from pipeline.inference.passes import InferenceOptions
from pipeline.metrics.surface_elements import SurfaceKind
from pipeline.runs.run_folder import RunFolder
from pipeline.writers.outputs import OutputOptions

__all__ = ["Evaluation", "EvaluationError", "MetricsComparison", "compare_metrics", "evaluate", "evaluate_pairs"]
__all__ += ["check_baseline", "default_output", "evaluate_run", "metrics_path"]
__all__ += ["to_csv", "to_document", "to_text", "write_files"]

Split = Literal["train", "val", "test"]


def evaluate(
    predictions: Path | str,
    labels: Path | str,
    *,
    class_names: ClassNames | None = None,
    cases: Sequence[str] | None = None,
    tolerance_mm: float = 2.0,
    surface: SurfaceKind | None = "voxels",
    resample: bool = False,
    follow_links: bool = False,
    seed: int = 0,
    workers: int | None = 1,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> Evaluation:
    """Score every prediction in a folder against the label of the same name.

    Args:
        predictions: a folder of label maps (CASE.nii.gz, CASE.nrrd, CASE.seg.nrrd, CASE.mha), or one with a folder of
            masks for every case (CASE/liver.nii.gz or CASE/segmentations/liver.nii.gz), or one case of these.
        labels: the same, or a data set in any layout of training.
        class_names: names of the values 0, 1, 2, … (background first), or the value of each name, for the sides that
            nothing names. By default names come from the data set, from the masks' file names, from a labels.json,
            class_names.json or dataset.json beside the files, or from the records that bodyseg predict writes. Classes
            are matched by name; what only one side knows is left out and said. Where nothing names a side its values
            are taken for the other's, where nothing names either each value is a class; both is said.
        cases: score these only, and miss them by name.
        tolerance_mm: distance up to which surfaces agree, for the surface Dice.
        surface: what surfaces consist of: "voxels" (monai.metrics' default) or "area" (surface-distance's definition);
            None: no HD95 and no surface Dice, which is faster.
        resample: bring predictions on another grid onto their label's by nearest neighbour instead of refusing them.
        follow_links: as `cases.list_cases` has it, where the labels are a data set.
        seed: decides the bootstrap.
        workers: processes that score a case each; None: by cores, memory and the number of cases. More than one only
            from a script whose main part is guarded by `if __name__ == "__main__"`, as Python's multiprocessing has it.
        progress: called with (what, done, total, note), cases that are done.
        case_progress: called with (case, share of it that is done), where one case is scored at a time.

    Raises:
        EvaluationError: no pair, a prediction without a label, a wanted case without a prediction, names that do not
            fit. VolumeError, DatasetError: folders that cannot be listed, no class in common. A case that cannot be
            scored is in `refused`.
    """
    matched = match(
        list_side(predictions, "prediction"), list_side(labels, "label", follow_links=follow_links),
        class_names=class_names, cases=cases, progress=progress,
    )  # fmt: skip
    return evaluate_pairs(
        matched.pairs, matched.classes, tolerance_mm=tolerance_mm, surface=surface, resample=resample, seed=seed,
        workers=workers, progress=progress, case_progress=case_progress, described=(str(predictions), str(labels)),
        notes=matched.notes, refused=matched.refused, labels_without_prediction=matched.labels_without_prediction,
    )  # fmt: skip


def evaluate_run(
    run: Path | str,
    split: Split = "val",
    *,
    output: Path | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    trust: bool = False,
    tolerance_mm: float = 2.0,
    surface: SurfaceKind | None = "voxels",
    resample: bool = False,
    seed: int = 0,
    workers: int | None = 1,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> tuple[Evaluation, Path]:
    """Predict the cases of a side of a run's own split, where that is not done yet, and score them.

    Args:
        run: a run folder; its training_config.json names the data set and the split.
        split: "val" or "test" (or "train").
        output: folder for predictions/ and the metrics; None: RUN/evaluation/SPLIT.
        device, precision, overwrite, trust: as `predict` has them.
        tolerance_mm, surface, resample, seed, workers, progress, case_progress: as `evaluate` has them.

    Returns:
        The evaluation, and the output folder. A case that cannot be predicted is in `refused`.

    Raises:
        EvaluationError: the run has no such cases, or the data set has changed since; and what `predict` raises.
    """
    check_tolerance(tolerance_mm)
    folder = RunFolder.at(run)
    dataset, cases = _cases_of(folder, split)
    place = choose_device(device)
    models = load_models([run], place, trust=trust)
    if models[0].class_names != dataset.classes.names:
        raise EvaluationError(f"{folder.path}: its classes are not those of {dataset.root} any more; restore the data")
    target = default_output(folder.path, split) if output is None else Path(output)
    outputs = OutputOptions(target / "predictions", models[0].class_names)
    records = segment_cases(
        models,
        [InputCase(case.id, case.image) for case in cases],
        outputs,
        InferenceOptions(precision=choose_precision(precision, place)),
        overwrite=overwrite,
        progress=None if progress is None else lambda d, n, what="", note="": progress("predicting", d, n, note),
        case_progress=case_progress,
    )
    failed = {record.case: record.error for record in records if record.status == "failed"}
    files = {case.id: outputs.label_map(case.id, "nifti") for case in cases}
    pairs = [Pair(c.id, files[c.id], c.label) for c in cases if c.id not in failed and c.label is not None]
    names = dataset.classes.names
    every = tuple(range(len(names)))
    classes = CommonClasses(dataset.classes, ClassTable(names, every), every, every)
    result = evaluate_pairs(
        pairs, classes, tolerance_mm=tolerance_mm, surface=surface, resample=resample, seed=seed, workers=workers,
        progress=progress, case_progress=case_progress, refused=failed,
        described=(str(folder.path), f"{split} cases of {dataset.root}"),
    )  # fmt: skip
    return result, target


def default_output(run: Path | None, split: Split, predictions: Path | None = None) -> Path:
    """Return where metrics lie unless something else is said: RUN/evaluation/SPLIT, or the predictions' own folder."""
    if run is not None:
        return RunFolder.at(run).path / "evaluation" / split
    if predictions is None:
        raise EvaluationError("expected a run or predictions, found neither; name one")
    return predictions if predictions.is_dir() else predictions.parent


def _cases_of(folder: RunFolder, split: str) -> tuple[Dataset, list[Case]]:
    """The data set of a run and the cases of a side of its split, in the split's order."""
    data = folder.read_config()["data"]
    sides = data.get("split") or {}
    ids = sides.get(split)
    if not ids:
        others = [f"--split {side} ({len(sides[side])})" for side in ("val", "test", "train") if sides.get(side)]
        raise EvaluationError(
            f"{folder.config}: data.split.{split}: expected cases, found none; "
            + (
                f"there are some for {', '.join(others)}"
                if others
                else "name predictions and labels instead of the run"
            )
        )
    dataset = list_cases(
        data["dataset_root"], data.get("layout", "auto"), fold=data.get("fold", 0),
        class_names=data.get("class_names") or None, label_remap=data.get("label_remap"), strict=False,
        follow_links=data.get("follow_links") is True,
    )  # fmt: skip
    known = {case.id: case for case in dataset.cases}
    if missing := [case for case in ids if case not in known]:
        raise EvaluationError(
            f"case {missing[0]}: expected it in {dataset.root}, where the run was trained, found {len(known)} others; "
            "restore the data set, or evaluate a folder of predictions"
        )
    return dataset, [known[case] for case in ids]
