"""The command "evaluate": pair predictions with labels, or predict the cases of a run first, and score them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pipeline.compute.devices import choose_device, choose_precision
from pipeline.console.progress import CaseProgress, Progress
from pipeline.console.text import first_lines
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import SPLITS, Case, Dataset, Label
from pipeline.datasets.joined import list_data_sets
from pipeline.datasets.rows import LabelReading
from pipeline.evaluation.case_files import list_case_files
from pipeline.evaluation.case_scores import Pair
from pipeline.evaluation.class_matching import match_by_name
from pipeline.evaluation.class_names import ClassNames
from pipeline.evaluation.header_classes import read_headers
from pipeline.evaluation.notes import score_notes
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from pipeline.evaluation.pairing import Matching, match
from pipeline.evaluation.records import read_records, table_of_records
from pipeline.evaluation.scoring import score_pairs
from pipeline.evaluation.summary import Evaluation, worst_first
from pipeline.evaluation.tolerance import default_tolerance_of
from pipeline.inference.batch import segment_cases
from pipeline.inference.channel_order import channel_order
from pipeline.inference.inputs import InputCase
from pipeline.inference.model import Model, load_models
from pipeline.inference.passes import InferenceOptions
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.seen_cases import seen_at_start
from pipeline.runs.stored_scores import TrainedWeights
from pipeline.runs.study import StudyFolder, StudyRecord, is_study_folder, runs_at
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
            scored, for predictions or labels that nothing names; of classes that have names those that are to be
            scored, of masks that overlap the later one. By default names come from the data set, from the
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
    matching = match(
        list_case_files(predictions, "prediction"),
        list_case_files(labels, "label", follow_links=follow_links),
        class_names=class_names,
        progress=progress,
    )
    sources = str(predictions), str(labels)
    return _scored(matching, options, sources, progress, case_progress)


def evaluate_run(
    run: Path | str,
    split: SplitName = "test",
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
        run: a run folder; its training_config.json names the data set and the split. Or a cross-validation, whose test
            cases, which no fold has seen, all its networks predict together; see `evaluate_study` for the others.
        split: which of its cases; those of the test alone have had no say in the weights.
        options: how cases are scored; None: the defaults.
        output: folder for predictions/ (and the metrics); None: RUN/evaluation/SPLIT.
        device, precision, overwrite, trust: as `predict` has them.
        progress, case_progress: as `evaluate` has them.

    Raises:
        EvaluationError: the run has no such cases, or the data set has changed since; and what `predict` raises.

    A case that cannot be predicted or scored is in `refused` of the result.
    """
    if is_study_folder(Path(run)) and split != "test":
        raise EvaluationError(
            f"{run}: networks of this cross-validation saw its {split} cases; evaluate one of its runs"
        )
    runs = runs_at(Path(run))
    folder = RunFolder.at(runs[0])
    data = folder.read_config()["data"]
    dataset = _dataset_of(data)
    cases = _cases_of(folder, data, dataset, split)
    for other in runs[1:]:
        _refuse_trained_on(cases, RunFolder.at(other), dataset)
    models = load_models(runs, choose_device(device), trust=trust)
    target = default_output(Path(run), split) if output is None else Path(output)
    outputs, failed = _predicted(
        models, dataset, cases, target / "predictions", precision,
        overwrite=overwrite, renew=False, progress=progress, case_progress=case_progress,
    )  # fmt: skip
    matching = _matching_of_run(dataset, cases, outputs, failed)
    sources = str(RunFolder.at(run).path), f"{split} cases of {dataset.root}"
    evaluation = _scored(matching, options, sources, progress, case_progress)
    seen = "" if split == "train" else seen_at_start([RunFolder.at(one).read_config() for one in runs], split)
    notes = (*_ABOUT_SPLIT[split], *([seen] if seen else []), *evaluation.notes)
    return replace(evaluation, notes=notes, networks=_weights_of(models))


