"""Open every file of one case once, measure it, and find what is wrong with the case by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.checks.findings import Finding, Severity, from_error
from pipeline.checks.voxel_statistics import ImageFacts, LabelFacts, measure_image, measure_label
from pipeline.compute.memory import workers_that_fit
from pipeline.console.progress import Progress
from pipeline.datasets.dataset import Case, Dataset, label_path
from transforms.io.errors import VolumeError
from transforms.io.grid import Geometry, onto_grid
from transforms.io.label_values import MergedMasks, count_values, mask_of
from transforms.io.load import Volume, check_single_frame, disagreeing_forms, read_volume

BYTES_A_CASE = 3 << 30
"""Memory that a large CT and its label may take while they are checked."""


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What was found in the files of one case."""

    case: str
    subject: str
    images: tuple[ImageFacts, ...]
    """The channels that could be read."""
    label: LabelFacts | None
    """None where the label cannot serve."""
    findings: tuple[Finding, ...]
    unknown_values: Mapping[int, int] = field(default_factory=dict)
    """Voxels of every value of a label map that holds values of no class, else empty."""


@dataclass(frozen=True)
class _Notes:
    """The findings of one case as they come up."""

    case: str
    findings: list[Finding] = field(default_factory=list)
    label_values: dict[int, int] = field(default_factory=dict)
    """Voxels of every value of a label map with unknown ones."""

    def add(self, severity: Severity, kind: str, file: object, expected: str, found: str, remedy: str) -> None:
        self.findings.append(Finding(severity, kind, self.case, str(file), expected, found, remedy))

    def add_error(self, error: VolumeError, file: Path) -> None:
        self.findings.append(from_error(error, case=self.case, file=file))


def inspect_cases(
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    on_facts: Callable[[CaseFacts], None] | None = None,
) -> list[CaseFacts]:
    """`inspect_case` of every case, in threads: reading is gzip, which lets go of the interpreter.

    Args:
        cases: the cases to open; the facts come in their order.
        dataset: says which label values are classes.
        workers: cases opened at once; None: by cores and memory.
        progress: told of every case that is done.
        on_facts: called with the facts of each case as they come, one at a time.
    """
    facts: dict[int, CaseFacts] = {}
    with ThreadPoolExecutor(workers or workers_that_fit(BYTES_A_CASE)) as pool:
        waiting = {pool.submit(inspect_case, case, dataset): index for index, case in enumerate(cases)}
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                facts[waiting[future]] = future.result()
                if on_facts:
                    on_facts(future.result())
                if progress:
                    progress(done, len(waiting), "checking cases")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: the cases in hand end, no other starts
            raise
    return [facts[index] for index in range(len(cases))]


def inspect_case(case: Case, dataset: Dataset) -> CaseFacts:
    """Open every file of a case and judge the case by itself.

    Errors: files that cannot be read whole, several frames, no or a singular affine, NaN or infinite voxels, channels
    or label on another grid than the first channel (a corner further away than 0.1 of the smallest voxel edge), label
    values that are not integral, no label; label values of no class are only noted. Warnings: constant image, empty
    label, sform and qform apart. Never raises for what a file holds. Memory: a volume and its label at a time.
    """
    notes = _Notes(case.id)
    images: list[ImageFacts] = []
    grid: Geometry | None = None
    for path in case.image:
        volume = _read(path, notes)
        if volume is not None:
            grid = grid or volume.geometry
            try:
                onto_grid(volume.geometry, grid, where=path, role="channel")
            except VolumeError as error:
                notes.add_error(error, path)
            images.append(measure_image(volume, path))
            _judge_image(images[-1], notes)
        del volume
    label = _inspect_label(case, dataset, grid, notes)
    return CaseFacts(case.id, case.subject, tuple(images), label, tuple(notes.findings), notes.label_values)


def _read(path: Path, notes: _Notes) -> Volume | None:
    """Read one 3-D volume; None where there is none, with the finding that says why."""
    try:
        volume = read_volume(path)
        check_single_frame(volume.geometry, path)
    except VolumeError as error:
        notes.add_error(error, path)
        return None
    except MemoryError:
        remedy = "crop it, or use a machine with more memory"
        notes.add("error", "too_large", path, "a volume that fits this machine's memory", "one that does not", remedy)
        return None
    if apart := disagreeing_forms(volume.geometry, volume.form_gap_mm):
        remedy = "the sform is used here, other programs may use the qform: find out which is right and set both"
        notes.add("warning", "sform_qform", path, "sform and qform that agree", apart, remedy)
    return volume


def _judge_image(facts: ImageFacts, notes: _Notes) -> None:
    if facts.n_not_finite:
        found = f"{facts.n_not_finite} NaN or infinite voxels"
        remedy = "repair the file; what made these voxels is worth knowing"
        notes.add("error", "not_finite", facts.path, "finite intensities", found, remedy)
    if facts.is_constant:
        remedy = "export the image again, or drop the case"
        notes.add("warning", "constant_image", facts.path, "an image", f"{facts.minimum:g} in every voxel", remedy)


def _inspect_label(case: Case, dataset: Dataset, grid: Geometry | None, notes: _Notes) -> LabelFacts | None:
    if case.label is None:
        image = case.image[0] if case.image else ""
        notes.add("error", "missing_label", image, "a label beside the image", "none", "add it or remove the image")
        return None
    if isinstance(case.label, Path):
        file, facts = case.label, _inspect_label_map(case.label, dataset, grid, notes)
    else:
        file = label_path(case.label) or Path()
        facts = _inspect_masks(case.label, len(dataset.classes.names), grid, notes)
    if facts is not None and not facts.class_voxels[1:].any():
        remedy = "look whether the structures are really absent, or drop the case"
        notes.add("warning", "empty_label", file, "a voxel of some class", "background only", remedy)
    return facts


def _inspect_label_map(path: Path, dataset: Dataset, grid: Geometry | None, notes: _Notes) -> LabelFacts | None:
    volume = _read(path, notes)
    if volume is None:
        return None
    if grid is not None:
        try:
            onto_grid(volume.geometry, grid, where=path, role="label")
        except VolumeError as error:
            notes.add_error(error, path)
    try:
        counts = count_values(volume.array, str(path))
    except VolumeError as error:
        notes.add_error(error, path)
        return None
    classes = dataset.classes
    if counts.keys() - classes.known_values:
        notes.label_values.update(counts)  # what they may mean shows beside the other cases
        return None
    return measure_label(volume.array, volume.affine, len(classes.names), classes.class_of_value, counts)


def _inspect_masks(
    masks: Sequence[tuple[int, Path]], n_classes: int, grid: Geometry | None, notes: _Notes
) -> LabelFacts | None:
    """Merge the masks as training does: where they overlap, the later one wins. None where one cannot serve."""
    merged: MergedMasks | None = None
    complete = True
    for index, path in masks:
        volume = _read(path, notes)
        if volume is None:
            complete = False
            continue
        grid = grid or volume.geometry
        merged = merged or MergedMasks(grid.shape, n_classes)
        try:
            change = onto_grid(volume.geometry, grid, where=path, role="mask")
            merged.add(index, change.apply(mask_of(volume.array, str(path))))
        except VolumeError as error:
            notes.add_error(error, path)
            complete = False
    if merged is None or grid is None or not complete:
        return None
    counts = count_values(merged.labels, "")
    return measure_label(merged.labels, grid.affine, n_classes, {c: c for c in range(n_classes)}, counts)
