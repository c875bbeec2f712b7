"""Open every file of one case once, measure it, and find what is wrong with the case by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from pipeline.checks.findings import Finding, Severity, from_error
from pipeline.checks.voxel_statistics import ImageStatistics, LabelStatistics, measure_image, measure_label
from pipeline.compute.memory import workers_that_fit
from pipeline.console.progress import Progress
from pipeline.datasets.class_table import ClassTable, only_ones, plain_name
from pipeline.datasets.dataset import Case, Dataset, check_annotated, label_path
from transforms.io.errors import VolumeError
from transforms.io.grid import MAX_SHEAR_DEGREES, SHEAR_IN_ITK, AxisChange, Geometry, onto_grid
from transforms.io.label_values import LabelLookup, MergedMasks, count_values, mask_of
from transforms.io.load import (
    FillNaN,
    Volume,
    check_frames,
    disagreeing_forms,
    fill_nan_voxels,
    fills_of_channels,
    read_volume,
)
from transforms.io.segment_names import segment_values

BYTES_A_CASE = 3 << 30
"""Memory that a large CT and its label may take while they are checked."""


@dataclass(frozen=True, eq=False)
class CheckedCase:
    """What was found in the files of one case."""

    case: str
    subject: str
    images: tuple[ImageStatistics, ...]
    """The channels that could be read."""
    label: LabelStatistics | None
    """None where the label cannot serve."""
    findings: tuple[Finding, ...]
    unknown_values: Mapping[int, int] = field(default_factory=dict)
    """Voxels of every value of a label map that holds values of no class, else empty."""


def whole_cases(cases: Iterable[CheckedCase], n_channels: int) -> list[CheckedCase]:
    """The cases of which every image could be read: where one is missing, an image's index is not its channel's."""
    return [case for case in cases if len(case.images) == n_channels]


def check_cases(
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    fill_nan: FillNaN = None,
    workers: int | None = None,
    progress: Progress | None = None,
    on_case: Callable[[CheckedCase], None] | None = None,
    known: Callable[[Case], CheckedCase | None] = lambda case: None,
) -> list[CheckedCase]:
    """`check_case` of every case, in threads: reading is gzip, which lets go of the interpreter.

    Args:
        cases: the cases to open; the results come in their order.
        dataset: says which label values are classes.
        fill_nan: see `check_case`.
        workers: cases opened at once; None: by cores and memory.
        progress: called after each case.
        on_case: called with each case as it is done, one at a time.
        known: says what is known of a case, in its thread, before the case is opened; None: nothing.
    """

    def checked(case: Case) -> CheckedCase:
        return known(case) or check_case(case, dataset, fill_nan=fill_nan)

    results: dict[int, CheckedCase] = {}
    with ThreadPoolExecutor(workers or workers_that_fit(BYTES_A_CASE)) as pool:
        waiting = {pool.submit(checked, case): index for index, case in enumerate(cases)}
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                results[waiting[future]] = future.result()
                if on_case:
                    on_case(future.result())
                if progress:
                    progress(done, len(waiting), "checking cases")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: the cases in hand end, no other starts
            raise
    return [results[index] for index in range(len(cases))]


def check_case(case: Case, dataset: Dataset, *, fill_nan: FillNaN = None) -> CheckedCase:
    """Open every file of a case and check the case by itself.

    Errors: files that cannot be read whole, several frames, no or a singular affine, voxels that are NaN, infinite or
    beyond float32, channels or label on another grid than the first channel (a corner further away than 0.1 of the
    smallest voxel edge), label values that are not integral, no label, voxels of a class that the case is said not to
    annotate; label values of no class are only noted.
    Warnings: constant image, empty label, sform and qform apart, a sheared grid, labelled voxels of NaN, NaN that
    becomes a number far from the others. Never raises for what a file holds. Memory: a file and the label at a time.

    fill_nan: the number that NaN voxels of an image become, or one a channel; None: they are an error.
    """
    notes = _Notes(case.id)
    n_classes = len(dataset.classes.names)
    images: list[ImageStatistics] = []
    grid: Geometry | None = None
    label: _Label | None = None
    whole = _read(case.image[0], notes, len(case.frames)) if case.frames else None
    for number, fill in enumerate(fills_of_channels(fill_nan, len(case.frames or case.image))):
        path, volume = _channel(case, number, whole, notes)
        if volume is not None:
            if grid is None:
                grid = volume.geometry
                label = _read_label(case, dataset, grid, notes)
            change = _onto(volume, grid, path, "channel", notes)
            classes = label.along(change, volume) if label is not None and change is not None else None
            if fill is not None:
                _check_filled(volume, fill, classes, n_classes, path, notes)
                volume = replace(volume, array=fill_nan_voxels(volume.array, fill))
            images.append(measure_image(volume, path, classes, n_classes))
            _check_image(images[-1], notes)
        del volume
    if grid is None:
        label = _read_label(case, dataset, None, notes)
    return CheckedCase(
        case=case.id,
        subject=case.subject,
        images=tuple(images),
        label=label.statistics if label else None,
        findings=tuple(notes.findings),
        unknown_values=notes.unknown_values,
    )


@dataclass(frozen=True)
class _Notes:
    """The findings of one case as they come up."""

    case: str
    findings: list[Finding] = field(default_factory=list)
    unknown_values: dict[int, int] = field(default_factory=dict)

    def add(self, severity: Severity, kind: str, file: object, expected: str, found: str, remedy: str) -> None:
        self.findings.append(Finding(severity, kind, self.case, str(file), expected, found, remedy))

    def add_error(self, error: VolumeError, file: Path) -> None:
        self.findings.append(from_error(error, case=self.case, file=file))


@dataclass(frozen=True, eq=False)
class _Label:
    """A label that can serve."""

    classes: Int[np.ndarray, "i j k"]
    """Class indices along the axes of the case's first channel."""
    statistics: LabelStatistics

    def along(self, change: AxisChange, volume: Volume) -> np.ndarray | None:
        """The class indices along the axes of a channel; None where the label is on another grid."""
        turned = change.undo(self.classes)
        return turned if turned.shape == volume.array.shape else None