def evaluate_study(
    study: Path | str,
    options: ScoringOptions | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    case_progress: CaseProgress | None = None,
) -> Evaluation:
    """Predict each case of a cross-validation with the network that has not seen it, where not done yet; score all.

    The predictions go to STUDY/predictions, on the scans' own grids. Those of a fold that was trained again since are
    made again, by its present weights.

    Args:
        study: the folder of a cross-validation whose folds are all trained.
        options: how cases are scored; None: the defaults.
        device, precision, overwrite, trust: as `predict` has them.
        progress, case_progress: as `evaluate` has them.

    Raises:
        FileError: a fold is not finished. EvaluationError: a fold was trained on a case or a subject that it would be
            scored on, or on other folds than the study's; the data set has changed since; and what `predict` raises.

    A case that cannot be predicted or scored is in `refused` of the result.
    """
    folder = StudyFolder.at(study)
    record, runs = folder.read_record(), folder.ended_runs()
    configs = {number: run.read_config()["data"] for number, run in runs.items()}
    dataset = _dataset_of(next(iter(configs.values())))
    chosen_device = choose_device(device)
    cases_of = {number: _cases_of(run, configs[number], dataset, "val") for number, run in runs.items()}
    _refuse_seen(record, runs, configs, dataset)
    every = [case for cases in cases_of.values() for case in cases]
    failed: dict[str, str] = {}
    begun = 0
    networks: list[TrainedWeights] = []
    for number, run in runs.items():
        models = load_models([run.path], chosen_device, trust=trust)
        networks += _weights_of(models)
        part = _part_of(progress, begun, len(every), f"fold {number}")
        outputs, failed_here = _predicted(
            models, dataset, cases_of[number], folder.predictions, precision,
            overwrite=overwrite, renew=True, progress=part, case_progress=case_progress,
        )  # fmt: skip
        failed |= failed_here
        begun += len(cases_of[number])
    matching = _matching_of_run(dataset, every, outputs, failed)
    sources = str(folder.path), f"cases of {dataset.root}, each unseen by its network"
    evaluation = _scored(matching, options, sources, progress, case_progress)
    notes = (_ABOUT_STUDY.format(len(runs)), *record.notes, *evaluation.notes)
    return replace(evaluation, notes=notes, networks=tuple(networks))


def _weights_of(models: Sequence[Model]) -> tuple[TrainedWeights, ...]:
    return tuple(model.trained for model in models if model.trained is not None)


_CHOSEN_ON_THEM = (
    "which epoch of {} network was kept was decided by val_mIoU on these same cases, so that scores on further scans "
    "may be somewhat lower"
)
_ABOUT_STUDY = (
    "each case was segmented by the one of {} networks that was not trained on it; " + _CHOSEN_ON_THEM.format("a")
)
_ABOUT_SPLIT: Mapping[SplitName, tuple[str, ...]] = {
    "train": ("the network was trained on these same cases: scores on further scans are likely to be lower",),
    "val": (_CHOSEN_ON_THEM.format("the"),),
    "test": (),
}
"""What the scores of a run's own cases must not be taken for."""


def _refuse_seen(
    record: StudyRecord, runs: Mapping[int, RunFolder], configs: Mapping[int, Mapping[str, Any]], dataset: Dataset
) -> None:
    """Raise EvaluationError where a network saw a case, or another scan of its subject, that it is to be scored on.

    What counts is what each run wrote down when it was trained; the record of the study must say the same.
    """
    subject_of = {case.id: case.subject for case in dataset.cases}
    scored_by: dict[str, int] = {}
    for number, run in runs.items():
        data = configs[number]
        division = data.get("cross_validation") or {}
        if division.get("hash") != record.hash or division.get("fold") != number:
            raise EvaluationError(
                f"{run.config}: expected fold {number} of the folds of {record.source}, found a training of another "
                "division; remove that fold's folder and run bodyseg cross-validate again"
            )
        train, val = data["split"]["train"], data["split"]["val"]
        seen = {subject_of.get(case, case) for case in train}
        for case in val:
            other = scored_by.setdefault(case, number)
            if subject_of[case] in seen or case in train or other != number:
                why = f"fold {other} scores it, too" if other != number else "it was trained on a scan of that subject"
                raise EvaluationError(
                    f"{run.config}: case {case}: expected its only score to be of a network that has not seen it, "
                    f"found that {why}; correct the folds or the subjects and begin another cross-validation"
                )


