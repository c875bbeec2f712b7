"""Opens every file of one case once: what it holds (`pipeline.facts`), and what is wrong with the case by itself.

What is wrong between cases, or only unusual, `pipeline.dataset_findings` judges from these facts.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from pipeline.checks.findings import Finding, Severity, from_volume_error
from pipeline.checks.voxel_statistics import ImageFacts, LabelFacts, count_values, measure_image, measure_label
from pipeline.compute.memory import workers_that_fit
from pipeline.datasets.dataset import Case, Dataset, label_path
from transforms.io.grid import GRID_TOLERANCE_VOXELS, AxisChange, Geometry, VolumeError, axes_onto, describe_mismatch
from transforms.io.load import Volume, read_volume

FORM_TOLERANCE_VOXELS = 0.5
"""How far sform and qform may lie apart at the far corner: a float32 quaternion is rounded by less."""

BYTES_A_CASE = 3 << 30
"""Memory that a large CT and its label may take while they are checked."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What was found in a case: `images` holds the channels that could be read, `label` is None if it cannot serve.

    `unknown_values` are the voxels of every value of a label map that holds values of no class, else empty.
    """

    case: str
    subject: str
    images: tuple[ImageFacts, ...]
    label: LabelFacts | None
    findings: tuple[Finding, ...]
    unknown_values: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Notes:
    """The findings of one case as they come up."""

    case: str
    findings: list[Finding] = field(default_factory=list)
    label_values: dict[int, int] = field(default_factory=dict)
    """Voxels of every value of a label map with unknown ones."""

    def add(self, severity: Severity, kind: str, file: object, expected: str, found: str, remedy: str) -> None:
        self.findings.append(Finding(severity, kind, self.case, str(file), expected, found, remedy))


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
        workers: cases looked at at once; None: by cores and memory.
        progress: called with (what, done, total).
        on_facts: called with the facts of each case as they come, one at a time.
    """
    facts: dict[int, CaseFacts] = {}
    with _quiet("transforms"), ThreadPoolExecutor(workers or workers_that_fit(BYTES_A_CASE)) as pool:
        waiting = {pool.submit(inspect_case, case, dataset): place for place, case in enumerate(cases)}
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                facts[waiting[future]] = future.result()
                if on_facts:
                    on_facts(future.result())
                if progress:
                    progress("checking cases", done, len(waiting))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: the cases in hand end, no other starts
            raise
    return [facts[place] for place in range(len(cases))]


@contextlib.contextmanager
def _quiet(room: str) -> Iterator[None]:
    """Keep a room's warnings out of the log: they are findings here."""
    logger = logging.getLogger(room)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


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
            grid = grid or _geometry(volume)
            _onto(volume, grid, path, "channel", notes)
            images.append(measure_image(volume, path))
            _judge_image(images[-1], notes)
        del volume
    label = _inspect_label(case, dataset, grid, notes)
    return CaseFacts(case.id, case.subject, tuple(images), label, tuple(notes.findings), notes.label_values)


def _read(path: Path, notes: _Notes) -> Volume | None:
    """Read one 3-D volume; None where there is none, with the finding that says why."""
    try:
        volume = read_volume(path)
    except VolumeError as error:
        notes.findings.append(from_volume_error(error, case=notes.case, file=path))
        return None
    except MemoryError:
        remedy = "crop it, or use a machine with more memory"
        notes.add("error", "unreadable", path, "a volume that fits this machine's memory", "one that does not", remedy)
        return None
    if volume.array.ndim > 3:
        found = f"{volume.array.shape[3]} frames, shape {volume.array.shape}"
        notes.add("error", "not_3d", path, "one 3-D volume", found, "save each frame or channel as a file of its own")
        return None
    if volume.kind == "nifti":
        _judge_forms(volume, path, notes)
    return volume


def _geometry(volume: Volume) -> Geometry:
    return Geometry(volume.array.shape, volume.affine, volume.array.dtype, volume.kind)


def _onto(volume: Volume, grid: Geometry, path: Path, role: str, notes: _Notes) -> AxisChange | None:
    """Return how the volume's axes lie along the grid's; None, with a finding, where it is on another grid."""
    geometry = _geometry(volume)
    change = axes_onto(geometry, grid)
    if change is None:
        tolerance = f"{GRID_TOLERANCE_VOXELS * min(grid.spacing_mm):.3g} mm, {GRID_TOLERANCE_VOXELS:g} of a voxel edge"
        expected = f"the {role} on its image's voxel grid (every corner within {tolerance})"
        remedy = "resample it onto the image's grid, or drop the case"
        notes.add("error", "grid_mismatch", path, expected, describe_mismatch(geometry, grid), remedy)
    return change


