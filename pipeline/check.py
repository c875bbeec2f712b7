"""The verb "check": opens every case of a data set once and reports what is wrong, what is unusual and what it costs.

The judgements are `inspection`'s (one case), `screening`'s (the data set) and `estimate`'s (the machine); what a person
reads is `check_report`'s.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.checks.case_check import inspect_cases
from pipeline.checks.findings import Finding, errors, from_dataset_error
from pipeline.checks.screening import judge, list_configured

# dropped import
from pipeline.config.settings import Config, DataConfig
from pipeline.datasets.errors import DatasetError
from pipeline.files.json_files import null_for_undefined
from pipeline.planning.fingerprint import Fingerprint, take_fingerprint
from pipeline.training.cost import Estimate, estimate_training

__all__ = ["Report", "check", "to_json", "to_text"]

Progress = Callable[[str, int, int], None]


def check(
    target: Config | Path | str,
    *,
    measure: bool = True,
    workers: int | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Check a data set, or the data set and the training of a config.

    Every labelled case is opened once, in threads (reading is gzip, which lets go of the interpreter), whatever a
    training before has remembered, and nothing is written. A data set that cannot be listed is one error finding;
    images that it keeps without labels are not opened. Where it has no split of its own, the split of the configured
    seed is judged.

    Args:
        target: the settings of a training, or the path of a data set (then there is no estimate).
        measure: take one real training step, in a process of its own, for memory and time of the estimate.
        workers: cases looked at at once; None: by cores and memory.
        trust: take network classes from any package in the step.
        progress: called with (what, done, total).

    Returns:
        Findings, fingerprint and estimate. `exit_code` is 0 if nothing was found, 1 for warnings only, 2 for errors.
    """
    config = target if isinstance(target, Config) else Config(data=DataConfig(dataset_root=str(target)))
    report = progress or (lambda what, done, total: None)
    try:
        dataset, listing_findings = list_configured(config)
    except DatasetError as error:
        root = Path(config.data.dataset_root)
        return Report(tuple(from_dataset_error(part, root=root) for part in error.parts), None, None)
    facts = inspect_cases(dataset.cases, dataset, workers=workers, progress=progress)
    judged = judge(config, dataset, facts)
    findings = (*listing_findings, *judged.findings)
    fingerprint = take_fingerprint(facts, dataset, split=judged.split, intensity=judged.intensity)
    if not isinstance(target, Config):
        return Report(findings, fingerprint, None)
    estimate, costs = estimate_training(config, dataset, judged.split, measure=measure, trust=trust, progress=report)
    return Report((*findings, *costs), fingerprint, estimate)


_LISTED_PER_KIND = 20  # cases of one kind of finding in the text; the JSON has all

_HEADINGS = {
    "unreadable": "Files that cannot be read whole",
    "missing_file": "Files that are not there",
    "missing_label": "Images without a label",
    "missing_image": "Labels without an image",
    "not_3d": "Files that are no single 3-D volume",
    "not_grey_scale": "Files with more than one number a voxel",
    "no_orientation": "Files that do not say where left and right are",
    "bad_affine": "Files whose voxels have no usable place in space",
    "grid_mismatch": "Image and label on different voxel grids",
    "not_finite": "Images with NaN or infinite voxels",
    "label_not_integral": "Labels with values that are no whole numbers",
    "label_unknown_values": "Labels with values that are no class",
    "dicom_duplicate_slices": "DICOM series with slices at the same place",
    "dicom_missing_slices": "DICOM series with slices missing",
    "dicom_uneven_slices": "DICOM series with unevenly spaced slices",
    "dicom_gantry_tilt": "DICOM series with gantry tilt",
    "dicom_mixed_series": "DICOM folders with several series",
    "dicom_too_few_slices": "DICOM folders without a series",
    "subject_on_both_sides": "Subjects on two sides of the split",
    "voxels_on_both_sides": "The same volume on two sides of the split",
    "voxels_of_two_subjects": "The same volume under two subjects",
    "dataset": "The data set itself",
    "equal_volumes": "The same volume twice",
    "class_absent": "Classes that are absent",
    "constant_image": "Images without any contrast",
    "empty_label": "Labels without any structure",
    "odd_intensities": "Unusual intensities",
    "odd_spacing": "Unusual voxel sizes",
    "sform_qform": "Headers that describe two different places",
    "sides_swapped": "Left and right the wrong way round",
    "disk": "Room for prepared cases",
    "memory": "Memory for training",
    "step_failed": "A trial step of the training",
}


@dataclass(frozen=True)
class Report:
    """What a check found; no fingerprint where no case could be listed, no estimate where none was asked for."""

    findings: tuple[Finding, ...]
    fingerprint: Fingerprint | None
    estimate: Estimate | None

    @property
    def exit_code(self) -> int:
        """0: nothing found; 1: warnings only; 2: errors, a training is refused."""
        if errors(self.findings):
            return 2
        return 1 if self.findings else 0