def _refuse_trained_on(cases: Sequence[Case], run: RunFolder, dataset: Dataset) -> None:
    """Raise EvaluationError for a test case of one fold that another trained or validated on, or one of its subject.

    A file of folds may name in one fold a case that the data set holds out for testing.
    """
    split = run.read_config()["data"]["split"]
    used = {case for part in ("train", "val") for case in split.get(part, ())}
    subjects = {case.subject for case in dataset.cases if case.id in used}
    for case in cases:
        if case.id in used or case.subject in subjects:
            raise EvaluationError(
                f"{run.config}: case {case.id}: expected a test case that no fold has seen, found that this fold "
                "trained or validated on a scan of that subject; evaluate one of the runs, or correct the folds"
            )


def _part_of(progress: Progress | None, begun: int, n_all: int, part: str) -> Progress | None:
    """Report the steps of a part as those of the whole."""
    if progress is None:
        return None
    whole = progress

    def report(done: int, total: int, what: str = "", note: str = "") -> None:
        whole(begun + done, n_all, what, f"{part}, {note}")

    return report


def _predicted(
    models: Sequence[Model],
    dataset: Dataset,
    cases: Sequence[Case],
    folder: Path,
    precision: str,
    *,
    overwrite: bool,
    renew: bool,
    progress: Progress | None,
    case_progress: CaseProgress | None,
) -> tuple[OutputOptions, dict[str, str]]:
    """Segment cases of a data set into a folder; what was written where, and the cases that failed, with the reasons.

    The arguments by name are those of `segment_cases`. Raises EvaluationError where the networks are of other classes
    than the data set.
    """
    first = models[0]
    choose_precision(precision, first.device)  # before a scan is read
    if first.class_names != dataset.classes.names:
        raise EvaluationError(
            f"{first.path}: its classes are no longer those of {dataset.root}; restore the data set it was trained on"
        )
    order = channel_order(dataset.channel_names, first.channel_names, dataset.root)
    outputs = OutputOptions(folder, first.class_names, first.label_values)
    ordered = [case.with_channels(order) for case in cases]
    scans = [InputCase(case.id, case.image, frames=case.frames) for case in ordered]
    records = segment_cases(
        models, scans, outputs, InferenceOptions(precision=precision),
        overwrite=overwrite, renew=renew, progress=progress, case_progress=case_progress,
    )  # fmt: skip
    return outputs, {one.case: f"case {one.case}: {one.error}" for one in records if one.status == "failed"}


def _matching_of_run(
    dataset: Dataset, cases: Sequence[Case], outputs: OutputOptions, failed: Mapping[str, str]
) -> Matching:
    """Pair the predictions of a run, but for those that `failed`, with the labels of its data set.

    The records of the predictions say which value is which class.
    """
    predicted = [case for case in cases if case.id not in failed]
    table = table_of_records(read_records(outputs.folder, [case.id for case in predicted]))
    labels = {case.id: case.label for case in predicted if case.label is not None}
    own_tables = _differing_tables(labels, dataset)
    annotated = dataset.annotated_names()
    pairs = [
        Pair(
            case.id,
            outputs.label_map(case.id, "nifti"),
            labels[case.id],
            case.subject,
            label_table=own_tables.get(case.id) or case.table,
            image=case.image[0],
            annotated=annotated.get(case.id),
        )
        for case in predicted
        if case.id in labels
    ]
    lines = [
        f"case {case}: the header of its label gives the classes other values than the data set's table; they are "
        "taken from the header"
        for case in own_tables
    ]
    return Matching(
        pairs=tuple(pairs),
        classes=match_by_name(dataset.classes, table or ClassTable(dataset.classes.names, dataset.classes.values)),
        notes=tuple(first_lines(lines, "and {} more cases with such labels")),
        refused=failed,
        labels_without_prediction=(),
        predictions_without_label=(),
    )