def _judge_image(facts: ImageFacts, notes: _Notes) -> None:
    if facts.n_not_finite:
        found = f"{facts.n_not_finite} NaN or infinite voxels"
        remedy = "repair the file; what made these voxels is worth knowing"
        notes.add("error", "not_finite", facts.path, "finite intensities", found, remedy)
    if facts.is_constant:
        remedy = "export the image again, or drop the case"
        notes.add("warning", "constant_image", facts.path, "an image", f"{facts.minimum:g} in every voxel", remedy)


def _judge_forms(volume: Volume, path: Path, notes: _Notes) -> None:
    gap = _form_gap_mm(path, volume.array.shape)
    edge = float(np.linalg.norm(volume.affine[:3, :3], axis=0).min())
    if gap is not None and gap > FORM_TOLERANCE_VOXELS * edge:
        found = f"{gap:.3g} mm between them at the far corner (the smallest voxel edge is {edge:.3g} mm)"
        remedy = "the sform is used here, other programs may use the qform: find out which is right and set both"
        notes.add("warning", "sform_qform", path, "sform and qform that agree", found, remedy)


def _form_gap_mm(path: Path, shape: Sequence[int]) -> float | None:
    """Return mm between sform and qform at the far corner; None where the header has only one of them."""
    header_path = path.with_suffix(".hdr") if path.suffix.lower() == ".img" else path
    try:
        with nib.openers.ImageOpener(str(header_path)) as file:
            size = file.read(4)
            file.seek(0)
            is_second = 540 in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))
            # Unchecked: checking repairs, and prints what it repairs.
            header = (nib.Nifti2Header if is_second else nib.Nifti1Header).from_fileobj(file, check=False)
        if header["sform_code"] <= 0 or header["qform_code"] <= 0:
            return None
        if header["pixdim"][0] not in (-1, 1):
            header["pixdim"][0] = 1  # NIfTI-1 standard: qfac 0 counts as 1
        apart = header.get_sform() - header.get_qform()
    except (HeaderDataError, WrapStructError, ValueError, OSError):
        return None  # an unusable qform beside a good sform harms nobody who reads the sform
    return float(np.linalg.norm(apart @ [*(n - 1 for n in shape), 1]))


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
        _onto(volume, grid, path, "label", notes)
    counts = _whole_numbers(volume.array, path, notes)
    if counts is None:
        return None
    if counts.keys() - dataset.classes.known_values:
        notes.label_values.update(counts)  # what they may mean shows beside the other cases
        return None
    classes = dataset.classes
    return measure_label(volume.array, volume.affine, len(classes.names), classes.class_of_value, counts)


def _inspect_masks(
    masks: Sequence[tuple[int, Path]], n_classes: int, grid: Geometry | None, notes: _Notes
) -> LabelFacts | None:
    """Merge the masks as training does: where they overlap, the later one wins. None where one cannot serve."""
    merged: np.ndarray | None = None
    complete = True
    for index, path in masks:
        volume = _read(path, notes)
        if volume is None:
            complete = False
            continue
        grid = grid or _geometry(volume)
        merged = np.zeros(grid.shape, np.uint16, order="F") if merged is None else merged
        change = _onto(volume, grid, path, "mask", notes)
        inside = _inside(volume.array, path, notes)
        if change is None or inside is None:
            complete = False
        else:
            merged[change.apply(inside)] = index
    if merged is None or grid is None or not complete:
        return None
    counts = dict(enumerate(np.bincount(merged.ravel(order="K"), minlength=n_classes).tolist()))
    return measure_label(merged, grid.affine, n_classes, {c: c for c in range(n_classes)}, counts)


def _inside(array: np.ndarray, path: Path, notes: _Notes) -> np.ndarray | None:
    counts = _whole_numbers(array, path, notes)
    if counts is None:
        return None
    if len(counts.keys() - {0}) > 1:
        expected, remedy = "a mask of 0 and one other value", "export one structure a file"
        notes.add("error", "label_unknown_values", path, expected, list_counts(counts), remedy)
        return None
    return (np.rint(array) if array.dtype.kind == "f" else array) != 0


def _whole_numbers(array: np.ndarray, path: Path, notes: _Notes) -> dict[int, int] | None:
    counts, n_off, example = count_values(array)
    if n_off:
        found = f"{n_off} voxels that are not, {example:g} for one"
        remedy = "resample the label with nearest neighbour and save it as integers"
        notes.add("error", "label_not_integral", path, "whole numbers as label values", found, remedy)
        return None
    return counts


def list_counts(counts: Mapping[int, int]) -> str:
    """Write the first dozen values with their voxels."""
    listed = ", ".join(f"{value} ({count} voxels)" for value, count in list(counts.items())[:12])
    return listed + (f" and {len(counts) - 12} more values" if len(counts) > 12 else "")