def _channel(case: Case, number: int, whole: Volume | None, notes: _Notes) -> tuple[Path, Volume | None]:
    """A channel, read from its file or taken out of the `whole` one with all frames, and where it is."""
    if not case.frames:
        return case.image[number], _read(case.image[number], notes)
    frame = case.frames[number]
    return Path(f"{case.image[0]}, frame {frame}"), whole and whole.frame(frame)


def _read(path: Path, notes: _Notes, n_expected: int = 1) -> Volume | None:
    """Read one 3-D volume, or one of so many frames; None where there is none, with the finding that says why."""
    try:
        volume = read_volume(path)
        check_frames(volume.geometry, path, n_expected)
    except VolumeError as error:
        notes.add_error(error, path)
        return None
    except MemoryError:
        remedy = "crop it, or use a machine with more memory"
        notes.add("error", "too_large", path, "a volume that fits this machine's memory", "one that does not", remedy)
        return None
    if apart := disagreeing_forms(volume.geometry):
        remedy = "the sform is used here, other programs may use the qform: find out which is right and set both"
        notes.add("warning", "sform_qform", path, "sform and qform that agree", apart, remedy)
    return volume


def _onto(volume: Volume, grid: Geometry, path: Path, role: str, notes: _Notes) -> AxisChange | None:
    """How the axes of a file lie along its image's; None, with a finding, where it is on another grid."""
    try:
        change = onto_grid(volume.geometry, grid, where=path, role=role)
    except VolumeError as error:
        notes.add_error(error, path)
        return None
    if change.padding and not any(finding.kind == "label_cropped" for finding in notes.findings):
        found = f"{volume.geometry.shape} of {grid.shape} voxels; the rest counts as background"
        remedy = "nothing, if it was cropped to its content (3D Slicer does that); else export it whole"
        notes.add("warning", "label_cropped", path, f"a {role} of its image's whole grid", found, remedy)
    return change


def _check_filled(
    volume: Volume, fill_nan: float, classes: np.ndarray | None, n_classes: int, path: Path, notes: _Notes
) -> None:
    """Warn of NaN where a label says that there is something to see, and of a number for NaN so far from the image's
    own that scaling leaves little contrast: that of a CT in a PET."""
    if volume.array.dtype.kind != "f" or not (is_nan := np.isnan(volume.array)).any():
        return
    if classes is not None and (n := np.count_nonzero(is_nan & (classes > 0) & (classes < n_classes))):
        found = f"{n} labelled voxels of NaN, which data.fill_nan gives a number"
        remedy = "check whether image and label belong together"
        notes.add("warning", "nan_labelled", path, "a value in every labelled voxel", found, remedy)
    voxels = volume.array.ravel(order="K")  # as they lie in memory: twenty times as fast in a CT
    known = voxels[np.isfinite(voxels)]
    low, high = (float(known.min()), float(known.max())) if known.size else (fill_nan, fill_nan)
    if low < high and not low - (high - low) <= fill_nan <= high + (high - low):
        found = f"{np.count_nonzero(is_nan)} voxels that become {fill_nan:g}, the others are from {low:g} to {high:g}"
        remedy = (
            "nothing in a CT, whose window cuts it off; else choose another number, of several channels one for each "
            "(data.fill_nan [-1024, 0])"
        )
        notes.add("warning", "far_fill_nan", path, "a data.fill_nan near the other voxels", found, remedy)


def _check_image(image: ImageStatistics, notes: _Notes) -> None:
    if image.n_not_finite:
        found = f"{image.n_not_finite} voxels that are NaN, infinite or beyond float32"
        remedy = "repair the file; what made these voxels is worth knowing"
        if image.n_nan:
            remedy += "; where NaN lies outside the field of view, set data.fill_nan (-1024 in a CT)"
        notes.add("error", "not_finite", image.path, "finite intensities", found, remedy)
    if image.is_constant:
        remedy = "export the image again, or drop the case"
        notes.add("warning", "constant_image", image.path, "an image", f"{image.minimum:g} in every voxel", remedy)
    if image.shear_degrees > MAX_SHEAR_DEGREES:
        found = f"axes {image.shear_degrees:.2g} degrees away from right angles"
        remedy = f"resample it to a grid without shear: {SHEAR_IN_ITK}"
        notes.add("warning", "sheared", image.path, "voxel axes at right angles", found, remedy)