def _differing_tables(labels: Mapping[str, Label], dataset: Dataset) -> dict[str, ClassTable]:
    """The classes by a label's own header (.seg.nrrd), by case, where it gives them other values than the data set.

    A training refuses such a label; what was exported again since is read by what its header says.
    """
    own_tables = read_headers(labels, dataset.classes, "label").own_tables
    listed = {case.id: case.table or dataset.classes for case in dataset.cases}
    return {
        case: own
        for case, own in own_tables.items()
        if any(
            value <= LARGEST_VALUE
            and listed[case].class_of_value.get(value) != c  # above: a class that its header lacks
            for c, value in enumerate(own.values[1:], start=1)
        )
    }


def _scored(
    matching: Matching,
    options: ScoringOptions | None,
    sources: tuple[str, str],
    progress: Progress | None,
    case_progress: CaseProgress | None,
) -> Evaluation:
    """Score what was matched; `sources` says where predictions and labels come from."""
    asked = options or ScoringOptions()
    files = [(pair.label, pair.prediction) for pair in matching.pairs]
    tolerance_mm = default_tolerance_of(files) if asked.tolerance_mm is None else asked.tolerance_mm
    options = replace(asked, tolerance_mm=tolerance_mm)
    scores, refused = score_pairs(
        matching.pairs, matching.classes, options, progress=progress, case_progress=case_progress
    )
    refused = {**matching.refused, **refused}
    if not scores:
        first = next(iter(refused.values()), "there are none")
        raise EvaluationError(f"none of {len(refused)} cases can be scored; the first: {first}")
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
        notes=(*matching.notes, *score_notes(scores, matching.classes.names, asked, tolerance_mm)),
    )


def default_output(run: Path | None, split: SplitName, predictions: Path | None = None) -> Path:
    """Return where metrics lie unless something else is said: RUN/evaluation/SPLIT, or the predictions' own folder.

    Those of a cross-validation's cases lie in its own folder.

    Raises:
        EvaluationError: neither a run nor predictions. FileError: the folder is not a run.
    """
    if run is not None and split == "val" and is_study_folder(run):
        return StudyFolder.at(run).path
    if run is not None:
        return RunFolder.at(run).evaluation(split)
    if predictions is None:
        raise EvaluationError("expected a run or predictions, found neither; name one")
    return predictions if predictions.is_dir() else predictions.parent


def _dataset_of(data: Mapping[str, Any]) -> Dataset:
    """The data set that the data settings of a run name, undivided: the run says which case is in which split."""
    return list_data_sets(
        data["dataset_root"],
        data.get("layout", "auto"),
        fold=None,
        class_names=data.get("class_names") or None,
        labels=LabelReading(data.get("label_remap"), data.get("missing_masks", "not_annotated")),
        subject_pattern=data.get("subject_pattern") or "",
        strict=False,
        follow_links=data.get("follow_links") is True,
    )


def _cases_of(folder: RunFolder, data: Mapping[str, Any], dataset: Dataset, split: SplitName) -> list[Case]:
    """The cases of one of a run's splits, in the split's order."""
    splits: Mapping[str, Any] = data.get("split") or {}
    ids = splits.get(split)
    if not ids:
        others = [f"--split {name} ({len(splits[name])})" for name in SPLITS if splits.get(name)]
        advice = f"there are some for {', '.join(others)}" if others else "name predictions and labels instead"
        raise EvaluationError(f"{folder.config}: data.split.{split}: expected cases, found none; {advice}")
    known = {case.id: case for case in dataset.cases}
    missing = [case for case in ids if case not in known]
    if missing:
        raise EvaluationError(
            f"case {missing[0]}: expected it in {dataset.root}, where the run was trained, found {len(known)} others; "
            "restore the data set, or evaluate a folder of predictions"
        )
    return [known[case] for case in ids]
