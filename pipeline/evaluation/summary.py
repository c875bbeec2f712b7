"""The scores of many cases: worst cases first, summed up by class over cases and subjects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from pipeline.evaluation.case_scores import METRICS, Absent, CaseScores
from pipeline.evaluation.class_matching import CommonClasses
from pipeline.evaluation.options import ScoringOptions
from pipeline.metrics.statistics import Summary, number_subjects, summarise
from pipeline.runs.stored_scores import TrainedWeights

CONVENTIONS: tuple[Absent, ...] = ("left_out", "scored")

ClassSummaries = Mapping[str, Mapping[str, Summary]]
"""{class: {metric: Summary}}, background left out."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of cases, and what could not be scored."""

    predictions: str
    """Where the predictions were read."""
    labels: str
    classes: CommonClasses
    options: ScoringOptions
    tolerance_mm: float
    """Up to which two surfaces agreed."""
    cases: tuple[CaseScores, ...]
    """Worst mean Dice first; cases without any structure last."""
    refused: Mapping[str, str]
    """The reason, by case."""
    labels_without_prediction: tuple[str, ...] = ()
    predictions_without_label: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader has to know about how classes and files were matched."""
    networks: tuple[TrainedWeights, ...] = ()
    """The weights whose predictions were scored, of a cross-validation in the order of its folds; () where only
    folders were named."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that are scored, background first."""
        return self.classes.names

    @property
    def exit_code(self) -> int:
        """0 if every pair was scored, else 1."""
        return 1 if self.refused else 0

    @cached_property
    def subject_numbers(self) -> Int[np.ndarray, " cases"]:
        """A number for the subject of each case; cases of which no subject is known are of one of their own each."""
        return number_subjects([case.case for case in self.cases], [case.pair.subject for case in self.cases])

    @property
    def n_subjects(self) -> int:
        """Subjects of the scored cases."""
        return int(self.subject_numbers.max(initial=-1)) + 1

    @property
    def subjects_are_known(self) -> bool:
        """Whether a data set said whose scans the cases are."""
        return all(case.pair.subject is not None for case in self.cases)

    @cached_property
    def n_missed(self) -> Mapping[str, int]:
        """By structure, the cases whose label holds it and whose prediction has none of it: they are in no mean HD95.

        Their voxels are counted: HD95 is not measured in every case.
        """
        missed = np.stack([(case.reference_ml > 0) & (case.prediction_ml == 0) for case in self.cases]).sum(0)
        return dict(zip(self.class_names[1:], missed[1:].tolist(), strict=True))

    @cached_property
    def summaries(self) -> Mapping[Absent, ClassSummaries]:
        """Each metric of each structure over the cases, under both conventions for structures that a label lacks."""
        return {absent: self._summaries(absent) for absent in CONVENTIONS}

    def _summaries(self, absent: Absent) -> ClassSummaries:
        by_class: dict[str, dict[str, Summary]] = {name: {} for name in self.class_names[1:]}
        for metric in METRICS:
            scores = np.stack([case.score(metric, absent)[1:] for case in self.cases])
            every = summarise(scores, self.subject_numbers, seed=self.options.seed)
            for name, summary in zip(by_class, every, strict=True):
                by_class[name][metric] = summary
        return by_class


def worst_first(cases: Iterable[CaseScores]) -> tuple[CaseScores, ...]:
    """Sort by mean Dice, then by id; cases without any structure come last."""
    return tuple(sorted(cases, key=lambda case: (math.isnan(case.mean_dice), case.mean_dice, case.case)))


def mean_over_classes(by_class: ClassSummaries, metric: str) -> float:
    """Average a metric's class means over the classes that have one; NaN if none has."""
    means = [summaries[metric].mean for summaries in by_class.values()]
    known = [mean for mean in means if not math.isnan(mean)]
    return float(np.mean(known)) if known else math.nan