def to_json(report: Report) -> str:
    """The whole report as a JSON object: exit_code, findings, fingerprint, estimate; undefined numbers are null."""
    document = {"exit_code": report.exit_code, **dataclasses.asdict(report)}
    return json.dumps(null_for_undefined(document), indent=1, ensure_ascii=False)


def to_text(report: Report) -> str:
    """The report as plain lines: what was found, errors, warnings, then the data set in tables."""
    lines = [*_findings(report.findings)]
    if report.fingerprint is not None:
        lines += ["", *_fingerprint(report.fingerprint)]
    if report.estimate is not None:
        lines += ["", *_estimate(report.estimate)]
    return "\n".join([*lines, "", _verdict(report)])


def _verdict(report: Report) -> str:
    wrong = len(errors(report.findings))
    counts = f"{wrong} errors, {len(report.findings) - wrong} warnings"
    return (
        f"Result: {counts}. "
        + (
            "Training is refused until the errors are repaired or their cases dropped.",
            "Training can start; look at the warnings first.",
            "Training can start.",
        )[2 - report.exit_code]
    )


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    for severity, title in (("error", "ERRORS"), ("warning", "WARNINGS")):
        of_kind: dict[str, list[Finding]] = defaultdict(list)
        for finding in findings:
            if finding.severity == severity:
                of_kind[finding.kind].append(finding)
        yield f"{title}: {sum(map(len, of_kind.values())) or 'none'}"
        for kind, group in of_kind.items():
            yield ""
            yield f"  {_HEADINGS.get(kind, kind)} ({len(group)})"
            yield from _group(group)
        yield ""


def _group(group: Sequence[Finding]) -> Iterator[str]:
    for finding in group[:_LISTED_PER_KIND]:
        yield f"    {f'case {finding.case}' if finding.case else 'data set'}  {finding.file}"
        yield f"      expected  {finding.expected}"
        yield f"      found     {finding.found}"
        yield f"      to do     {finding.remedy}"
    if len(group) > _LISTED_PER_KIND:
        yield f"    and {len(group) - _LISTED_PER_KIND} more of this kind; the JSON report lists all"


def _fingerprint(found: Fingerprint) -> Iterator[str]:
    sides = ", ".join(f"{name} {count}" for name, count in found.sides.items()) or "not divided"
    unlabelled = f"; {found.n_unlabelled} images without label were not opened" if found.n_unlabelled else ""
    yield f"DATA SET: {found.n_cases} cases of {found.n_subjects} subjects, layout {found.layout}{unlabelled}"
    yield f"  split         {sides} ({found.split_source})"
    yield f"  intensities   {found.intensity.get('intensity', 'unknown')}: {found.intensity.get('because', '')}"
    yield f"  formats       {_counts(found.formats)}; voxel types {_counts(found.dtypes)}"
    yield f"  orientations  {_counts(found.orientations)}"
    for title, spread, digits in (("size, voxels", found.sizes, 0), ("voxel, mm", found.spacings_mm, 3)):
        words = (f"{name} {' × '.join(f'{value:.{digits}f}' for value in row)}" for name, row in spread.items())
        yield f"  {title:13} {'; '.join(words)}"
    for channel in found.channels:
        inner = ", ".join(f"{percent:g} %: {value:.5g}" for percent, value in channel.percentiles)
        yield f"  channel {channel.name}: lowest {channel.minimum:.5g}; {inner}; highest {channel.maximum:.5g}"
    yield ""
    rows = [("value", "class", "cases", "train", "val", "voxels", "median ml")]
    rows += [
        (str(c.value), c.name, str(c.n_cases), str(c.n_train), str(c.n_val), str(c.n_voxels),
         "" if c.median_ml is None else f"{c.median_ml:.4g}")
        for c in found.classes
    ]  # fmt: skip
    yield from _table(rows)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{word} {count}" for word, count in counts.items()) or "none"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if number == 1 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"  {'  '.join(cells)}".rstrip()


def _estimate(estimate: Estimate) -> Iterable[str]:
    yield "TRAINING as configured, on this machine"
    yield f"  cache         {_gb(estimate.cache_bytes)} in {estimate.cache_dir}, {_gb(estimate.free_bytes)} there"
    trial = estimate.trial
    if trial is None:
        yield "  step          not measured"
        return
    yield f"  step          {trial.step_s:.2f} s a batch, measured on {trial.device} in {trial.precision}"
    yield f"  memory        {_gb(trial.peak_bytes)} at its peak, {_gb(estimate.memory_bytes)} there"
    counts = f"{estimate.steps_per_epoch} steps and {estimate.n_val} validations"
    yield f"  epoch         {counts}: about {_time(estimate.epoch_s)}, loading not counted"
    yield f"  whole         {estimate.max_epochs} epochs: about {_time(estimate.epoch_s * estimate.max_epochs)}"


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