def _read_label(case: Case, dataset: Dataset, grid: Geometry | None, notes: _Notes) -> _Label | None:
    if case.label is None:
        image = case.image[0] if case.image else ""
        notes.add("error", "missing_label", image, "a label beside the image", "none", "add it or remove the image")
        return None
    if isinstance(case.label, Path):
        label = _read_label_map(case.label, case.table or dataset.classes, grid, notes)
    else:
        label = _read_masks(case.label, len(dataset.classes.names), grid, notes)
    if label is not None and case.annotated is not None:
        annotated, n_voxels = dataset.annotated_in(case.id), label.statistics.class_voxels.tolist()
        try:
            check_annotated(case.id, case.label, dataset.classes.names, annotated, n_voxels)
        except VolumeError as error:
            notes.add_error(error, Path(error.where))
    if label is not None and not label.statistics.class_voxels[1:].any():
        remedy = "check whether the structures are really absent, or drop the case"
        where = label_path(case.label) or ""
        notes.add("warning", "empty_label", where, "a voxel of some class", "background only", remedy)
    return label


def _read_label_map(path: Path, table: ClassTable, grid: Geometry | None, notes: _Notes) -> _Label | None:
    volume = _read(path, notes)
    if volume is None:
        return None
    array = volume.array
    affine = volume.affine
    if grid is not None:
        change = _onto(volume, grid, path, "label", notes)
        if change is not None:
            array = change.apply(array)
            affine = grid.affine
    if _names_differ(path, table, notes):
        return None
    try:
        counts = count_values(array, str(path))
    except VolumeError as error:
        notes.add_error(error, path)
        return None
    if counts.keys() - table.known_values:
        notes.unknown_values.update(counts)  # what they may mean shows beside the other cases
        return None
    try:
        lookup = LabelLookup(table.values, table.ignore_value, table.remap)
    except ValueError:
        return None  # a table that no label can be read with: an error of the data set
    classes = lookup.indices(array, str(path))
    orientation = volume.geometry.orientation
    return _Label(classes, measure_label(classes, affine, len(table.names), orientation=orientation))


def _names_differ(path: Path, table: ClassTable, notes: _Notes) -> bool:
    """Find a label whose own header (.seg.nrrd) gives classes other values than the table of the data set."""
    try:
        segments = segment_values(path)
    except VolumeError as error:
        notes.add_error(error, path)
        return True
    if not segments:
        return False
    named = _named_classes(tuple(segments), table.names)
    class_of = {name: c for name, c in named.items() if c not in table.lacking}  # those have no value of their own
    other = [
        f"{name} at {segments[name]}" for name, c in class_of.items() if table.class_of_value.get(segments[name]) != c
    ]
    if other:
        expected = "the values of the class table, " + ", ".join(
            f"{table.names[c]} at {table.values[c]}" for c in class_of.values()
        )
        found = f"{', '.join(other)} by the segments in its own header"
        remedy = "export all labels with the same values"
        notes.add("error", "segment_values", path, expected, found, remedy)
    return bool(other)


def _named_classes(segments: Sequence[str], class_names: Sequence[str]) -> dict[str, int]:
    """The class of each segment that is called as one: in full but for the case, or else as the only one so, both
    among the segments and the classes, without regard to blanks and punctuation ("Kidney left", kidney_left)."""
    in_full = {name.lower(): c for c, name in enumerate(class_names)}
    segment_of, class_of = only_ones(segments, plain_name), only_ones(class_names, plain_name)
    plain = {segments[segment]: class_of[form] for form, segment in segment_of.items() if form in class_of}
    found = {name: in_full.get(name.lower(), plain.get(name)) for name in segments}
    return {name: c for name, c in found.items() if c is not None}


def _read_masks(
    masks: Sequence[tuple[int, Path]], n_classes: int, grid: Geometry | None, notes: _Notes
) -> _Label | None:
    """Merge the masks as training does: where they overlap, the later one wins. None where one cannot serve."""
    merged: MergedMasks | None = None
    orientation = ""
    complete = True
    for index, path in masks:
        volume = _read(path, notes)
        if volume is None:
            complete = False
            continue
        grid = grid or volume.geometry
        merged = merged or MergedMasks(grid.shape, n_classes)
        orientation = orientation or volume.geometry.orientation
        change = _onto(volume, grid, path, "mask", notes)
        try:
            inside = mask_of(volume.array, str(path))
        except VolumeError as error:
            notes.add_error(error, path)
            change = None
        if change is None:
            complete = False
        else:
            merged.add(index, change.apply(inside))
    if merged is None or grid is None or not complete:
        return None
    overlaps = [(lost, winner, count) for (lost, winner), count in sorted(merged.overlaps.items())]
    statistics = measure_label(merged.labels, grid.affine, n_classes, orientation=orientation, overlaps=overlaps)
    return _Label(merged.labels, statistics)
