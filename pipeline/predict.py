"""Command "predict": segment scans with one or several trained networks, on the scans' own voxel grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import median
from typing import Any

import torch
from rich.console import Console

from networks.errors import NetworkError
from networks.sliding_window import STEP
from pipeline.compute.devices import choose_device, choose_precision
from pipeline.console.progress import Bar
from pipeline.console.tables import in_parts
from pipeline.console.terminal import standard_error
from pipeline.console.text import counted, first_lines, fitted, four_digits, printable, some_of, volume_unit
from pipeline.files.atomic import FileError, check_writable, make_folder, write_error
from pipeline.files.json_files import read_json, write_json
from pipeline.inference.batch import segment_cases
from pipeline.inference.inputs import list_inputs
from pipeline.inference.model import load_models, shared_label_values
from pipeline.inference.passes import (
    AUTO,
    InferenceOptions,
    choose_mirrored,
    exchanged_in_words,
    mirror_axes,
    refuse_window,
)
from pipeline.inference.postprocessing import PostprocessingOptions
from pipeline.inference.record import CaseRecord
from pipeline.runs.run_folder import is_run_folder
from pipeline.runs.study import is_study_folder, runs_at
from pipeline.writers.outputs import OutputOptions
from pipeline.writers.segmentation import SegmentationError

MOST_WARNINGS = 20
"""Lines of warnings that are printed; the records hold all."""


@dataclass(frozen=True)
class PredictionOptions:
    """What `predict` can be asked for beyond runs, scans and folder."""

    formats: tuple[str, ...] = ("nifti",)
    """Of "nifti", "nrrd" (.seg.nrrd) and "dicom" (DICOM SEG, for DICOM inputs)."""
    label_values: str = "data"
    """What label maps hold: "data" (the values of the training's label files) or "index" (the class indices)."""
    per_structure: bool = False
    """Also one mask a structure, in CASE/segmentations."""
    probabilities: tuple[str, ...] = ()
    """Names of classes whose probabilities are written, too."""
    preview: bool = False
    """Also a picture of three planes for every case."""
    tta: str = ""
    """Axes (of x left-right, y back-front, z foot-head) along which the scan is also shown mirrored; "auto" takes those
    of the training, see `passes.choose_mirrored`."""
    roi: tuple[int, int, int] | None = None
    """Sliding window in voxels of the network's grid; None for the patch of the training, or the whole volume."""
    step: float = STEP
    """Greatest distance of neighbouring windows, as a share of the window."""
    keep_largest: tuple[str, ...] = ()
    """Names of classes of which only the largest connected piece stays."""
    min_volume_ml: float = 0.0
    """Connected pieces below this volume are removed."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    precision: str = "auto"
    """"auto" (that of the training, where the device computes in it), "32", "bf16" or "16"."""
    threads: int | None = None
    """Processor threads; None leaves it to torch."""
    overwrite: bool = False
    """Segment finished cases again."""
    trust: bool = False
    """Import network classes outside the allow-list, too."""
    follow_links: bool = False
    """Take files that links in the inputs fetch from outside them."""


@dataclass(frozen=True)
class PredictionReport:
    """What became of a batch."""

    runs: tuple[str, ...]
    """Run folders or checkpoints, as given."""
    class_names: tuple[str, ...]
    """Background first."""
    cases: tuple[CaseRecord, ...]
    """One record a case, in the order of listing."""
    exchanged: str = ""
    """Which classes mirrored passes exchanged, in words; "" where nothing was mirrored from left to right."""
    output: str = ""
    """Folder of the results, as given."""

    @property
    def n_done(self) -> int:
        """Cases that were segmented."""
        return self._count("done")

    @property
    def n_skipped(self) -> int:
        """Cases that were finished before."""
        return self._count("skipped")

    @property
    def n_failed(self) -> int:
        """Cases without a result; their records say why."""
        return self._count("failed")

    def _count(self, status: str) -> int:
        return sum(record.status == status for record in self.cases)

    def to_document(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "format": 1,
            "runs": list(self.runs),
            "class_names": list(self.class_names),
            "cases": [record.to_document() for record in self.cases],
            "n_done": self.n_done,
            "n_skipped": self.n_skipped,
            "n_failed": self.n_failed,
        }

    @property
    def is_complete(self) -> bool:
        """Whether every case has every file that was asked for."""
        return not any(record.status == "failed" or record.not_written for record in self.cases)

    def to_text(self, width: int | None = None) -> str:
        """What a person reads at the end: how many, which failed and why, the volumes, and where the results lie."""
        lines = [f"{self.n_done} done, {self.n_skipped} skipped, {self.n_failed} failed"]
        if self.exchanged:
            lines.append(printable(self.exchanged))
        failed = [f"  {record.case}: {record.error}" for record in self.cases if record.status == "failed"]
        refused = [f"  {one.case}: {name}: {why}" for one in self.cases for name, why in one.not_written.items()]
        parts = {"Scans that failed:": failed, "Formats that were not written:": refused, "Warnings:": self._warnings()}
        for heading, found in parts.items():
            lines += [heading, *found] if found else []
        if volumes := self._volumes(width):
            lines += ["", *volumes, ""]
        return fitted("\n".join([*lines, *self._where()]), width)

    def _volumes(self, width: int | None) -> list[str]:
        """A table of the volumes of each structure over the scans, and the structures that no scan shows."""
        found: dict[str, list[float]] = {}
        for record in self.cases:
            for one in record.classes[1:]:
                found.setdefault(one.name, []).append(one.volume_ml)
        present = {name: [volume for volume in volumes if volume] for name, volumes in found.items()}
        unit, per_ml = volume_unit(volume for volumes in present.values() for volume in volumes)
        rows = []
        for name, volumes in present.items():
            if volumes:
                numbers = (median(volumes), min(volumes), max(volumes))
                median_text, *range_text = (four_digits(volume * per_ml) for volume in numbers)
                rows.append([name, str(len(volumes)), median_text, *(range_text if len(volumes) > 1 else ("", ""))])
        absent = [name for name, volumes in present.items() if not volumes]
        lines = []
        if rows:
            headings = ["structure", "scans", f"median\n{unit}", f"smallest\n{unit}", f"largest\n{unit}"]
            lines = in_parts(headings, rows, width).split("\n")
        if absent:
            lines += ["", f"in no scan: {printable(some_of(absent))}"]
        return lines

    def _where(self) -> list[str]:
        """Where the results lie, and at the very end what is missing."""
        finished = [record for record in self.cases if record.status != "failed"]
        lines = []
        if finished:
            files = some_of([PurePath(name).name for name in finished[0].files], 3)
            others = f"; the same for {counted(len(finished) - 1, 'other scan')}" if len(finished) > 1 else ""
            record = f"with its record {finished[0].case}.json"
            lines.append(printable(f"Results in {self.output}: {files}, {record}{others}"))
        if failed := [record.case for record in self.cases if record.status == "failed"]:
            lines.append(printable(f"{counted(len(failed), 'scan')} failed, see above: {some_of(failed, 5)}"))
        return lines

    def _warnings(self) -> list[str]:
        lines = [f"  {record.case}: {text}" for record in self.cases for text in record.warnings]
        return first_lines(lines, "  {} more warnings are in the records (CASE.json)", MOST_WARNINGS)

    def write(self, path: Path) -> None:
        """Write the report as JSON, making the folder.

        Raises SegmentationError where another file has that name, such as a result, FileError if the disk refuses.
        """
        check_report_path(path)
        make_folder(path.parent)
        write_json(path, self.to_document())


def predict(
    runs: Sequence[Path | str],
    inputs: Sequence[Path | str],
    output: Path | str,
    options: PredictionOptions | None = None,
    *,
    console: Console | None = None,
) -> PredictionReport:
    """Segment scans with one trained network, or with several whose probabilities are averaged.

    Args:
        runs: run folders or best_model.ckpt files; the folder of a cross-validation stands for all its networks.
        inputs: volumes, DICOM folders, folder trees, data sets.
        output: folder for the results.
        options: everything else.
        console: where the progress bar goes, and which networks are averaged; None: standard error.

    Raises:
        ConfigError, NetworkError, FileError, VolumeError, DatasetError, SegmentationError: what makes the whole batch
            impossible. What is wrong with one case is in its record.
    """
    options = options or PredictionOptions()
    output = Path(output)
    _check_options(options, output)
    device = choose_device(options.device)
    choose_precision(options.precision, device)  # a wrong name is said before networks are loaded
    networks = [path for run in runs for path in runs_at(Path(run))]
    console = console or standard_error()
    _announce_ensemble(networks, console)
    models = load_models(networks, device, trust=options.trust)
    cases = list_inputs(inputs, models[0].channel_names, follow_links=options.follow_links, output=output)
    names = models[0].class_names
    outputs = OutputOptions(
        folder=output,
        class_names=names,
        label_values=() if options.label_values == "index" else shared_label_values(models),
        formats=tuple(options.formats),
        per_structure=options.per_structure,
        probabilities=_class_indices(options.probabilities, names, "probabilities"),
        preview=options.preview,
    )
    inference = InferenceOptions(
        mirrored=choose_mirrored(options.tta, models),
        roi=options.roi,
        step=options.step,
        precision=options.precision,
    )
    refuse_window(models, inference)
    if names[0] in options.keep_largest:
        raise SegmentationError(
            f"keep_largest: expected structures, found the background {names[0]!r}, whose pieces all stay; leave it out"
        )
    postprocessing = PostprocessingOptions(
        keep_largest=_class_indices(options.keep_largest, names, "keep_largest"),
        min_volume_ml=float(options.min_volume_ml),
    )
    with Bar("Predicting", console) as bar:
        records = segment_cases(
            models,
            cases,
            outputs,
            inference,
            postprocessing,
            overwrite=options.overwrite,
            progress=bar.update,
            case_progress=bar.update_part,
        )
    exchanged = exchanged_in_words(inference.mirrored, models)
    return PredictionReport(tuple(str(run) for run in runs), names, tuple(records), exchanged, str(output))


def _announce_ensemble(networks: Sequence[Path], console: Console) -> None:
    """Say which networks are averaged: a glob such as logs/* may name more of them than was meant."""
    if len(networks) > 1:
        named = some_of([_name_of(path) for path in networks], 6)
        line = f"Averaging the probabilities of {len(networks)} networks: {printable(named)}"
        console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def _name_of(network: Path) -> str:
    """The run of a network, with the folder above where that tells folds apart."""
    run = network.parent.parent if network.suffix == ".ckpt" and network.parent.name == "checkpoints" else network
    return "/".join(run.parts[-2:])


def check_report_path(path: Path) -> None:
    """Check, before hours of work, that `PredictionReport.write` could write there.

    Raises SegmentationError for a folder and for what is no earlier report, FileError for a folder that cannot be
    written into.
    """
    try:
        if path.is_dir():
            raise SegmentationError(f"--report {path}: expected a file, found a folder; name a file in it")
        is_replaced = path.exists() and not (path.is_file() and path.stat().st_size == 0)
    except OSError as error:
        raise write_error(path, error) from error
    if is_replaced and not _is_report(path):
        raise SegmentationError(
            f"--report {path}: expected a new file or an earlier report, found another; name a new one"
        )
    check_writable(path.parent)


def _is_report(path: Path) -> bool:
    try:
        return read_json(path, largest=None).keys() >= {"runs", "cases", "n_done"}
    except FileError:
        return False


def split_runs(paths: Sequence[Path | str]) -> tuple[list[Path], list[Path]]:
    """Divide a command line's paths: leading run folders and checkpoints, then inputs.

    Raises NetworkError if the first is not a run, SegmentationError if nothing follows.
    """
    all_paths = [Path(path) for path in paths]
    n_runs = next((i for i, path in enumerate(all_paths) if not _is_checkpoint_or_run(path)), len(all_paths))
    if not n_runs:
        raise NetworkError(f"{all_paths[0]}: expected a run folder or a best_model.ckpt first, then the scans")
    if n_runs == len(all_paths):
        raise SegmentationError("expected scans after the run: files, DICOM folders or folders with these")
    return all_paths[:n_runs], all_paths[n_runs:]


def _is_checkpoint_or_run(path: Path) -> bool:
    return path.suffix == ".ckpt" or is_run_folder(path) or is_study_folder(path)


def _check_options(options: PredictionOptions, output: Path) -> None:
    """Raise what can be known to be wrong before networks are loaded; set the number of threads."""
    if options.threads is not None:
        if options.threads < 1:
            raise NetworkError(f"threads: expected 1 or more, found {options.threads}")
        torch.set_num_threads(options.threads)
    if options.label_values not in ("data", "index"):
        raise SegmentationError(f"label_values: expected data or index, found {options.label_values!r}")
    if not options.min_volume_ml >= 0:
        raise SegmentationError(f"min_volume_ml: expected 0 or more, found {options.min_volume_ml:g}")
    if options.tta != AUTO:
        mirror_axes(options.tta)
    check_writable(output)


def _class_indices(names: Sequence[str], class_names: Sequence[str], flag: str) -> tuple[int, ...]:
    for name in names:
        if name not in class_names:
            raise SegmentationError(f"{flag}: unknown class {name!r}; the run knows {', '.join(class_names)}")
    return tuple(class_names.index(name) for name in names)
