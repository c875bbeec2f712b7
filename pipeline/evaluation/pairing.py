"""Pair predictions with labels by case, and say what is left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.console.progress import Progress
from pipeline.console.text import first_lines, some_of
from pipeline.datasets.dataset import Label
from pipeline.datasets.file_names import case_of
from pipeline.evaluation.case_files import CaseFiles
from pipeline.evaluation.case_scores import Pair
from pipeline.evaluation.class_matching import CommonClasses
from pipeline.evaluation.class_names import ClassNames, find_classes
from pipeline.evaluation.options import EvaluationError


@dataclass(frozen=True)
class Matching:
    """What can be scored, and what a reader has to know about how it was found."""

    pairs: tuple[Pair, ...]
    classes: CommonClasses
    notes: tuple[str, ...]
    refused: Mapping[str, str]
    """Why a pair cannot be scored, by case."""
    labels_without_prediction: tuple[str, ...]
    predictions_without_label: tuple[str, ...]


def match(
    predictions: CaseFiles,
    labels: CaseFiles,
    *,
    class_names: ClassNames | None = None,
    progress: Progress | None = None,
) -> Matching:
    """Pair predictions and labels by case, and match their classes.

    A prediction without a label, and a label without a prediction, are left out and named. A prediction may carry the
    number of nnU-Net's first channel: CASE_0000 is of the label CASE, as is CASE-label or CASE_seg.

    Args:
        predictions, labels: as listed.
        class_names: of the predictions or labels that nothing else names, see `find_classes`.
        progress: called for each file that is read to find its classes.

    Raises:
        EvaluationError: no pair; and what `find_classes` raises. DatasetError: no class in common.
    """
    named = _pair_cases(predictions, labels)
    refused = {case: labels.refused[case] for case in predictions.files if case in labels.refused}
    pairs = []
    for case, prediction, label in named:
        if reason := predictions.headers.refused.get(prediction) or labels.headers.refused.get(label):
            refused[case] = reason
        else:
            pairs.append(
                Pair(
                    case,
                    predictions.files[prediction],
                    labels.files[label],
                    labels.subjects.get(label),
                    predictions.headers.own_tables.get(prediction),
                    labels.headers.own_tables.get(label),
                    labels.images.get(label),
                    labels.annotated.get(label),
                )
            )
    classes, notes = find_classes(predictions, labels, class_names, pairs, progress)
    _, paired_predictions, paired_labels = (set(names) for names in zip(*named, strict=True))
    return Matching(
        pairs=tuple(
            replace(
                pair,
                prediction=_in_order(pair.prediction, classes.of_prediction),
                label=_in_order(pair.label, classes.of_label),
            )
            for pair in pairs
        ),
        classes=classes,
        notes=(*notes, *_notes(predictions), *_notes(labels), *_missing_masks(predictions)),
        refused=refused,
        labels_without_prediction=tuple(sorted(case for case in labels.files if case not in paired_labels)),
        predictions_without_label=tuple(
            sorted(case for case in predictions.files if case not in paired_predictions and case not in refused)
        ),
    )


def _in_order(masks: Label, scored: Sequence[int]) -> Label:
    """The masks of predictions or labels in the order of the classes that are scored, behind those that are not.

    Of masks that overlap the later one counts: it has to be scored, and of the same class in predictions and labels.
    """
    if isinstance(masks, Path):
        return masks
    place = {index: n for n, index in enumerate(scored)}
    return tuple(sorted(masks, key=lambda mask: place.get(mask[0], -1)))


def _pair_cases(predictions: CaseFiles, labels: CaseFiles) -> list[tuple[str, str, str]]:
    """Pair names: (case, prediction, label) of each prediction that has a label, sorted by case."""
    if (predictions.is_one_case or labels.is_one_case) and len(predictions.files) == len(labels.files) == 1:
        (prediction,), (label,) = predictions.files, labels.files
        return [(prediction, prediction, label)]
    named_alike = Counter(_case_meant(prediction) for prediction in predictions.files)
    label_of = {_case_meant(label): label for label in reversed(list(labels.files))} | {
        label: label for label in labels.files
    }
    found = []
    for prediction in predictions.files:
        case = _case_meant(prediction)
        if prediction in labels.files:
            found.append((prediction, prediction, prediction))
        elif named_alike[case] == 1 and case in label_of and label_of[case] not in predictions.files:
            found.append((case, prediction, label_of[case]))
    if not found and (refused := [case for case in predictions.files if case in labels.refused]):
        raise EvaluationError(labels.refused[refused[0]])
    if not found:
        raise EvaluationError(
            f"no prediction in {predictions.root} has a label of its name in {labels.root}: "
            f"the predictions are of {some_of(sorted(predictions.files), 5)}, "
            f"the labels of {some_of(sorted(labels.files), 5)}; give the files of one case one name"
        )
    return sorted(found)


def _case_meant(name: str) -> str:
    """The case of a file: without the number of nnU-Net's first channel, or what labels are called beside images."""
    return case_of(name.removesuffix("_0000"))


def _notes(files: CaseFiles) -> tuple[str, ...]:
    return (*files.notes, *files.headers.notes)


def _missing_masks(predictions: CaseFiles) -> list[str]:
    lines = [
        f"case {case}: no predicted mask of {some_of(names, 5)}; counted as nothing predicted"
        for case, names in predictions.missing_masks.items()
    ]
    return first_lines(lines, "and masks missing in {} more cases")
