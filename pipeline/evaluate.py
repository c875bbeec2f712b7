"""The command "evaluate": pair predictions with labels, or predict the cases of a run first, and score them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.compute.devices import choose_device
from pipeline.console.progress import CaseProgress, Progress
from pipeline.console.text import first_lines
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import SPLITS, Case, Dataset, Label
from pipeline.datasets.listing import list_cases
from pipeline.datasets.rows import LabelReading
from pipeline.evaluation.case_files import list_case_files
from pipeline.evaluation.case_scores import CaseScores, Pair
from pipeline.evaluation.class_matching import match_by_name
from pipeline.evaluation.class_names import ClassNames
from pipeline.evaluation.header_classes import read_headers
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from pipeline.evaluation.pairing import Matching, match
from pipeline.evaluation.records import read_records, table_of_records
from pipeline.evaluation.scoring import score_pairs
from pipeline.evaluation.summary import Evaluation, worst_first
from pipeline.evaluation.tolerance import USUAL_MM, default_tolerance_of, too_wide
from pipeline.inference.batch import segment_cases
from pipeline.inference.channel_order import channel_order
from pipeline.inference.inputs import InputCase
from pipeline.inference.model import load_models
from pipeline.inference.passes import InferenceOptions
from pipeline.runs.run_folder import RunFolder
from pipeline.writers.outputs import OutputOptions
from transforms.io.segment_names import LARGEST_VALUE

SplitName = Literal["train", "val", "test"]


def evaluate(
    predictions: Path | str,
    labels: Path | str,
    options: ScoringOptions | None = None,
    *,
    class_names: ClassNames | None = None,
    follow_links: bool = False,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> Evaluation:
    """Score every prediction in a folder against the label of the same name.

    Args:
        predictions: a folder of label maps (CASE.nii.gz, .nrrd, .seg.nrrd, .mha, or .dcm with a DICOM SEG), or one with
            a folder of masks for every case (CASE/liver.nii.gz or CASE/segmentations/liver.nii.gz), or one case of
            these.
        labels: the same, or a data set in any layout of training.
        options: how cases are scored; None: the defaults.
        class_names: names of the values 0, 1, 2, … (background first), or the values of the names that are to be
            scored, for predictions or labels that nothing names. By default names come from the data set, from the
            masks' file names, from a labels.json, class_names.json or dataset.json beside the files, or from the
            records that bodyseg predict writes. Classes are matched by name; what only predictions or only labels know
            is left out and named. Where nothing names the values of one of them they are taken for the other's, where
            nothing names either each value is a class; `notes` says both.
        follow_links: as `list_cases` has it, where the labels are a data set.
        progress: called for each case that is done.
        case_progress: called with (case, share of it that is done), where one case is scored at a time.

    Raises:
        EvaluationError: no pair, names that do not fit, no case that can be scored.
        VolumeError, DatasetError: folders that cannot be listed, no class in common.

    A case that cannot be scored is in `refused` of the result.
    """
    options = options or ScoringOptions()
    matching = match(
        list_case_files(predictions, "prediction"),
        list_case_files(labels, "label", follow_links=follow_links),
        class_names=class_names,
        progress=progress,
    )
    sources = str(predictions), str(labels)
    return _scored(matching, options, sources, progress=progress, case_progress=case_progress)


def evaluate_run(
    run: Path | str,
    split: SplitName = "val",
    options: ScoringOptions | None = None,
    *,
    output: Path | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> Evaluation:
    """Predict the cases of a run's own split, where that is not done yet, and score them.

    Args:
        run: a run folder; its training_config.json names the data set and the split.
        split: which of its cases.
        options: how cases are scored; None: the defaults.
        output: folder for predictions/ (and the metrics); None: RUN/evaluation/SPLIT.
        device, precision, overwrite, trust: as `predict` has them.
        progress, case_progress: as `evaluate` has them.

    Raises:
        EvaluationError: the run has no such cases, or the data set has changed since; and what `predict` raises.

    A case that cannot be predicted or scored is in `refused` of the result.
    """
    options = options or ScoringOptions()
    folder = RunFolder.at(run)
    dataset, cases = _cases_of(folder, split)
    chosen_device = choose_device(device)
    models = load_models([run], chosen_device, trust=trust)
    if models[0].class_names != dataset.classes.names:
        raise EvaluationError(
            f"{folder.path}: its classes are no longer those of {dataset.root}; restore the data set it was trained on"
        )
    order = channel_order(dataset.channel_names, models[0].channel_names, dataset.root)
    target = default_output(folder.path, split) if output is None else Path(output)
    outputs = OutputOptions(target / "predictions", models[0].class_names, models[0].label_values)
    records = segment_cases(
        models,
        [InputCase(case.id, tuple(case.image[position] for position in order)) for case in cases],
        outputs,
        InferenceOptions(precision=precision),
        overwrite=overwrite,
        progress=progress,
        case_progress=case_progress,
    )
    failed = {record.case: record.error for record in records if record.status == "failed"}
    matching = _matching_of_run(dataset, [case for case in cases if case.id not in failed], outputs, failed)
    sources = str(folder.path), f"{split} cases of {dataset.root}"
    return _scored(matching, options, sources, progress=progress, case_progress=case_progress)


def _matching_of_run(
    dataset: Dataset, cases: list[Case], outputs: OutputOptions, failed: Mapping[str, str]
) -> Matching:
    """Pair the predictions of a run with the labels of its data set; the records say which value is which class."""
    names = dataset.classes.names
    table = table_of_records(read_records(outputs.folder, [case.id for case in cases]))
    labels = {case.id: case.label for case in cases if case.label is not None}
    own_tables = _differing_tables(labels, dataset.classes)
    pairs = [
        Pair(
            case.id,
            outputs.label_map(case.id, "nifti"),
            labels[case.id],
            case.subject,
            label_table=own_tables.get(case.id),
            image=case.image[0],
        )
        for case in cases
        if case.id in labels
    ]
    lines = [
        f"case {case}: the header of its label gives the classes other values than the data set's table; they are "
        "taken from the header"
        for case in own_tables
    ]
    return Matching(
        pairs=tuple(pairs),
        classes=match_by_name(dataset.classes, table or ClassTable(names, dataset.classes.values)),
        notes=tuple(first_lines(lines, "and {} more cases with such labels")),
        refused=failed,
        labels_without_prediction=(),
        predictions_without_label=(),
    )


def _differing_tables(labels: Mapping[str, Label], classes: ClassTable) -> dict[str, ClassTable]:
    """The classes by a label's own header (.seg.nrrd), by case, where it gives them other values than the data set.

    A training refuses such a label; what was exported anew since is read by what its header says.
    """
    own_tables = read_headers(labels, classes, "label").own_tables
    return {
        case: own
        for case, own in own_tables.items()
        if any(
            value <= LARGEST_VALUE and classes.class_of_value.get(value) != c  # above: a class that its header lacks
            for c, value in enumerate(own.values[1:], start=1)
        )
    }


def _scored(
    matching: Matching,
    options: ScoringOptions,
    sources: tuple[str, str],
    *,
    progress: Progress | None,
    case_progress: CaseProgress | None,
) -> Evaluation:
    """Score what was matched; `sources` says where predictions and labels come from."""
    chosen = options.tolerance_mm
    files = [(pair.label, pair.prediction) for pair in matching.pairs]
    tolerance_mm = default_tolerance_of(files) if chosen is None else chosen
    options = replace(options, tolerance_mm=tolerance_mm)
    scores, refused = score_pairs(
        matching.pairs, matching.classes, options, progress=progress, case_progress=case_progress
    )
    refused = {**matching.refused, **refused}
    if not scores:
        first = next(iter(refused.values()), "there are none")
        raise EvaluationError(f"none of {len(refused)} cases can be scored; the first: {first}")
    surface_notes: list[str] = []
    if options.surface is not None:
        surface_notes = _sheared(scores) + _about_tolerance(scores, tolerance_mm, is_default=chosen is None)
    return Evaluation(
        predictions=sources[0],
        labels=sources[1],
        classes=matching.classes,
        options=options,
        tolerance_mm=tolerance_mm,
        cases=worst_first(scores),
        refused=dict(sorted(refused.items())),
        labels_without_prediction=matching.labels_without_prediction,
        predictions_without_label=matching.predictions_without_label,
        notes=(*matching.notes, *_overlapping(scores), *surface_notes),
    )


def _overlapping(scores: Sequence[CaseScores]) -> list[str]:
    """Name the cases of which a structure lost voxels to another before it was scored."""
    lines = [
        f"case {case.case}: {case.n_overlapping} voxels lie in more than one mask and count for the class later in the "
        "order of classes alone; score structures that overlap one at a time, in folders of their own"
        for case in sorted(scores, key=lambda case: case.case)
        if case.n_overlapping
    ]
    return first_lines(lines, "and {} more cases whose masks overlap")


def _sheared(scores: Sequence[CaseScores]) -> list[str]:
    """Name the cases whose surfaces could not be measured."""
    lines = [
        f"case {case.case}: the axes of its voxels are {case.shear_degrees:.3g}° off right angles (a tilted gantry?): "
        "HD95 and surface Dice are left out of it; resample image and label onto an upright grid to have them"
        for case in sorted(scores, key=lambda case: case.case)
        if case.surface is None
    ]
    return first_lines(lines, "and {} more cases with such voxels")


def _about_tolerance(scores: Sequence[CaseScores], tolerance_mm: float, *, is_default: bool) -> list[str]:
    notes = [f"surfaces agree within {tolerance_mm:g} mm, two voxels of these scans, instead of {USUAL_MM:g} mm"]
    return [
        *(notes if is_default and tolerance_mm != USUAL_MM else []),
        *too_wide(
            tolerance_mm,
            {case.case: max(case.spacing_mm) for case in scores},
            surface_dice=np.stack([case.surface_dice[1:] for case in scores]),
            dice=np.stack([case.dice[1:] for case in scores]),
        ),
    ]


def default_output(run: Path | None, split: SplitName, predictions: Path | None = None) -> Path:
    """Return where metrics lie unless something else is said: RUN/evaluation/SPLIT, or the predictions' own folder.

    Raises:
        EvaluationError: neither a run nor predictions. FileError: the folder is not a run.
    """
    if run is not None:
        return RunFolder.at(run).path / "evaluation" / split
    if predictions is None:
        raise EvaluationError("expected a run or predictions, found neither; name one")
    return predictions if predictions.is_dir() else predictions.parent


def _cases_of(folder: RunFolder, split: SplitName) -> tuple[Dataset, list[Case]]:
    """The data set of a run and the cases of one of its splits, in the split's order."""
    data = folder.read_config()["data"]
    splits: Mapping[str, Any] = data.get("split") or {}
    ids = splits.get(split)
    if not ids:
        others = [f"--split {name} ({len(splits[name])})" for name in SPLITS if splits.get(name)]
        advice = f"there are some for {', '.join(others)}" if others else "name predictions and labels instead"
        raise EvaluationError(f"{folder.config}: data.split.{split}: expected cases, found none; {advice}")
    dataset = list_cases(
        data["dataset_root"],
        data.get("layout", "auto"),
        fold=None,  # the run says which case is in which split
        class_names=data.get("class_names") or None,
        labels=LabelReading(data.get("label_remap"), data.get("missing_masks", "not_annotated")),
        subject_pattern=data.get("subject_pattern") or "",
        strict=False,
        follow_links=data.get("follow_links") is True,
    )
    known = {case.id: case for case in dataset.cases}
    missing = [case for case in ids if case not in known]
    if missing:
        raise EvaluationError(
            f"case {missing[0]}: expected it in {dataset.root}, where the run was trained, found {len(known)} others; "
            "restore the data set, or evaluate a folder of predictions"
        )
    return dataset, [known[case] for case in ids]
