"""Score one case: read prediction and label, bring them onto one grid, and compare them class by class."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer

from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import Label, check_annotated
from pipeline.evaluation.class_matching import CommonClasses
from pipeline.evaluation.label_maps import LabelMap, covering, is_seg, onto_label, outside_ml, padded_to, read_label_map
from pipeline.evaluation.options import ScoringOptions
from pipeline.evaluation.tolerance import default_tolerance_mm
from pipeline.metrics.overlap import ClassScores, class_scores, joint_histogram
from pipeline.metrics.surface_distance import surface_scores
from pipeline.metrics.surface_elements import SurfaceKind
from transforms.io.grid import MAX_SHEAR_DEGREES, Geometry, axes_onto, voxel_ml
from transforms.io.label_values import ignore_index

Absent = Literal["left_out", "scored"]
"""What counts where the label lacks a class: nothing (MONAI's ignore_empty=True), or 1 unless it is predicted (0)."""

VOLUMES = ("reference_ml", "prediction_ml")
SURFACE_METRICS = ("hd95_mm", "surface_dice")
METRICS = ("dice", "iou", *SURFACE_METRICS, "volume_difference_ml", *VOLUMES)
"""What is summed up over cases, each a field of CaseScores."""

SHARE_OF_READING = 0.5
"""How much of a case's progress reading and checking its files is: gzip takes as long as all that follows."""

_AXIS_STEP_MM, _ORIGIN_STEP_MM = 2**0.5 / 1000, 2**0.5 / 100
"""To what an affine is rounded before it is hashed: file formats keep 7 digits or more. Irrational, since spacings are
round numbers and must not lie on the edge between two steps."""

_IF_BOTH_LACK_IT = {"dice": 1.0, "iou": 1.0, "hd95_mm": 0.0, "surface_dice": 1.0}
_IF_ONLY_PREDICTED = {"dice": 0.0, "iou": 0.0, "hd95_mm": np.inf, "surface_dice": 0.0}


@dataclass(frozen=True)
class Pair:
    """The files of one case."""

    case: str
    prediction: Label
    label: Label
    subject: str | None = None
    """Whose scan it is, where a data set says so; None: nothing is known of it."""
    prediction_table: ClassTable | None = None
    """The values of the classes in this prediction, where its own header says so; None: as in the others."""
    label_table: ClassTable | None = None
    """The same for the label."""
    image: Path | None = None
    """The image to which the label belongs, where a data set says so."""
    annotated: frozenset[str] | None = None
    """Names of the classes that the label annotates; the others are not scored. None: all."""


@dataclass(frozen=True, eq=False)
class CaseScores:
    """Scores of one case by class (C,), background first; NaN where the label lacks the class ("left_out")."""

    pair: Pair
    label_sha256: str
    """Of the label's grid (shape and affine) and of its values as stored in the file (class indices for masks)."""
    spacing_mm: tuple[float, float, float]
    shear_degrees: float
    """How far the voxel's axes are off right angles, at most."""
    surface: SurfaceKind | None
    """None where surfaces were left out, or the grid is sheared: HD95 and surface Dice are NaN then."""
    overlapping: Mapping[tuple[str, str], int]
    """Voxels that a scored structure (first) lost to a later one (second) whose mask overlaps its own, in label and
    prediction together."""
    resampled: bool
    """Whether the prediction lay on another grid and was brought onto the label's by nearest neighbour."""
    outside_ml: float
    """Volume of the prediction's structures outside the label's grid, which count for nothing; 0 unless resampled."""
    dice: Float[np.ndarray, " C"]
    iou: Float[np.ndarray, " C"]
    hd95_mm: Float[np.ndarray, " C"]
    """Infinite where the prediction lacks the class."""
    surface_dice: Float[np.ndarray, " C"]
    volume_difference_ml: Float[np.ndarray, " C"]
    """Prediction minus label."""
    true_positives: Int[np.ndarray, " C"]
    """In voxels, as the next two."""
    false_positives: Int[np.ndarray, " C"]
    false_negatives: Int[np.ndarray, " C"]
    reference_ml: Float[np.ndarray, " C"]
    prediction_ml: Float[np.ndarray, " C"]
    annotated: Bool[np.ndarray, " C"]
    """Whether the label annotates the class. What is predicted of others is neither right nor wrong: it counts neither
    in the voxels nor in the volumes above."""

    @property
    def case(self) -> str:
        """The case's id."""
        return self.pair.case

    @property
    def mean_dice(self) -> float:
        """Over the structures that the label holds; NaN if it holds none."""
        present = self.dice[1:][~np.isnan(self.dice[1:])]
        return float(present.mean()) if len(present) else np.nan

    def score(self, metric: str, absent: Absent) -> Float[np.ndarray, " C"]:
        """One of METRICS by class under a convention for classes that the label lacks."""
        scores: np.ndarray = getattr(self, metric)
        held = self.reference_ml > 0
        if absent == "left_out":
            return np.where(held, scores, np.nan)
        return np.where(self.annotated, self._scored(metric, scores, held), np.nan)

    def _scored(
        self, metric: str, scores: Float[np.ndarray, " C"], held: Bool[np.ndarray, " C"]
    ) -> Float[np.ndarray, " C"]:
        """A metric with the scores of classes that the label lacks."""
        if metric in VOLUMES:
            return scores
        if metric == "volume_difference_ml":
            return np.where(held, scores, self.prediction_ml)
        if metric in SURFACE_METRICS and self.surface is None:
            return scores
        if_absent = np.where(self.prediction_ml > 0, _IF_ONLY_PREDICTED[metric], _IF_BOTH_LACK_IT[metric])
        return np.where(held, scores, if_absent)


def score_case(
    pair: Pair,
    classes: CommonClasses,
    options: ScoringOptions | None = None,
    *,
    advance: Callable[[float], None] | None = None,
) -> CaseScores:
    """Read a case and score it.

    Args:
        pair: the files. A prediction stored with other axes on the same grid (LAS beside RAS) is turned.
        classes: what is scored, and the values that it has in predictions and labels; voxels of the label's ignore
            value count for nothing.
        options: see `ScoringOptions`; None: the defaults. On a grid sheared by more than MAX_SHEAR_DEGREES HD95 and
            surface Dice would be wrong and are left out (NaN).
        advance: called with the share of the work that is done, 0 to 1.

    Raises:
        VolumeError: named by case: a file that cannot be read, values of no class, grids that differ, voxels of a class
            that the label is said not to annotate.
    """
    options = options or ScoringOptions()
    advance = advance or (lambda share: None)
    advance(0.0)
    maps = _read_pair(pair, classes, options)
    advance(SHARE_OF_READING)
    grid = maps.grid
    annotated = np.array([pair.annotated is None or name in pair.annotated for name in classes.names])
    annotated[0] = True
    overlap = {name: scores.numpy() for name, scores in _overlap(maps, classes)._asdict().items()}
    n_voxels = (overlap["true_positives"] + overlap["false_negatives"]).tolist()
    check_annotated(pair.case, pair.label, classes.names, np.flatnonzero(annotated).tolist(), n_voxels)
    overlap |= {name: np.where(annotated, overlap[name], 0) for name in ("false_positives", "prediction_ml")}
    reference_ml = overlap["reference_ml"]
    shear = grid.shear_degrees
    surface = options.surface if shear <= MAX_SHEAR_DEGREES else None
    hd95_mm, surface_dice = np.full((2, len(classes.names)), np.nan)
    tolerance_mm = options.tolerance_mm
    if surface is not None:
        advance((1 + SHARE_OF_READING) / 2)
        hd95_mm, surface_dice = surface_scores(
            maps.reference,
            maps.predicted,
            grid.spacing_mm,
            len(classes.names),
            tolerance_mm=default_tolerance_mm([grid.spacing_mm]) if tolerance_mm is None else tolerance_mm,
            ignore_index=classes.ignored,
            surface=surface,
        )
    advance(1.0)
    return CaseScores(
        pair=pair,
        label_sha256=maps.label_sha256,
        spacing_mm=grid.spacing_mm,
        shear_degrees=shear,
        surface=surface,
        overlapping=maps.overlapping,
        resampled=maps.resampled,
        outside_ml=maps.outside_ml,
        hd95_mm=hd95_mm,
        surface_dice=surface_dice,
        volume_difference_ml=np.where(reference_ml > 0, overlap["prediction_ml"] - reference_ml, np.nan),
        annotated=annotated,
        **overlap,
    )


class _Maps(NamedTuple):
    """Label and prediction on the label's grid, as indices among the classes that are scored."""

    reference: Integer[np.ndarray, "I J K"]
    predicted: Integer[np.ndarray, "I J K"]
    grid: Geometry
    label_sha256: str
    overlapping: Mapping[tuple[str, str], int]
    resampled: bool
    outside_ml: float


def _read_pair(pair: Pair, classes: CommonClasses, options: ScoringOptions) -> _Maps:
    label_table = pair.label_table or classes.label
    label = read_label_map(pair.label, pair.case, label_table)
    digest = _hash(label.indices, label_table, label.affine)
    prediction = read_label_map(pair.prediction, pair.case, pair.prediction_table or classes.prediction)
    overlapping = _lost(label, classes.label.names, classes.of_label) + _lost(
        prediction, classes.prediction.names, classes.of_prediction
    )
    if is_seg(pair.label):
        label = covering(label, prediction)
    if is_seg(pair.prediction):
        prediction = covering(prediction, label)
    if pair.image is not None and axes_onto(prediction.geometry, label.geometry) is None:
        label = padded_to(label, pair.image)
    sources = pair.prediction, pair.label
    predicted, resampled = onto_label(prediction, label, sources, pair.case, resample=options.resample)
    lookup = classes.prediction_lookup()
    return _Maps(
        _looked_up(label.indices, classes.label_lookup()),
        _looked_up(predicted, lookup),
        label.geometry,
        digest,
        overlapping,
        resampled,
        outside_ml(LabelMap(_looked_up(prediction.indices, lookup), prediction.affine), label) if resampled else 0.0,
    )


def _lost(read: LabelMap, names: Sequence[str], scored: Sequence[int]) -> Counter[tuple[str, str]]:
    """Voxels that the scored classes lost to masks which overlap theirs."""
    return Counter({(names[a], names[b]): n_voxels for (a, b), n_voxels in read.overlaps.items() if a in scored})


def _looked_up(indices: np.ndarray, lookup: np.ndarray | None) -> np.ndarray:
    return indices if lookup is None else lookup[indices]


def _overlap(maps: _Maps, classes: CommonClasses) -> ClassScores:
    both = torch.from_numpy(maps.reference), torch.from_numpy(maps.predicted)
    return class_scores(joint_histogram(*both, len(classes.names), classes.ignored), voxel_ml(maps.grid.affine))


def _hash(label: Int[np.ndarray, "I J K"], table: ClassTable, affine: np.ndarray) -> str:
    """Hash what the file says, not our class indices: those depend on which classes somebody evaluates.

    Of masks that overlap, it hashes what each structure is scored against: voxels of one that is not evaluated are
    those of the structure around it. So scores against two references are never compared.

    The grid belongs to it: the same voxels of another size have other volumes and distances.
    """
    ignored = ignore_index(len(table.values)) if table.ignores_voxels else None
    values = np.zeros(max(len(table.values), (ignored or 0) + 1), dtype="<i4")
    values[: len(table.values)] = table.values
    if ignored is not None:
        values[ignored] = -1 if table.ignore_value is None else table.ignore_value
    steps = np.array([_AXIS_STEP_MM] * 3 + [_ORIGIN_STEP_MM])
    grid = np.rint(affine[:3] / steps).astype(np.int64).tolist()
    digest = hashlib.sha256(repr((tuple(label.shape), grid)).encode())
    for k in range(label.shape[2]):
        digest.update(values[label[:, :, k]].tobytes(order="F"))
    return digest.hexdigest()
