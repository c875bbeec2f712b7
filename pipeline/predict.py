"""The verb "predict": from run folders and scans to segmentations on the scans' own grids. `batch` does the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from networks.errors import NetworkError
from pipeline.compute.devices import choose_device, choose_precision
from pipeline.console.progress import Bar
from pipeline.files.atomic import check_writable
from pipeline.files.json_files import write_json
from pipeline.inference.batch import Settings, segment_cases
from pipeline.inference.inputs import list_inputs
from pipeline.inference.model import load_models
from pipeline.inference.passes import AUTO, Passes, choose_mirrored, mirror_axes
from pipeline.writers.outputs import Wanted
from pipeline.writers.segmentation import SegmentationError


def predict(
    runs: Sequence[Path | str],
    inputs: Sequence[Path | str],
    output: Path | str,
    *,
    formats: Sequence[str] = ("nifti",),
    per_structure: bool = False,
    probabilities: Sequence[str] = (),
    preview: bool = False,
    tta: str = "",
    roi: Sequence[int] | None = None,
    keep_largest: Sequence[str] = (),
    min_volume_ml: float = 0.0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    report: Path | str | None = None,
    trust: bool = False,
    follow_links: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Segment scans with one trained network, or with several whose probabilities are averaged.

    Args:
        runs: run folders or best_model.ckpt files.
        inputs: volumes, DICOM folders, folder trees, data sets.
        output: folder for the results.
        formats: of "nifti", "nrrd" (.seg.nrrd) and "dicom" (DICOM SEG, for DICOM inputs).
        per_structure: one mask a structure, too, in CASE/segmentations.
        probabilities: names of classes whose probabilities are written, too.
        preview: a picture of three planes for every case.
        tta: axes (of x left-right, y back-front, z foot-head) along which the scan is also shown mirrored; "auto"
            takes those of the training, see `inference.choose_mirrored`.
        roi: sliding window in voxels of the network's grid; None for the whole volume at once.
        keep_largest: names of classes of which only the largest connected piece stays.
        min_volume_ml: connected pieces below this volume are removed.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "32" or "bf16".
        threads: processor threads; None leaves it to torch.
        overwrite: do finished cases again.
        report: where to write the returned document as JSON.
        trust: import network classes outside the allow-list, too.
        follow_links: take files that links in the inputs fetch from outside them.
        console: where the progress bar goes.

    Returns:
        {"format": 1, "runs": paths, "class_names": [...], "cases": one record a case, "n_done", "n_skipped",
        "n_failed"}; records as `batch.segment_cases` describes them.

    Raises:
        NetworkError, FileError, VolumeError, DatasetError, SegmentationError: what makes the whole batch
            impossible. What is wrong with one case stands in its record.
    """
    if threads is not None:
        if threads < 1:
            raise NetworkError(f"threads: expected 1 or more, found {threads}")
        torch.set_num_threads(threads)
    if tta != AUTO:
        mirror_axes(tta)  # a wrong letter is said before networks are loaded
    for folder in (Path(output), *([] if report is None else [_report_folder(Path(report))])):
        check_writable(folder)
    place = choose_device(device)
    cases = list_inputs(inputs, follow_links=follow_links, output=Path(output))
    models = load_models(runs, place, trust=trust)
    names = models[0].class_names
    wanted = Wanted(
        Path(output), names, tuple(formats), per_structure, _indices(probabilities, names, "probabilities"), preview
    )
    settings = Settings(
        Passes(choose_mirrored(tta, models), _checked_roi(roi), choose_precision(precision, place)),
        _indices(keep_largest, names, "keep_largest"),
        float(min_volume_ml),
    )
    with Bar("Predicting", console) as bar:
        records = segment_cases(
            models,
            cases,
            wanted,
            settings,
            overwrite=overwrite,
            progress=lambda d, n, what: bar.update(d, n, note=what),
            case_progress=bar.update_part,
        )
    document = {"format": 1, "runs": [str(run) for run in runs], "class_names": list(names), "cases": records}
    document |= {f"n_{s}": sum(r["status"] == s for r in records) for s in ("done", "skipped", "failed")}
    if report is not None:
        Path(report).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(report), document)
    return document


def split_runs(paths: Sequence[Path | str]) -> tuple[list[Path], list[Path]]:
    """Take a command line's paths apart: leading run folders and checkpoints, then inputs.

    Raises NetworkError if the first is no run, SegmentationError if nothing follows.
    """
    all_paths = [Path(path) for path in paths]
    n_runs = next((i for i, path in enumerate(all_paths) if not _is_run(path)), len(all_paths))
    if not n_runs:
        raise NetworkError(f"{all_paths[0]}: expected a run folder or a best_model.ckpt first, then the scans")
    if n_runs == len(all_paths):
        raise SegmentationError("expected scans after the run: files, DICOM folders or folders with these")
    return all_paths[:n_runs], all_paths[n_runs:]


def to_text(document: dict[str, Any]) -> str:
    """What a person reads at the end: how many, and which failed and why."""
    counts = f"{document['n_done']} done, {document['n_skipped']} skipped, {document['n_failed']} failed"
    failed = [record for record in document["cases"] if record["status"] == "failed"]
    return "\n".join([counts, *(f"  {record['case']}: {record['error']}" for record in failed)])


def _report_folder(report: Path) -> Path:
    if report.is_dir():
        raise SegmentationError(f"--report {report}: expected a file, found a folder; name a file in it")
    return report.parent


def _is_run(path: Path) -> bool:
    return path.suffix == ".ckpt" or (path / "checkpoints").is_dir() or (path / "training_config.json").is_file()


def _indices(wanted: Sequence[str], class_names: Sequence[str], flag: str) -> tuple[int, ...]:
    for name in wanted:
        if name not in class_names:
            raise SegmentationError(f"{flag}: unknown class {name!r}; the run knows {', '.join(class_names)}")
    return tuple(class_names.index(name) for name in wanted)


def _checked_roi(roi: Sequence[int] | None) -> tuple[int, int, int] | None:
    if roi is None:
        return None
    if len(roi) != 3 or min(roi) < 1:
        raise NetworkError(f"roi: expected three numbers of voxels, found {list(roi)}")
    return int(roi[0]), int(roi[1]), int(roi[2])
